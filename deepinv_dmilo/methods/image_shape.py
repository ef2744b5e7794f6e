"""The shape of the images that measurements are of, found by asking the physics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from deepinv_dmilo.likelihood.batches import batch_size_error
from deepinv_dmilo.likelihood.measurements import (
    Measurements,
    like_parts,
    measure,
    operators,
    parts,
    shapes,
    working_dtype,
)
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory

#: image shapes, and what black images of these measure, or why they have no measurements
Tried: TypeAlias = "dict[tuple[int, ...], Measurements | str]"


def image_shape(y: Measurements, physics: Physics, prior: Prior) -> tuple[tuple[int, ...], Measurements]:
    """
    The image shape (B, C, H, W) that the physics, the measurements or the prior tell, and that y agrees with.

    And what black images of it measure.
    """
    tried: Tried = {}
    shape, failure = _first_that_fits(y, physics, prior, tried)
    if shape is not None and len(shape) == 4:
        return shape, tried[shape]  # type: ignore[return-value]
    if (batched := _as_a_batch(y, physics, prior)) is not None:
        raise batched
    if shape is not None:
        return shape, tried[shape]  # type: ignore[return-value]
    batch = len(parts(y)[0])
    other = batch_size_error(physics, batch, lambda: _first_that_fits(y, physics, prior, {})[0] is not None)
    if other is not None:
        raise other from failure
    if isinstance(y, Tensor) and y.ndim == 4 and y.shape[-1] in (1, 3) and y.shape[1] not in (1, 3):
        raise ValueError(f"y of shape {tuple(y.shape)} has its channels last; pass y.permute(0, 3, 1, 2)") from failure
    if tried and all(isinstance(result, str) for result in tried.values()):
        raise _none_taken(list(tried), y, physics, failure) from failure
    told = {shape: made if isinstance(made, str) else shapes(made) for shape, made in tried.items()}
    report = "; ".join(f"an image {shape} gives {result}" for shape, result in told.items())
    raise ValueError(
        f"y of shape {shapes(y)} does not match physics ({report or 'whose image size is unknown'}); pass "
        "y = physics(x) of images x (B, C, H, W), channels first, a single one as a batch, y[None]; where the physics "
        "does not tell the size of its images, or another one than y is of, type physics.img_size = (C, H, W)"
    ) from failure


def _first_that_fits(
    y: Measurements, physics: Physics, prior: Prior, tried: Tried
) -> tuple[tuple[int, ...] | None, Exception | None]:
    """The first image shape that y agrees with, if any, and the last error; ``tried`` takes what others come to."""
    failure = None
    for shape in _candidate_shapes(y, physics, prior):
        if shape in tried:
            continue
        try:
            made = tried[shape] = measured_of_black(shape, y, physics)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            tried[shape], failure = str(error), error
            continue
        if shapes(made) == shapes(y):
            return shape, failure
    return None, failure


def _as_a_batch(y: Measurements, physics: Physics, prior: Prior) -> ValueError | None:
    """What to say of measurements without the dimension of a batch, or of channels, with which they fit."""
    for typed, where in (("[None]", (None,)), ("[None, None]", (None, None)), ("[:, None]", (slice(None), None))):
        lifted = like_parts(y, [t[where] for t in parts(y)])
        shape, _ = _first_that_fits(lifted, physics, prior, {})
        if shape is not None and len(shape) == 4 and _is_of(shape, prior):
            return lacking(y, lifted, typed)
    return None


def lacking(y: Measurements, lifted: Measurements, typed: str) -> ValueError:
    what, n = "dimension of channels" if typed == "[:, None]" else "batch dimension", len(parts(lifted)[0])
    return ValueError(f"y has shape {shapes(y)}, without its {what}; pass y{typed}, of {n} image{'s' * (n > 1)}")


def _is_of(shape: tuple[int, ...], prior: Prior) -> bool:
    try:
        prior.check_shape(shape)
    except ValueError:
        return False
    return True


def _none_taken(
    tried: list[tuple[int, ...]], y: Measurements, physics: Physics, failure: Exception | None
) -> Exception:
    """What to say where A fails for images of every shape: that is no fault of the shape of y."""
    own, given = {t.dtype for t in tensors(physics) if t.is_floating_point()}, working_dtype(y)
    if len(own) == 1 and given not in own:
        (kind,) = own
        return TypeError(
            f"y is {given}, and physics computes in {kind} ({failure}); pass y.to({kind}), or convert physics"
        )
    return ValueError(
        f"physics.A takes no image of shape {' or '.join(map(str, tried))}: {failure}; pass a physics that does (a "
        "kernel has four dimensions, kernel[None, None]), and where it does not tell their size, or another one, type "
        "physics.img_size = (C, H, W)"
    )


def _candidate_shapes(y: Measurements, physics: Physics, prior: Prior) -> Iterator[tuple[int, ...]]:
    """Image shapes worth trying, the most telling first."""
    batch = len(parts(y)[0])
    for size in (getattr(physics, "img_size", None), getattr(physics, "imsize", None)):
        if size is not None and len(size) == 3:
            yield (batch, *size)
    for linear in (m for m in physics.modules() if isinstance(m, LinearPhysics)):  # it, or one that it is made of
        try:
            yield tuple(linear.A_adjoint(y).shape)
        except (*SHAPE_ERRORS, AttributeError) as error:
            raise_out_of_memory(error)
    width = getattr(physics, "img_width", None)
    if isinstance(width, int):
        yield (batch, prior.image_shape[0] if prior.image_shape else 1, width, width)
    if isinstance(y, Tensor) and y.ndim == 4:
        if prior.image_shape is not None:  # an operator may take more channels than it looks at
            yield (batch, prior.image_shape[0], *y.shape[2:])
        yield tuple(y.shape)
    if prior.image_shape is not None:
        yield (batch, *prior.image_shape)


def measured_of_black(shape: tuple[int, ...], y: Measurements, physics: Physics) -> Measurements:
    """What black images of a shape measure."""
    with torch.no_grad():
        return measure(torch.zeros(shape, device=parts(y)[0].device, dtype=working_dtype(y)), physics)


def tensors(physics: Physics) -> Iterator[Tensor]:
    """What the operator computes with, without the noise model's own tensors."""
    for operator in operators(physics):
        for name, tensor in [*operator.named_parameters(), *operator.named_buffers()]:
            if "noise_model" not in name and "random_state" not in name:
                yield tensor
