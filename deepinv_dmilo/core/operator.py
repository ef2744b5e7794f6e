"""The forward operator of a batch of images, as any of their reconstructions see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor, nn
from torch.func import functional_call

from deepinv_dmilo.core.descent import squared_norm
from deepinv_dmilo.core.measurements import (
    SHAPE_ERRORS,
    Measurements,
    energy,
    join,
    measure,
    operators,
    parts,
    raise_out_of_memory,
    take,
)

SAME = 1e-8  # of the energy: rounding, in float32, of the same sums over another batch


class Operator:
    """
    The physics of B images, for rows that each belong to one of them: row r of S * B to image r mod B.

    An operator that is the same for all images takes any rows at once. One with tensors for each of them (kernels,
    masks) is given those of the rows. One that hides what differs sees whole batches, mid-grey in rows not asked for.

    :param deepinv.physics.Physics physics: the physics, differentiable.
    :param tuple shape: (B, C, H, W) of the images in [0, 1].
    :param torch.Tensor like: a tensor of the type and device to work in.
    :param bool single: there is one row in all, so that nothing need be known about batches.
    :raises ValueError: it has no gradient.
    """

    def __init__(self, physics: Physics, shape: tuple[int, ...], like: Tensor, *, single: bool) -> None:
        self.physics, self.batch = physics, shape[0]
        self.members = _Members(physics)
        self.like = like.new_zeros(()).expand(shape)
        #: number of real measurements of an image that change with it, (B,)
        self.reached = _reached(physics, shape, like)
        self.tensors: dict[str, Tensor] = {}
        self.is_shared = single or self._is_same_for_all(shape, like)
        self.is_split = self.is_shared or self._has_tensors_of_its_images(shape, like)

    def __call__(self, x: Tensor, rows: Tensor) -> Measurements:
        """A(x) of some rows of images in [0, 1], (n, C, H, W)."""
        if self.is_split:
            return self.apply(lambda: measure(x, self.physics), rows)
        measured = []
        for group in (rows // self.batch).unique().tolist():  # no image is twice in a group
            here = (rows // self.batch) == group
            whole = x.new_full((self.batch, *x.shape[1:]), 0.5).index_copy(0, rows[here] % self.batch, x[here])
            measured.append((here.nonzero()[:, 0], take(measure(whole, self.physics), rows[here] % self.batch)))
        order = torch.cat([places for places, _ in measured]).argsort()
        return take(join([part for _, part in measured]), order)

    def apply(self, function: Callable[[], Any], rows: Tensor) -> Any:
        """What a function of the physics returns while it has the tensors of these rows' images."""
        if not self.tensors:
            return function()
        selected = {name: tensor[rows % self.batch] for name, tensor in self.tensors.items()}
        return functional_call(self.members, selected, (function,))

    @cached_property
    def squared_norm(self) -> Tensor | None:
        """``||A||^2`` for each image, (B,); None where A is not linear."""
        if not isinstance(self.physics, LinearPhysics):
            return None
        rows = torch.arange(self.batch, device=self.like.device)
        return squared_norm(lambda x: self(x, rows), self.like)

    def _is_same_for_all(self, shape: tuple[int, ...], like: Tensor) -> bool:
        """Whether each image of a batch, wherever it is in it, has the measurements that it has alone."""
        x, whole = self._different_images(shape, like)
        try:
            rolled, alone = measure(x.roll(1, 0), self.physics), measure(x[:1], self.physics)
            return _agree(_roll(whole), rolled) and _agree(take(whole, torch.arange(1)), alone)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            return False

    def _has_tensors_of_its_images(self, shape: tuple[int, ...], like: Tensor) -> bool:
        """Whether what differs between the images are tensors of the physics, and then, which."""
        x, whole = self._different_images(shape, like)
        tensors = [*self.members.named_parameters(), *self.members.named_buffers()]
        self.tensors = {name: t.detach() for name, t in tensors if t.ndim and len(t) == self.batch}
        rows = torch.arange(self.batch, device=like.device)
        try:
            rolled = self.apply(lambda: measure(x.roll(1, 0), self.physics), rows.roll(1))
            alone = self.apply(lambda: measure(x[:1], self.physics), rows[:1])
            if self.tensors and _agree(_roll(whole), rolled) and _agree(take(whole, rows[:1]), alone):
                return True
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
        self.tensors = {}
        return False

    def _different_images(self, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Measurements]:
        """At least two images, no two the same, and their measurements."""
        rng = torch.Generator("cpu").manual_seed(1)
        x = torch.rand((max(shape[0], 2), *shape[1:]), generator=rng, device="cpu").to(like)
        try:
            return x, measure(x, self.physics)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            return x[: shape[0]], measure(x[: shape[0]], self.physics)


class _Members(nn.Module):
    """A physics with those that a stack hides in a list, as a module, to swap their tensors."""

    def __init__(self, physics: Physics) -> None:
        super().__init__()
        self.members = nn.ModuleList(operators(physics))

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _agree(a: Measurements, b: Measurements) -> bool:
    """Whether they have as many rows, which are the same but for rounding."""
    same_rows = [len(t) for t in parts(a)] == [len(t) for t in parts(b)]
    return same_rows and bool((energy(a - b) <= SAME * energy(a)).all())


def _roll(y: Measurements) -> Measurements:
    return take(y, torch.arange(len(parts(y)[0])).roll(1))


def _reached(physics: Physics, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Number of real measurements of each image that change with it, (B,); refuses a physics without a gradient."""
    rng = torch.Generator("cpu").manual_seed(0)
    image = torch.rand(shape[1:], generator=rng, device="cpu").to(like)
    x = image.repeat(shape[0], 1, 1, 1)
    with torch.enable_grad():
        measured = measure(x.requires_grad_(), physics)
        if not any(t.requires_grad for t in parts(measured)):
            raise ValueError(
                "physics.A cannot be differentiated; write it in torch, without detach(), .data or numpy()"
            )
        change = measured - measure(1 - x.detach(), physics)
        (gradient,) = torch.autograd.grad(energy(change).sum(), x)
    values = [(torch.view_as_real(t) if t.is_complex() else t).flatten(1) for t in parts(change)]
    if any(v.any() for v in values) and not gradient.any():
        raise ValueError(
            "physics.A changes with the image but its gradient is zero, as that of rounding and comparisons is; use a "
            "smooth function in place of them"
        )
    return torch.stack([(v != 0).sum(1) for v in values]).sum(0).clamp(min=1)
