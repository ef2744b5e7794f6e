"""Validation of the arguments of a call, against each other and once, before any work."""

from __future__ import annotations

from itertools import chain

import torch
from deepinv.physics import Physics
from deepinv.utils import TensorList
from torch import Tensor

from deepinv_dmilo.likelihood.batches import batch_size_error
from deepinv_dmilo.likelihood.measurements import Measurements, like_parts, parts, shapes
from deepinv_dmilo.methods.image_shape import image_shape, lacking, measured_of_black, tensors
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory


def check_inputs(y: Measurements, physics: Physics, prior: Prior, init: Tensor | None) -> tuple[int, ...]:
    """
    Check y, physics, prior and init against each other.

    :return: the image shape (B, C, H, W), or (B, C, D, H, W) of volumes.
    :raises TypeError, ValueError: they do not fit; the message says which and what to type.
    """
    if not isinstance(y, (Tensor, TensorList)):
        raise TypeError(f"y is a {type(y).__name__}; pass measurements as a tensor or TensorList: y = physics(x)")
    if init is not None and not (isinstance(init, Tensor) and init.is_floating_point()):
        raise TypeError(f"init is {_kind(init)}; pass a floating tensor of shape {_layout(prior)}")
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
    shape, made = image_shape(y, physics, prior) if init is None else (tuple(init.shape), None)
    _check_dimensions(shape, prior, init)
    prior.check_shape(shape)
    if init is not None:
        made = _check_init(init, y, physics, prior)
    _check_complex(made, y)
    return shape


def check_misplaced(misplaced: dict[str, object], method: str, known: str, *, blind: bool = False) -> None:
    """Refuse arguments of a call of a method that it does not take."""
    for name in misplaced:
        hint = f"settings are given to the model: type {method}(prior, {name}=...)(y, physics)"
        if name in ("return_std", "return_samples", "quantiles"):
            sampler, estimates = f"DMILOSampler(prior)(y, physics, {name}=...)", "solve(y, physics).samples"
            hint = f"the spread of its samples is no uncertainty: type {sampler}, or for the estimates {estimates}"
            if blind:
                hint = (
                    f"samples of blind problems are estimates, {estimates}; for those of the posterior, give the "
                    f"physics the parameters that were found, and type {sampler}"
                )
        if name == "return_unknown":
            hint = "its physics is known; for blind problems, type DMILO(prior, unknown=...)"
        raise TypeError(f"a call takes y, physics, init, x_gt, {known}, and no {name!r}; {hint}")


def check_latent(init: Tensor, prior: Prior, num_samples: int) -> None:
    """Refuse an ``init`` that a chain cannot start from; the rest is checked with the other arguments."""
    if num_samples > 1:
        raise ValueError("init is one start, and samples need different ones; type num_samples=1, or leave init out")
    if not prior.affine:
        raise ValueError("init as a latent of an autoencoder is not supported; leave it out, the noise follows rng")
    fits = isinstance(init, Tensor) and init.ndim == len(prior.dimensions)
    if fits and prior.for_images(*init.shape[2:]) is not prior:
        raise ValueError(
            f"init has shape {tuple(init.shape)}, which the prior's network does not take without padding; leave "
            "init out, or pad or crop the images"
        )


def check_ground_truth(x_gt: Tensor | None, like: Tensor) -> None:
    """Refuse a ground truth that is no tensor of the shape of the images."""
    if x_gt is not None and not (isinstance(x_gt, Tensor) and x_gt.shape == like.shape):
        given = tuple(x_gt.shape) if isinstance(x_gt, Tensor) else type(x_gt).__name__
        raise ValueError(f"x_gt is {given}; pass the ground truth of the batch, a tensor of shape {tuple(like.shape)}")


def _layout(prior: Prior) -> str:
    return f"({', '.join(prior.dimensions)})"


def _check_dimensions(shape: tuple[int, ...], prior: Prior, init: Tensor | None) -> None:
    """Refuse volumes where the prior takes images, and images where it takes volumes."""
    takes = f"and the prior takes {_layout(prior)}"
    if len(shape) == len(prior.dimensions):
        return
    if init is not None:
        other = ", for volumes Slicewise(prior)" if len(shape) == 5 else ""
        raise ValueError(f"init has shape {shape}, {takes}; pass an init of these{other}")
    if len(shape) < len(prior.dimensions):
        raise ValueError(
            f"the physics acts on images of shape {shape}, {takes}; type prior, without Slicewise, or for a volume "
            "without its batch dimension y[None]"
        )
    raise ValueError(
        f"the physics acts on volumes or films of shape {shape}, {takes}; type Slicewise(prior), around all other "
        "wrappers: each slice is an image of the prior, and the physics sees the volume"
    )


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _check_init(init: Tensor, y: Measurements, physics: Physics, prior: Prior) -> Measurements:
    """Check that init fits y; returns the measurements of black images of its shape."""
    try:
        made = measured_of_black(tuple(init.shape), y, physics)
        produced: object = shapes(made)
        failure = None
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        produced, failure = error, error
    if produced != shapes(y):
        if produced == shapes(lifted := like_parts(y, [t[None] for t in parts(y)])):
            raise lacking(y, lifted, "[None]")
        size, batch = tuple(init.shape), len(parts(y)[0])
        other = batch_size_error(physics, batch, lambda: shapes(measured_of_black(size, y, physics)) == shapes(y))
        if other is not None:
            raise other from failure
        what = f"which the physics does not take ({failure})" if failure else f"whose measurements are {produced}"
        raise ValueError(
            f"init has shape {tuple(init.shape)}, {what}, but y has {shapes(y)}; pass an init of shape "
            f"{_layout(prior)}, one for each of the measurements' images"
        ) from failure
    if not torch.isfinite(init).all():
        raise ValueError("init has NaN or infinite values; replace them, or leave init out")
    return made


def _check_complex(measured: Measurements, y: Measurements) -> None:
    """Refuse real measurements of a complex physics, and complex ones of a real physics."""
    for made, given in zip(parts(measured), parts(y), strict=True):
        if made.is_complex() != given.is_complex():
            here, there = ("complex", "real") if given.is_complex() else ("real", "complex")
            raise TypeError(f"y is {here} and the physics' measurements are {there}; pass y = physics(x)")


def _check_devices(y: Measurements, physics: Physics, prior: Prior) -> None:
    device = parts(y)[0].device
    if prior.device != device and any(True for _ in chain(prior.parameters(), prior.buffers())):
        raise ValueError(f"the prior is on {prior.device} and y on {device}; type model.to(y.device)")
    for tensor in tensors(physics):
        if tensor.device != device:
            raise ValueError(f"physics is on {tensor.device} and y on {device}; type physics.to(y.device)")
