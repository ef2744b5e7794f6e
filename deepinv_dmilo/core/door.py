"""The door of a reconstructor: what the caller gave is checked against each other, once, before any work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from numbers import Integral, Real

import torch
from deepinv.physics import LinearPhysics, Physics
from deepinv.utils import TensorList
from torch import Tensor

from deepinv_dmilo.core.batches import of_another_batch
from deepinv_dmilo.core.measurements import (
    SHAPE_ERRORS,
    Measurements,
    like_parts,
    measure,
    operators,
    parts,
    raise_out_of_memory,
    shapes,
    working_dtype,
)
from deepinv_dmilo.core.prior import Prior


def check_inputs(y: Measurements, physics: Physics, prior: Prior, init: Tensor | None) -> tuple[int, ...]:
    """
    Check y, physics, prior and init against each other once; returns the image shape (B, C, H, W).

    :raises TypeError: y is no tensor or TensorList, or physics no deepinv Physics.
    :raises ValueError: anything else that does not fit, naming what does not fit what, and what to type.
    """
    if not isinstance(y, (Tensor, TensorList)):
        raise TypeError(f"y is a {type(y).__name__}; pass measurements as a tensor or TensorList: y = physics(x)")
    if init is not None and not (isinstance(init, Tensor) and init.is_floating_point()):
        raise TypeError(f"init is {_kind(init)}; pass a floating tensor of shape (B, C, H, W)")
    if not isinstance(physics, Physics):
        raise TypeError(f"physics is a {type(physics).__name__}; pass a deepinv.physics.Physics: model(y, physics)")
    for t in parts(y):
        if t.ndim < 2 or t.numel() == 0:
            one = ", of one image y[None]" if t.ndim == 1 and t.numel() else ""
            raise ValueError(f"y has shape {tuple(t.shape)}: pass a non-empty batch of measurements, (B, ...){one}")
        if not (t.is_floating_point() or t.is_complex()):
            raise TypeError(f"y is {t.dtype}; pass floats on the scale of A(x) for images x in [0, 1], e.g. y / 255")
        if not torch.isfinite(t).all():
            count = int((~torch.isfinite(t)).sum())
            raise ValueError(f"y has {count} NaN or infinite values; replace them, or mask them in the physics")
    _check_devices(y, physics, prior)
    shape = tuple(init.shape) if init is not None else _image_shape(y, physics, prior)
    if len(shape) != 4:
        raise ValueError(
            f"the physics acts on volumes or films of shape {shape}, and the prior on images (B, C, H, W); reconstruct "
            "slice by slice, with the physics of a slice"
        )
    prior.check_shape(shape)
    if init is not None:
        _check_init(init, y, physics)
    _check_complex(shape, y, physics)
    return shape


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_init(init: Tensor, y: Measurements, physics: Physics) -> None:
    try:
        produced: object = _measured_shapes(tuple(init.shape), y, physics)
        failure = None
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        produced, failure = error, error
    if produced != shapes(y):
        if produced == shapes(lifted := like_parts(y, [t[None] for t in parts(y)])):
            raise _lacking(y, lifted, "[None]")
        what = f"which the physics does not take ({failure})" if failure else f"whose measurements are {produced}"
        raise ValueError(
            f"init has shape {tuple(init.shape)}, {what}, but y has {shapes(y)}; pass an init of shape (B, C, H, W), "
            "one for each of the measurements' images"
        ) from failure
    if not torch.isfinite(init).all():
        raise ValueError("init has NaN or infinite values; leave it out to start from noise")


def _check_complex(shape: tuple[int, ...], y: Measurements, physics: Physics) -> None:
    """Refuse real measurements where those of the physics are complex, and complex ones where they are real."""
    for made, given in zip(parts(_measured(shape, y, physics)), parts(y), strict=True):
        if made.is_complex() != given.is_complex():
            here, there = ("complex", "real") if given.is_complex() else ("real", "complex")
            raise TypeError(f"y is {here} and the physics' measurements are {there}; pass y = physics(x)")


def _check_devices(y: Measurements, physics: Physics, prior: Prior) -> None:
    device = parts(y)[0].device
    if prior.device != device and any(True for _ in chain(prior.parameters(), prior.buffers())):
        raise ValueError(f"the prior is on {prior.device} and y on {device}; type model.to(y.device)")
    for tensor in _tensors(physics):
        if tensor.device != device:
            raise ValueError(f"physics is on {tensor.device} and y on {device}; type physics.to(y.device)")


def _tensors(physics: Physics) -> Iterator[Tensor]:
    """What the operator computes with, without the noise model's own tensors."""
    for operator in operators(physics):
        for name, tensor in [*operator.named_parameters(), *operator.named_buffers()]:
            if "noise_model" not in name and "random_state" not in name:
                yield tensor


def _image_shape(y: Measurements, physics: Physics, prior: Prior) -> tuple[int, ...]:
    """The image shape (B, C, H, W) that the physics, the measurements or the prior tell, and that y agrees with."""
    tried: dict[tuple[int, ...], object] = {}
    shape, failure = _first_that_fits(y, physics, prior, tried)
    if shape is not None and len(shape) == 4:
        return shape
    if (batched := _as_a_batch(y, physics, prior)) is not None:
        raise batched
    if shape is not None:
        return shape
    batch = len(parts(y)[0])
    other = of_another_batch(physics, batch, lambda: _first_that_fits(y, physics, prior, {})[0] is not None)
    if other is not None:
        raise other from failure
    if tried and all(isinstance(result, str) for result in tried.values()):
        raise _none_taken(list(tried), y, physics, failure) from failure
    report = "; ".join(f"an image {shape} gives {result}" for shape, result in tried.items())
    raise ValueError(
        f"y of shape {shapes(y)} does not match physics ({report or 'whose image size is unknown'}); pass "
        "y = physics(x) of images x (B, C, H, W), channels first, a single one as a batch, y[None]; where the physics "
        "does not tell the size of its images, or another one than y is of, type physics.img_size = (C, H, W)"
    ) from failure


def _first_that_fits(
    y: Measurements, physics: Physics, prior: Prior, tried: dict[tuple[int, ...], object]
) -> tuple[tuple[int, ...] | None, Exception | None]:
    """The first image shape that y agrees with, if any, and the last error; ``tried`` takes what others come to."""
    failure = None
    for shape in _candidate_shapes(y, physics, prior):
        if shape in tried:
            continue
        try:
            tried[shape] = _measured_shapes(shape, y, physics)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            tried[shape], failure = str(error), error
            continue
        if tried[shape] == shapes(y):
            return shape, failure
    return None, failure


def _as_a_batch(y: Measurements, physics: Physics, prior: Prior) -> ValueError | None:
    """What to say of measurements without the dimension of a batch, or of channels, with which they fit."""
    for typed, where in (("[None]", (None,)), ("[None, None]", (None, None)), ("[:, None]", (slice(None), None))):
        lifted = like_parts(y, [t[where] for t in parts(y)])
        shape, _ = _first_that_fits(lifted, physics, prior, {})
        if shape is not None and len(shape) == 4 and _is_of(shape, prior):
            return _lacking(y, lifted, typed)
    return None


def _lacking(y: Measurements, lifted: Measurements, typed: str) -> ValueError:
    lacking, n = "dimension of channels" if typed == "[:, None]" else "batch dimension", len(parts(lifted)[0])
    return ValueError(f"y has shape {shapes(y)}, without its {lacking}; pass y{typed}, of {n} image{'s' * (n > 1)}")


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
    own, given = {t.dtype for t in _tensors(physics) if t.is_floating_point()}, working_dtype(y)
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
    if isinstance(physics, LinearPhysics):
        try:
            yield tuple(physics.A_adjoint(y).shape)
        except SHAPE_ERRORS as error:
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


def _measured_shapes(shape: tuple[int, ...], y: Measurements, physics: Physics) -> list[tuple[int, ...]]:
    return shapes(_measured(shape, y, physics))


def _measured(shape: tuple[int, ...], y: Measurements, physics: Physics) -> Measurements:
    with torch.no_grad():
        return measure(torch.zeros(shape, device=parts(y)[0].device, dtype=working_dtype(y)), physics)


def check_settings(*, steps: dict[str, int], rates: dict[str, float], weights: dict[str, float]) -> None:
    """Refuse step numbers that are not whole and positive, rates that are not positive, weights that are negative."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: type a whole number of at least 1")
    for name, number in {**rates, **weights}.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            of_tensor = ", of a tensor its .item()" if isinstance(number, Tensor) else ""
            raise ValueError(f"{name}={number!r}: type a finite number, such as 0.01{of_tensor}")
        if number < 0 or (number == 0 and name in rates):
            raise ValueError(f"{name}={number!r}: type a number {'above' if name in rates else 'of at least'} 0")


def check_flags(**flags: object) -> None:
    """Refuse what is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: type True or False")


def check_choice(name: str, value: str, choices: tuple[str, ...], other: str = "") -> None:
    """Refuse a word that is none of the choices."""
    if value not in choices:
        options = [repr(choice) for choice in choices] + ([other] if other else [])
        raise ValueError(f"{name}={value!r}: type {' or '.join(options)}")
