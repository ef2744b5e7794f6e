"""The forward operator of a batch of images, as any of their reconstructions see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor
from torch.func import functional_call

from deepinv_dmilo.likelihood.blind import Unknowns
from deepinv_dmilo.likelihood.measurements import (
    SHAPE_ERRORS,
    Measurements,
    energy,
    join,
    like_parts,
    measure,
    parts,
    raise_out_of_memory,
    real,
    take,
)
from deepinv_dmilo.likelihood.members import Members
from deepinv_dmilo.likelihood.rounding import agree
from deepinv_dmilo.likelihood.units import Units
from deepinv_dmilo.optim.descent import squared_norm

PAIRS = 8  # of images of random pixels, that show how much each measurement changes with the image: ours


class Operator:
    """
    The physics of B images, for rows that each belong to one of them: row r of S * B to image r mod B.

    An operator that is the same for all images takes any rows at once. One with tensors for each of them (kernels,
    masks) is given those of the rows. One that hides what differs sees whole batches, mid-grey in rows not asked for.

    :param deepinv.physics.Physics physics: the physics, differentiable.
    :param tuple shape: (B, C, H, W) of the images in [0, 1].
    :param torch.Tensor like: a tensor of the type and device to work in.
    :param bool single: there is one row in all, so that nothing need be known about batches.
    :param Unknowns unknowns: parameters of the physics that are not known, if any.
    :raises ValueError: it has no gradient, or measures the same image twice and not alike.

    Measurements, and all that is told of them, are in ``units``: at first those of the physics.
    """

    def __init__(
        self,
        physics: Physics,
        shape: tuple[int, ...],
        like: Tensor,
        *,
        single: bool,
        unknowns: Unknowns | None = None,
    ) -> None:
        self.unknowns: Unknowns | None = unknowns
        self.physics, self.batch = physics if unknowns is None else unknowns.physics, shape[0]
        physics = self.physics
        self.like = like.new_zeros(()).expand(shape)
        self.members = Members(physics)
        self.units = Units()
        #: warnings that were given
        self.told: set[str] = set()
        if unknowns is not None:
            unknowns.check(self.like)
        self._look()
        self.tensors: dict[str, Tensor] = {}
        #: of the noise model, that may be one for each image, and whether it makes noise of one image alone: ``settle``
        self.noise_tensors = {} if single else self._tensors_of_images(of_noise=True)
        self.noise_is_split: bool | None = True if single else None
        self.is_shared = single or self._is_same_for_all()
        self.is_split = self.is_shared or self._has_tensors_of_its_images()
        if unknowns is not None and not self.is_shared:
            raise ValueError(
                "unknown goes with a physics that is the same for all images but for what is unknown; reconstruct "
                "the images one by one"
            )

    def __call__(self, x: Tensor, rows: Tensor) -> Measurements:
        """A(x) of some rows of images in [0, 1], (n, C, H, W)."""
        return self.units.counted(self._measured(x, rows), rows)

    def _measured(self, x: Tensor, rows: Tensor) -> Measurements:
        """The same as the physics has it."""
        if self.unknowns is not None:
            return measure(x, self.physics, **self.unknowns.values(rows))
        if self.is_split:
            return self.apply(lambda: measure(x, self.physics), rows)
        measured = []
        for group in (rows // self.batch).unique().tolist():  # no image is twice in a group
            here = (rows // self.batch) == group
            whole = x.new_full((self.batch, *x.shape[1:]), 0.5).index_copy(0, rows[here] % self.batch, x[here])
            measured.append((here.nonzero()[:, 0], take(measure(whole, self.physics), rows[here] % self.batch)))
        order = torch.cat([places for places, _ in measured]).argsort()
        return take(join([part for _, part in measured]), order)

    def apply(self, function: Callable[[], Any], rows: Tensor, *, members: Members | None = None) -> Any:
        """
        What a function of the physics returns while it has the tensors of these rows' images.

        :param members: a copy of the physics that the function is of, whose noise model has its tensors, too.
        """
        tensors = self.tensors if members is None else {**self.tensors, **self.noise_tensors}
        if not tensors:
            return function()
        selected = {name: tensor[rows % self.batch] for name, tensor in tensors.items()}
        return functional_call(members or self.members, selected, (function,))

    def count_in(self, units: Units) -> None:
        """From now on, count measurements in other units."""
        self.units = units
        self.__dict__.pop("squared_norm", None)

    def only_reached(self, r: Measurements, rows: Tensor) -> list[Tensor]:
        """The real numbers of each part of measurements, (n, k), 0 where they do not change with the image."""
        return [real(t) * mask[rows % self.batch] for t, mask in zip(parts(r), self._reached, strict=True)]

    def reached_energy(self, r: Measurements, rows: Tensor) -> Tensor:
        """Squared 2-norm, for each row, of what lies in measurements that change with the image, (n,)."""
        return torch.stack([t.square().sum(1) for t in self.only_reached(r, rows)]).sum(0)

    @property
    def reached_parts(self) -> list[Tensor]:
        """Which measurements change with the image, (B, ...) for each part of them."""
        pairs = zip(parts(self._images_measured[0]), self._reached, strict=True)
        return [(m.view(*t.shape, 2).any(-1) if t.is_complex() else m.view(t.shape)) for t, m in pairs]

    @cached_property
    def squared_changes(self) -> list[Tensor]:
        """Mean square of what each measurement differs by between images of random pixels, (B, ...) for each part."""
        rows, changes = torch.arange(self.batch, device=self.like.device), []
        for k in range(PAIRS):
            x = self._random_images(1, seed=2 + k).repeat(self.batch, 1, 1, 1)
            change = self._measured(x, rows) - self._measured(1 - x, rows)
            changes.append([(t / self.units.scale).abs().square() / PAIRS for t in parts(change)])
        return [torch.stack(of_part).sum(0) for of_part in zip(*changes, strict=True)]

    @cached_property
    def is_linear(self) -> bool:
        """Whether A is linear, as the class of the physics tells, or a combination of two images."""
        if isinstance(self.physics, LinearPhysics):
            return True
        x = self._random_images(1, seed=0).repeat(self.batch, 1, 1, 1)
        try:
            one, other, both = (measure(v, self.physics) for v in (x, 1 - x, 2 * x - 3 * (1 - x)))
        except SHAPE_ERRORS as error:  # of an A that takes nothing outside of [0, 1]
            raise_out_of_memory(error)
            return False
        return agree(2 * one - 3 * other, both)

    @property
    def is_known_linear(self) -> bool:
        """Whether A is linear, and nothing of it is to be found."""
        return self.is_linear and self.unknowns is None

    @cached_property
    def squared_norm(self) -> Tensor | None:
        """``||A||^2`` for each image, (B,); None where A is not linear, or not known."""
        if not self.is_known_linear:
            return None
        rows = torch.arange(self.batch, device=self.like.device)
        return squared_norm(lambda x: self(x, rows), self.like)

    @property
    def squared_gain(self) -> Tensor:
        """What a pixel is worth in measurements, at most: ``||A||^2``, or that between two images where not linear."""
        return self._secant if self.squared_norm is None else self.squared_norm

    @property
    def _secant(self) -> Tensor:
        # 2 x - 1 has a variance of 1/3, in the pixels that are seen.
        one, other = self._pair
        smallest = torch.finfo(self.like.dtype).tiny ** 0.5
        return (3 * energy(one - other) / self._seen).clamp(min=smallest)

    @property
    def usual_energy(self) -> Tensor:
        """Squared 2-norm of measurements of two images of random pixels, the larger one, (B,)."""
        one, other = self._pair
        return torch.maximum(energy(one), energy(other))

    @property
    def largest(self) -> float:
        """By how much a measurement of these two images differs, as the physics has it, at most."""
        one, other = self._images_measured
        return max(real(t).abs().max().item() for t in parts(one - other))

    @property
    def _pair(self) -> tuple[Measurements, Measurements]:
        rows = torch.arange(self.batch, device=self.like.device)
        one, other = self._images_measured
        return self.units.counted(one, rows), self.units.counted(other, rows)

    def _look(self) -> None:
        """What changes with an image, and how much; refuses a physics without a gradient."""
        image = self._random_images(1, seed=0)
        x = image.repeat(self.batch, 1, 1, 1)
        words = "write it in torch, without detach(), .data, numpy() or changes of x in place"
        with torch.enable_grad():
            try:
                measured = measure(x.requires_grad_(), self.physics)
            except RuntimeError as error:  # without a gradient it has run before
                raise_out_of_memory(error)
                raise ValueError(f"physics.A cannot be differentiated ({error}); {words}") from error
            if not any(t.requires_grad for t in parts(measured)):
                raise ValueError(f"physics.A cannot be differentiated; {words}")
            other = measure(1 - x.detach(), self.physics)
            change = measured - other
            (gradient,) = torch.autograd.grad(energy(change).sum(), x)
        one, other = (like_parts(y, [t.detach() for t in parts(y)]) for y in (measured, other))
        again = measure(x.detach(), self.physics)
        if not agree(one, again):
            raise ValueError(
                "physics.A measures the same image twice and not alike; pass a physics whose A is the one that made y, "
                "with what it draws as a tensor of it, and its noise as noise_model"
            )
        self._reached = [(real(t.detach()) != 0) for t in parts(change)]
        if any(mask.any() for mask in self._reached) and not gradient.any():
            raise ValueError(
                "physics.A changes with the image but its gradient is zero, as that of rounding and comparisons is; "
                "use a smooth function in place of them"
            )
        #: an image of random pixels, as often as there are images, and what is measured of it, as the physics has it
        self.probe = x.detach(), one
        self._images_measured = one, other
        #: number of real measurements of an image that change with it, (B,)
        self.reached = torch.stack([mask.sum(1) for mask in self._reached]).sum(0).clamp(min=1)
        #: number of pixels that measurements change with, (B,)
        self._seen = (gradient != 0).flatten(1).sum(1).clamp(min=1)

    def _is_same_for_all(self) -> bool:
        """Whether each image of a batch, wherever it is in it, has the measurements that it has alone."""
        x, whole = self._different_images()
        try:
            rolled, alone = measure(x.roll(1, 0), self.physics), measure(x[:1], self.physics)
            return agree(_next(whole), rolled) and agree(take(whole, torch.arange(1)), alone)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            return False

    def _has_tensors_of_its_images(self) -> bool:
        """Whether what differs between the images are tensors of the physics, and then, which."""
        x, whole = self._different_images()
        self.tensors = self._tensors_of_images(of_noise=False)
        rows = torch.arange(self.batch, device=self.like.device)
        try:
            rolled = self.apply(lambda: measure(x.roll(1, 0), self.physics), rows.roll(1))
            alone = self.apply(lambda: measure(x[:1], self.physics), rows[:1])
            if self.tensors and agree(_next(whole), rolled) and agree(take(whole, rows[:1]), alone):
                return True
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
        self.tensors = {}
        return False

    def _tensors_of_images(self, *, of_noise: bool) -> dict[str, Tensor]:
        """Tensors of the physics, or of its noise model, that may be one for each of the images."""
        tensors = [*self.members.named_parameters(), *self.members.named_buffers()]
        return {
            name: t.detach()
            for name, t in tensors
            if t.ndim and len(t) == self.batch and ("noise_model" in name) == of_noise and t.device == self.like.device
        }

    def _different_images(self) -> tuple[Tensor, Measurements]:
        """At least two images, no two the same, and their measurements."""
        x = self._random_images(max(self.batch, 2), seed=1)
        try:
            return x, measure(x, self.physics)
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            return x[: self.batch], measure(x[: self.batch], self.physics)

    def _random_images(self, n: int, seed: int) -> Tensor:
        """Images of independent pixels in [0, 1], the same at every call."""
        rng = torch.Generator("cpu").manual_seed(seed)
        return torch.rand((n, *self.like.shape[1:]), generator=rng, device="cpu", dtype=torch.float32).to(self.like)


def _next(y: Measurements) -> Measurements:
    """Those of each image where those of the one before it were."""
    return take(y, torch.arange(len(parts(y)[0])).roll(1))
