"""Measurements of any kind (real, complex, TensorList): their energy, and the checks at a reconstructor's door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import torch
from deepinv.physics import LinearPhysics, PhaseRetrieval, Physics
from deepinv.utils import TensorList
from torch import Tensor

if TYPE_CHECKING:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior

Measurements: TypeAlias = "Tensor | TensorList"

SHAPE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # what a physics raises at a misfit


def as_input(x: Tensor, physics: Physics) -> Tensor:
    """Real images as the physics takes them: deepinv's phase retrieval wants a complex type."""
    if isinstance(physics, PhaseRetrieval):
        return x.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
    return x


def measure(x: Tensor, physics: Physics) -> Measurements:
    """A(x) of real images x."""
    return physics.A(as_input(x, physics))


def parts(y: Measurements) -> list[Tensor]:
    """The tensors that measurements consist of: one, or those of a (nested) TensorList."""
    return [t for part in y for t in parts(part)] if isinstance(y, TensorList) else [y]


def take(y: Measurements, rows: Tensor) -> Measurements:
    """The measurements of some samples."""
    return TensorList([take(part, rows) for part in y]) if isinstance(y, TensorList) else y[rows]


def join(ys: list[Measurements]) -> Measurements:
    """The measurements of several batches as those of one."""
    if isinstance(ys[0], TensorList):
        return TensorList([join(list(group)) for group in zip(*ys, strict=True)])
    return torch.cat(ys)


def energy(r: Measurements) -> Tensor:
    """Squared 2-norm of each sample, shape (B,); complex values count by their modulus."""
    squares = [(torch.view_as_real(t) if t.is_complex() else t).square() for t in parts(r)]
    return torch.stack([s.flatten(1).sum(1) for s in squares]).sum(0)


def mean_energy(r: Measurements) -> Tensor:
    """Mean squared modulus over a sample's measurements, shape (B,)."""
    return energy(r) / sum(t[0].numel() for t in parts(r))


def residual(x: Tensor, y: Measurements, physics: Physics) -> Tensor:
    """Root mean square of A(x) - y over a sample's measurements, shape (B,); at a perfect fit the noise level."""
    return mean_energy(measure(x, physics) - y).sqrt()


def working_dtype(y: Measurements) -> torch.dtype:
    """The real floating type to reconstruct in: that of the measurements, at least float32."""
    dtype = torch.float32
    for t in parts(y):
        dtype = torch.promote_types(dtype, t.real.dtype if t.is_complex() else t.dtype)
    return dtype


def check_inputs(y: Measurements, physics: Physics, prior: DiffusionPrior, init: Tensor | None) -> tuple[int, ...]:
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
            raise ValueError(f"y has shape {tuple(t.shape)}: pass a non-empty batch of measurements, (B, ...)")
        if not (t.is_floating_point() or t.is_complex()):
            raise TypeError(f"y is {t.dtype}; pass floats on the scale of A(x) for images x in [0, 1], e.g. y / 255")
        if not torch.isfinite(t).all():
            count = int((~torch.isfinite(t)).sum())
            raise ValueError(f"y has {count} NaN or infinite values; replace them, or mask them in the physics")
    _check_devices(y, physics, prior)
    shape = tuple(init.shape) if init is not None else _image_shape(y, physics, prior)
    _check_network(shape, prior)
    if init is not None:
        _check_init(init, y, physics)
    _check_differentiable(shape, y, physics)
    return shape


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_differentiable(shape: tuple[int, ...], y: Measurements, physics: Physics) -> None:
    rng = torch.Generator("cpu").manual_seed(0)
    image = torch.rand(shape[1:], generator=rng, device="cpu").to(parts(y)[0].device, working_dtype(y))
    x = image.repeat(shape[0], 1, 1, 1)
    with torch.enable_grad():
        measured = measure(x.requires_grad_(), physics)
        if not any(t.requires_grad for t in parts(measured)):
            raise ValueError(
                "physics.A cannot be differentiated; write it in torch, without detach(), .data or numpy()"
            )
        change = energy(measured - measure(1 - x.detach(), physics))
        (gradient,) = torch.autograd.grad(change.sum(), x)
    if change.any() and not gradient.any():
        raise ValueError(
            "physics.A changes with the image but its gradient is zero, as that of rounding and comparisons is; use a "
            "smooth function in place of them"
        )


def _check_init(init: Tensor, y: Measurements, physics: Physics) -> None:
    try:
        produced: object = _measured_shapes(tuple(init.shape), y, physics)
        failure = None
    except SHAPE_ERRORS as error:
        produced, failure = error, error
    if produced != _shapes(y):
        raise ValueError(
            f"init has shape {tuple(init.shape)}, whose measurements are {produced}, but y has {_shapes(y)}; pass an "
            "init of shape (B, C, H, W), one latent per measurement"
        ) from failure
    if not torch.isfinite(init).all():
        raise ValueError("init has NaN or infinite values; leave it out to start from noise")


def _check_devices(y: Measurements, physics: Physics, prior: DiffusionPrior) -> None:
    device = parts(y)[0].device
    if prior.device != device:
        raise ValueError(f"the prior is on {prior.device} and y on {device}; type model.to(y.device)")
    for tensor in _tensors(physics):
        if tensor.device != device:
            raise ValueError(f"physics is on {tensor.device} and y on {device}; type physics.to(y.device)")


def operators(physics: Physics) -> Iterator[Physics]:
    """The physics, and those that a stack of deepinv's keeps in a plain list, where torch does not see them."""
    yield physics
    for member in getattr(physics, "physics_list", ()):
        yield from operators(member)


def _tensors(physics: Physics) -> Iterator[Tensor]:
    """What the operator computes with, without the noise model's own tensors."""
    for operator in operators(physics):
        for name, tensor in [*operator.named_parameters(), *operator.named_buffers()]:
            if "noise_model" not in name and "random_state" not in name:
                yield tensor


def _image_shape(y: Measurements, physics: Physics, prior: DiffusionPrior) -> tuple[int, ...]:
    """The image shape (B, C, H, W) that the physics, the measurements or the prior tell, and that y agrees with."""
    tried: dict[tuple[int, ...], object] = {}
    failure = None
    for shape in _candidate_shapes(y, physics, prior):
        if shape in tried:
            continue
        try:
            tried[shape] = _measured_shapes(shape, y, physics)
        except SHAPE_ERRORS as error:
            tried[shape], failure = str(error), error
            continue
        if tried[shape] == _shapes(y):
            return shape
    report = "; ".join(f"an image {shape} gives {result}" for shape, result in tried.items())
    raise ValueError(
        f"y of shape {_shapes(y)} does not match physics ({report or 'whose image size is unknown'}); pass "
        "y = physics(x), or init=z of shape (B, C, H, W) where physics does not tell its image size"
    ) from failure


def _candidate_shapes(y: Measurements, physics: Physics, prior: DiffusionPrior) -> Iterator[tuple[int, ...]]:
    """Image shapes worth trying, the most telling first."""
    batch = len(parts(y)[0])
    for size in (getattr(physics, "img_size", None), getattr(physics, "imsize", None)):
        if size is not None and len(size) == 3:
            yield (batch, *size)
    if isinstance(physics, LinearPhysics):
        with suppress(*SHAPE_ERRORS):
            yield tuple(physics.A_adjoint(y).shape)
    if isinstance(y, Tensor) and y.ndim == 4:
        yield tuple(y.shape)
    if prior.image_shape is not None:
        yield (batch, *prior.image_shape)


def _measured_shapes(shape: tuple[int, ...], y: Measurements, physics: Physics) -> list[tuple[int, ...]]:
    x = torch.zeros(shape, device=parts(y)[0].device, dtype=working_dtype(y))
    with torch.no_grad():
        return _shapes(measure(x, physics))


def _shapes(y: Measurements) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in parts(y)]


def _check_network(shape: tuple[int, ...], prior: DiffusionPrior) -> None:
    """Refuse an image that the network cannot take: its channels, or its size."""
    config = getattr(prior.unet, "config", None)
    channels = getattr(config, "in_channels", None)
    if len(shape) != 4 or (channels is not None and shape[1] != channels):
        raise ValueError(
            f"images of shape {shape} do not fit the prior, which takes (B, {channels or 'C'}, H, W); "
            "use a prior and a physics with the same number of channels"
        )
    multiple = 2 ** (len(getattr(config, "block_out_channels", (0,))) - 1)
    if shape[2] % multiple or shape[3] % multiple:
        raise ValueError(
            f"images of {shape[2]} x {shape[3]} pixels do not fit the prior's network, which halves them "
            f"{multiple.bit_length() - 1} times; pad or crop height and width to multiples of {multiple}"
        )
