"""The forward model of a batch of images: how it takes some rows of them is found once, by probing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor
from torch.func import functional_call

from deepinv_dmilo.likelihood.measurements import Measurements, energy, join, measure, parts, real, take
from deepinv_dmilo.likelihood.members import Members
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.probe import Probe, random_images
from deepinv_dmilo.likelihood.rounding import agree
from deepinv_dmilo.likelihood.units import Units
from deepinv_dmilo.optim.descent import squared_norm
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory

PAIRS = 8  # pairs of random images that show how much each measurement changes with the image: ours


class ForwardModel:
    """
    A(x) for rows of reconstructions; row r belongs to image r mod B. Subclasses write how A takes some of the rows.

    :param deepinv.physics.Physics physics: the physics, differentiable.
    :param torch.Tensor like: a tensor of the type, device and shape (B, C, H, W) of the images in [0, 1].
    :param Probe probe: what random images showed of the physics.
    :param Nuisance nuisance: its unknown parameters, if any.

    Measurements, and all that is known of them, are in ``units``: at first those of the physics.
    """

    def __init__(self, physics: Physics, like: Tensor, probe: Probe, nuisance: Nuisance | None = None) -> None:
        self.physics, self.like, self.probe, self.nuisance = physics, like, probe, nuisance
        self.batch = len(like)
        self.members = Members(physics)
        self.units = Units()
        #: warnings that were given
        self.warned: set[str] = set()
        #: tensors of the physics that are one for each image, by name
        self.tensors: dict[str, Tensor] = {}
        #: those of the noise model, and whether it makes noise of one image alone; None: ``settle`` has to find it
        self.noise_tensors: dict[str, Tensor] = {}
        self.noise_is_split: bool | None = None

    def __call__(self, x: Tensor, rows: Tensor) -> Measurements:
        """A(x) of some rows of images in [0, 1], (n, C, H, W), in ``units``."""
        return self.units.counted(self.measured(x, rows), rows)

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        """The same as the physics has it."""
        raise NotImplementedError

    #: whether some rows can be measured alone
    is_split = True

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

    @property
    def images(self) -> Tensor:
        """The rows of the first reconstruction of each image, (B,)."""
        return torch.arange(self.batch, device=self.like.device)

    @property
    def observed(self) -> Tensor:
        """Number of real measurements of an image that change with it, (B,)."""
        return torch.stack([mask.sum(1) for mask in self.probe.observed]).sum(0).clamp(min=1)

    @property
    def fully_observed(self) -> Tensor:
        """Whether all measurements of an image change with it, (B,): none is masked."""
        return torch.stack([mask.all(1) for mask in self.probe.observed]).all(0)

    def only_observed(self, r: Measurements, rows: Tensor) -> list[Tensor]:
        """The real numbers of each part of measurements, (n, k), 0 where they do not change with the image."""
        return [real(t) * mask[rows % self.batch] for t, mask in zip(parts(r), self.probe.observed, strict=True)]

    def observed_energy(self, r: Measurements, rows: Tensor) -> Tensor:
        """Squared 2-norm, for each row, of what lies in measurements that change with the image, (n,)."""
        return torch.stack([t.square().sum(1) for t in self.only_observed(r, rows)]).sum(0)

    @property
    def observed_parts(self) -> list[Tensor]:
        """Which measurements change with the image, (B, ...) for each part of them."""
        pairs = zip(parts(self.probe.measured[0]), self.probe.observed, strict=True)
        return [(m.view(*t.shape, 2).any(-1) if t.is_complex() else m.view(t.shape)) for t, m in pairs]

    @cached_property
    def squared_changes(self) -> list[Tensor]:
        """Mean square of what each measurement differs by between images of random pixels, (B, ...) for each part."""
        changes = []
        for k in range(PAIRS):
            x = random_images(self.like, 1, seed=2 + k).repeat(self.batch, 1, 1, 1)
            change = self.measured(x, self.images) - self.measured(1 - x, self.images)
            changes.append([(t / self.units.scale).abs().square() / PAIRS for t in parts(change)])
        return [torch.stack(of_part).sum(0) for of_part in zip(*changes, strict=True)]

    @cached_property
    def is_linear(self) -> bool:
        """Whether A is linear, as the class of the physics tells, or a combination of two images."""
        if isinstance(self.physics, LinearPhysics):
            return True
        x = random_images(self.like, 1, seed=0).repeat(self.batch, 1, 1, 1)
        try:
            one, other, both = (measure(v, self.physics) for v in (x, 1 - x, 2 * x - 3 * (1 - x)))
        except SHAPE_ERRORS as error:  # of an A that takes nothing outside of [0, 1]
            raise_out_of_memory(error)
            return False
        return agree(2 * one - 3 * other, both)

    @property
    def is_known_linear(self) -> bool:
        """Whether A is linear, and nothing of it is to be found."""
        return self.is_linear and self.nuisance is None

    @cached_property
    def squared_norm(self) -> Tensor:
        """``||A||^2`` for each image, (B,); where A is not linear, or not known, that between two random images."""
        if self.is_known_linear:
            return squared_norm(lambda x: energy(self(x, self.images)), self.like)
        # 2 x - 1 has a variance of 1/3, in the pixels that are seen.
        one, other = (self.units.counted(y, self.images) for y in self.probe.measured)
        smallest = torch.finfo(self.like.dtype).tiny ** 0.5
        return (3 * energy(one - other) / self.probe.seen).clamp(min=smallest)

    @property
    def usual_energy(self) -> Tensor:
        """Squared 2-norm of measurements of two images of random pixels, the larger one, (B,)."""
        one, other = (energy(self.units.counted(y, self.images)) for y in self.probe.measured)
        return torch.maximum(one, other)


class SharedForward(ForwardModel):
    """One operator for all images; with unknown parameters, those of each row."""

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        parameters = {} if self.nuisance is None else self.nuisance.values(rows)
        return measure(x, self.physics, **parameters)


class PerImageForward(ForwardModel):
    """An operator with tensors of each image (kernels, masks), which is given those of the rows."""

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        return self.apply(lambda: measure(x, self.physics), rows)


class WholeBatchForward(ForwardModel):
    """An operator that hides what differs between the images: it sees whole batches, mid-grey in rows not asked for."""

    is_split = False

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        measured = []
        for group in (rows // self.batch).unique().tolist():  # no image is twice in a group
            here = (rows // self.batch) == group
            whole = x.new_full((self.batch, *x.shape[1:]), 0.5).index_copy(0, rows[here] % self.batch, x[here])
            measured.append((here.nonzero()[:, 0], take(measure(whole, self.physics), rows[here] % self.batch)))
        order = torch.cat([places for places, _ in measured]).argsort()
        return take(join([part for _, part in measured]), order)


def forward_model(
    physics: Physics, shape: tuple[int, ...], like: Tensor, *, single: bool, nuisance: Nuisance | None = None
) -> ForwardModel:
    """
    The forward model of B images, of the class that goes with the physics.

    :param deepinv.physics.Physics physics: the physics, differentiable.
    :param tuple shape: (B, C, H, W) of the images in [0, 1].
    :param torch.Tensor like: a tensor of the type and device to work in.
    :param bool single: there is one row in all, so that nothing need be known about batches.
    :param Nuisance nuisance: parameters of the physics that are not known, if any.
    :raises ValueError: it has no gradient, or measures the same image twice and not alike.
    """
    physics = physics if nuisance is None else nuisance.physics
    like = like.new_zeros(()).expand(shape)
    if nuisance is not None:
        nuisance.check(like)
    arguments = physics, like, Probe.of(physics, like), nuisance
    forward: ForwardModel = SharedForward(*arguments)
    forward.noise_tensors = {} if single else _tensors_of_images(forward, of_noise=True)
    forward.noise_is_split = True if single else None
    if single or _is_same_for_all(physics, like):
        return forward
    if nuisance is not None:
        raise ValueError(
            "unknown goes with a physics that is the same for all images but for what is unknown; reconstruct the "
            "images one by one"
        )
    per_image = PerImageForward(*arguments)
    per_image.tensors = _tensors_of_images(forward, of_noise=False)
    found = per_image if _is_of_its_images(per_image) else WholeBatchForward(*arguments)
    found.noise_tensors = forward.noise_tensors
    return found


def _is_same_for_all(physics: Physics, like: Tensor) -> bool:
    """Whether each image of a batch, wherever it is in it, has the measurements that it has alone."""
    x, whole = _different_images(physics, like)
    try:
        rolled, alone = measure(x.roll(1, 0), physics), measure(x[:1], physics)
        return agree(_next(whole), rolled) and agree(take(whole, torch.arange(1)), alone)
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False


def _is_of_its_images(forward: PerImageForward) -> bool:
    """Whether what differs between the images are its tensors."""
    x, whole = _different_images(forward.physics, forward.like)
    try:
        rolled = forward.measured(x.roll(1, 0), forward.images.roll(1))
        alone = forward.measured(x[:1], forward.images[:1])
        return bool(forward.tensors) and agree(_next(whole), rolled) and agree(take(whole, forward.images[:1]), alone)
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False


def _tensors_of_images(forward: ForwardModel, *, of_noise: bool) -> dict[str, Tensor]:
    """Tensors of the physics, or of its noise model, that may be one for each of the images."""
    tensors = [*forward.members.named_parameters(), *forward.members.named_buffers()]
    batch, device = forward.batch, forward.like.device
    return {
        name: t.detach()
        for name, t in tensors
        if t.ndim and len(t) == batch and ("noise_model" in name) == of_noise and t.device == device
    }


def _different_images(physics: Physics, like: Tensor) -> tuple[Tensor, Measurements]:
    """At least two images, no two the same, and their measurements."""
    x = random_images(like, max(len(like), 2), seed=1)
    try:
        return x, measure(x, physics)
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return x[: len(like)], measure(x[: len(like)], physics)


def _next(y: Measurements) -> Measurements:
    """Those of each image where those of the one before it were."""
    return take(y, torch.arange(len(parts(y)[0])).roll(1))
