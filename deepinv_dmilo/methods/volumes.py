"""Volumes within a call: whole for the physics, images of many channels for the solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepinv.physics import Physics, StackedPhysics
from torch import Tensor

from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.priors.slicewise import Fold, Folded, Slicewise


def as_solved(
    prior: Prior, physics: Physics, shape: tuple[int, ...], micro_batch: int | None
) -> tuple[Prior, Physics, tuple[int, ...], int | None]:
    """
    Prior, physics and shape of images as the solvers see them, (B, C, H, W), and ``micro_batch`` in images.

    Nothing changes but for :class:`deepinv_dmilo.Slicewise`, whose images are volumes.

    :param deepinv.physics.Physics physics: a private copy, which is changed.
    :param int micro_batch: slices per pass of the network, if the images are volumes.
    """
    prior = prior.for_images(*shape[2:])
    if not isinstance(prior, Slicewise):
        return prior, physics, shape, micro_batch
    fold = Fold(prior.axis, shape[prior.axis])
    size = tuple(fold.images(torch.empty(shape, device="meta")).shape)
    for one in _given_images(physics):
        one.A = _of_images(one.A, fold, size[1:])  # type: ignore[method-assign]
        one.forward = _of_images(one.forward, fold, size[1:])  # type: ignore[method-assign]
    volumes = None if micro_batch is None else max(1, micro_batch // fold.slices)
    return Folded(prior.in_parts(micro_batch), fold), physics, size, volumes


def _given_images(physics: Physics) -> Iterator[Physics]:
    """The physics and the members of stacks; those of compositions get what the ones before them give."""
    yield physics
    for member in physics.physics_list if isinstance(physics, StackedPhysics) else ():
        yield from _given_images(member)


def _of_images(measure: Callable[..., Any], fold: Fold, size: tuple[int, ...]) -> Callable[..., Any]:
    """A function of volumes as one of images of a size (C, H, W); volumes pass, as for the members of a stack."""

    def measure_images(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return measure(fold.volumes(x) if x.shape[1:] == size else x, *args, **kwargs)

    return measure_images
