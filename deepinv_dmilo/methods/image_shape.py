"""The shape of the images, found by applying the physics to black images of candidate shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
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

#: image shapes, and the measurements of black images of these shapes, or why there are none
Tried: TypeAlias = "dict[tuple[int, ...], Measurements | Exception]"


def image_shape(y: Measurements, physics: Physics, prior: Prior) -> tuple[tuple[int, ...], Measurements]:
    """
    The shape of the images that y is measured from, and the measurements of black images of this shape.

    :return: the shape, (B, C, H, W), or (B, C, D, H, W) of volumes.
    :raises TypeError, ValueError: no candidate shape fits y; the message says what to type.
    """
    shape, tried = _try_shapes(y, physics, prior)
    unknown = shape is None or len(shape) not in (4, len(prior.dimensions))
    if unknown and (batched := _as_a_batch(y, physics, prior)) is not None:
        raise batched
    if shape is not None:
        return shape, tried[shape]  # type: ignore[return-value]
    failure = next((result for result in reversed(tried.values()) if isinstance(result, Exception)), None)
    other = batch_size_error(physics, len(parts(y)[0]), lambda: _try_shapes(y, physics, prior)[0] is not None)
    if other is not None:
        raise other from failure
    if isinstance(y, Tensor) and y.ndim == 4 and y.shape[-1] in (1, 3) and y.shape[1] not in (1, 3):
        raise ValueError(f"y of shape {tuple(y.shape)} has its channels last; pass y.permute(0, 3, 1, 2)") from failure
    if tried and all(isinstance(result, Exception) for result in tried.values()):
        raise _none_taken(list(tried), y, physics, failure) from failure
    made = {size: result if isinstance(result, Exception) else shapes(result) for size, result in tried.items()}
    report = "; ".join(f"an image {size} gives {result}" for size, result in made.items())
    raise ValueError(
        f"y of shape {shapes(y)} does not match physics ({report or 'whose image size is unknown'}); pass "
        "y = physics(x) of images x (B, C, H, W), channels first, a single one as a batch, y[None]; if the physics has "
        "no image size or another one than y, type physics.img_size = (C, H, W)"
    ) from failure


def _try_shapes(y: Measurements, physics: Physics, prior: Prior) -> tuple[tuple[int, ...] | None, Tried]:
    """The first candidate shape that fits y, if any, and the results of all that were tried."""
    tried: Tried = {}
    for shape in _candidate_shapes(y, physics, prior):
        if shape in tried:
            continue
        try:
            made = tried[shape] = measured_of_black(shape, y, physics)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            tried[shape] = error
            continue
        if shapes(made) == shapes(y):
            return shape, tried
    return None, tried


def _as_a_batch(y: Measurements, physics: Physics, prior: Prior) -> ValueError | None:
    """The error for measurements that fit once a batch or channel dimension is added."""
    for typed, where in (("[None]", (None,)), ("[None, None]", (None, None)), ("[:, None]", (slice(None), None))):
        lifted = like_parts(y, [t[where] for t in parts(y)])
        shape, _ = _try_shapes(lifted, physics, prior)
        if shape is not None and len(shape) == len(prior.dimensions):
            with suppress(ValueError):
                prior.check_shape(shape)
                return lacking(y, lifted, typed)
    return None


def lacking(y: Measurements, lifted: Measurements, typed: str) -> ValueError:
    """The error for measurements without a dimension, which ``lifted`` have."""
    what, n = "dimension of channels" if typed == "[:, None]" else "batch dimension", len(parts(lifted)[0])
    return ValueError(f"y has shape {shapes(y)}, without its {what}; pass y{typed}, of {n} image{'s' * (n > 1)}")


def _none_taken(
    tried: list[tuple[int, ...]], y: Measurements, physics: Physics, failure: Exception | None
) -> Exception:
    """The error for a physics that fails for images of every shape."""
    own, given = {t.dtype for t in tensors(physics) if t.is_floating_point()}, working_dtype(y)
    if len(own) == 1 and given not in own:
        (kind,) = own
        return TypeError(
            f"y is {given}, and physics computes in {kind} ({failure}); pass y.to({kind}), or convert physics"
        )
    return ValueError(
        f"physics.A takes no image of shape {' or '.join(map(str, tried))}: {failure}; pass a physics that does (a "
        "kernel has four dimensions, kernel[None, None]); if it has no image size or a wrong one, type "
        "physics.img_size = (C, H, W)"
    )


def _candidate_shapes(y: Measurements, physics: Physics, prior: Prior) -> Iterator[tuple[int, ...]]:
    """Candidates for the shape of the images, the most reliable first."""
    batch = len(parts(y)[0])
    size = getattr(physics, "img_size", None)
    if size is not None and len(size) == 3:
        yield (batch, *size)
    for linear in (m for m in physics.modules() if isinstance(m, LinearPhysics)):  # the physics or a part of it
        try:
            yield tuple(linear.A_adjoint(y).shape)
        except (*SHAPE_ERRORS, AttributeError) as error:
            raise_out_of_memory(error)
    width = getattr(physics, "img_width", None)
    if isinstance(width, int):
        yield (batch, prior.image_shape[0] if prior.image_shape else 1, width, width)
    if isinstance(y, Tensor) and y.ndim == 4:
        if prior.image_shape is not None:  # an operator may ignore some channels
            yield (batch, prior.image_shape[0], *y.shape[2:])
        yield tuple(y.shape)
    if prior.image_shape is not None:
        yield (batch, *prior.image_shape)
    if size is not None and len(size) == 4:
        yield (batch, *size)
    if isinstance(y, Tensor) and y.ndim == 5:
        yield tuple(y.shape)


def measured_of_black(shape: tuple[int, ...], y: Measurements, physics: Physics) -> Measurements:
    """The measurements of black images of a shape."""
    with torch.no_grad():
        return measure(torch.zeros(shape, device=parts(y)[0].device, dtype=working_dtype(y)), physics)


def tensors(physics: Physics) -> Iterator[Tensor]:
    """The parameters and buffers of the forward operator, without those of the noise model."""
    for operator in operators(physics):
        for name, tensor in [*operator.named_parameters(), *operator.named_buffers()]:
            if "noise_model" not in name and "random_state" not in name:
                yield tensor
