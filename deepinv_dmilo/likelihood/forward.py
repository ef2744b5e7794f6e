"""The forward model of a batch of images; how it is applied to some of them is found once, by probing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor, nn
from torch.func import functional_call

from deepinv_dmilo.likelihood.measurements import (
    Measurements,
    Units,
    agree,
    energy,
    join,
    measure,
    operators,
    parts,
    real,
    take,
)
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.probe import Probe, random_images
from deepinv_dmilo.optim.descent import squared_norm
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory

PAIRS = 8  # random image pairs for the sensitivity of each measurement: ours


class Members(nn.Module):
    """A physics and the members of its stacks as submodules, so that ``functional_call`` can replace their tensors."""

    def __init__(self, physics: Physics) -> None:
        super().__init__()
        self.members = nn.ModuleList(operators(physics))

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class ForwardModel:
    """
    A(x) for rows of reconstructions; row r belongs to image r mod B. Subclasses apply A to some of the rows.

    Measurements, and all quantities derived from them, are in ``units``: at first those of the physics.

    :param deepinv.physics.Physics physics: the physics, differentiable.
    :param torch.Tensor like: a tensor of the dtype, device and shape (B, C, H, W) of the images in [0, 1].
    :param probe: properties of the physics found from random images.
    :param Nuisance nuisance: its unknown parameters, if any.
    """

    #: whether A can be applied to some of the images alone
    is_split = True

    def __init__(self, physics: Physics, like: Tensor, probe: Probe, nuisance: Nuisance | None = None) -> None:
        self.physics, self.like, self.probe, self.nuisance = physics, like, probe, nuisance
        self.batch = len(like)
        self.members = Members(physics)
        self.units = Units()
        #: warnings issued so far
        self.warned: set[str] = set()
        #: tensors of the physics with one row for each image, by name
        self.tensors: dict[str, Tensor] = {}
        #: those of the noise model, and whether it can draw noise for some of the images; None: not known yet
        self.noise_tensors: dict[str, Tensor] = {}
        self.noise_is_split: bool | None = None

    def __call__(self, x: Tensor, rows: Tensor) -> Measurements:
        """A(x) for some rows of images in [0, 1], (n, C, H, W), in ``units``."""
        return self.units.normalized(self.measured(x, rows), rows)

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        """A(x) in the units of the physics."""
        raise NotImplementedError

    def apply(self, function: Callable[[], Any], rows: Tensor, *, members: Members | None = None) -> Any:
        """
        The result of a function of the physics while the physics holds the tensors of some rows.

        :param members: a copy of the physics that the function uses, noise model included; None: the physics itself.
        """
        tensors = self.tensors if members is None else {**self.tensors, **self.noise_tensors}
        if not tensors:
            return function()
        selected = {name: tensor[rows % self.batch] for name, tensor in tensors.items()}
        return functional_call(members or self.members, selected, (function,))

    def set_units(self, units: Units) -> None:
        """Change the units of measurements."""
        self.units = units
        self.__dict__.pop("squared_norm", None)

    @property
    def images(self) -> Tensor:
        """The rows of the first sample of each image, (B,)."""
        return torch.arange(self.batch, device=self.like.device)

    @property
    def observed(self) -> Tensor:
        """Number of real measurements that depend on the image, (B,)."""
        return torch.stack([mask.sum(1) for mask in self.probe.observed]).sum(0).clamp(min=1)

    @property
    def fully_observed(self) -> Tensor:
        """Whether all measurements of an image depend on it, (B,): none is masked."""
        return torch.stack([mask.all(1) for mask in self.probe.observed]).all(0)

    def only_observed(self, r: Measurements, rows: Tensor) -> list[Tensor]:
        """The real numbers of each part of measurements, (n, k), with 0 where they do not depend on the image."""
        return [real(t) * mask[rows % self.batch] for t, mask in zip(parts(r), self.probe.observed, strict=True)]

    def observed_energy(self, r: Measurements, rows: Tensor) -> Tensor:
        """Squared 2-norm over the measurements that depend on the image, (n,)."""
        return torch.stack([t.square().sum(1) for t in self.only_observed(r, rows)]).sum(0)

    @property
    def observed_parts(self) -> list[Tensor]:
        """Masks of the measurements that depend on the image, (B, ...) for each part."""
        pairs = zip(parts(self.probe.measured[0]), self.probe.observed, strict=True)
        return [(m.view(*t.shape, 2).any(-1) if t.is_complex() else m.view(t.shape)) for t, m in pairs]

    @cached_property
    def squared_changes(self) -> list[Tensor]:
        """Mean squared difference of each measurement between random images, (B, ...) for each part."""
        changes = []
        for k in range(PAIRS):
            x = random_images(self.like, 1, seed=2 + k).repeat(self.batch, 1, 1, 1)
            change = self.measured(x, self.images) - self.measured(1 - x, self.images)
            changes.append([(t / self.units.scale).abs().square() / PAIRS for t in parts(change)])
        return [torch.stack(of_part).sum(0) for of_part in zip(*changes, strict=True)]

    @cached_property
    def is_linear(self) -> bool:
        """Whether A is linear, by the class of the physics or by a linear combination of two images."""
        if isinstance(self.physics, LinearPhysics):
            return True
        x = random_images(self.like, 1, seed=0).repeat(self.batch, 1, 1, 1)
        try:
            one, other, both = (measure(v, self.physics) for v in (x, 1 - x, 2 * x - 3 * (1 - x)))
        except SHAPE_ERRORS as error:  # an A that is not defined outside of [0, 1]
            raise_out_of_memory(error)
            return False
        return agree(2 * one - 3 * other, both)

    @property
    def is_known_linear(self) -> bool:
        """Whether A is linear and has no unknown parameters."""
        return self.is_linear and self.nuisance is None

    @cached_property
    def squared_norm(self) -> Tensor:
        """``||A||^2``, (B,); for a nonlinear or unknown A, the squared gain between two random images."""
        if self.is_known_linear:
            return squared_norm(lambda x: energy(self(x, self.images)), self.like)
        one, other = (self.units.normalized(y, self.images) for y in self.probe.measured)
        smallest = torch.finfo(self.like.dtype).tiny ** 0.5
        # The images differ by 2 x - 1, of variance 1/3 in each observed pixel.
        return (3 * energy(one - other) / self.probe.observed_pixels).clamp(min=smallest)

    @property
    def usual_energy(self) -> Tensor:
        """The larger squared 2-norm of the measurements of two random images, (B,)."""
        one, other = (energy(self.units.normalized(y, self.images)) for y in self.probe.measured)
        return torch.maximum(one, other)


class SharedForward(ForwardModel):
    """One operator for all images; its unknown parameters, if any, are those of each row."""

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        parameters = {} if self.nuisance is None else self.nuisance.values(rows)
        return measure(x, self.physics, **parameters)


class PerImageForward(ForwardModel):
    """An operator with tensors for each image (kernels, masks), which are replaced by those of the rows."""

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        return self.apply(lambda: measure(x, self.physics), rows)


class WholeBatchForward(ForwardModel):
    """An operator that differs between images in a hidden way: it gets whole batches, with grey in unused rows."""

    is_split = False

    def measured(self, x: Tensor, rows: Tensor) -> Measurements:
        measured = []
        for sample in (rows // self.batch).unique().tolist():  # each image occurs once in a sample
            here = (rows // self.batch) == sample
            whole = x.new_full((self.batch, *x.shape[1:]), 0.5).index_copy(0, rows[here] % self.batch, x[here])
            measured.append((here.nonzero()[:, 0], take(measure(whole, self.physics), rows[here] % self.batch)))
        order = torch.cat([places for places, _ in measured]).argsort()
        return take(join([part for _, part in measured]), order)


def forward_model(
    physics: Physics, shape: tuple[int, ...], like: Tensor, *, single: bool, nuisance: Nuisance | None = None
) -> ForwardModel:
    """
    The forward model of B images, of the class that fits the physics.

    :param deepinv.physics.Physics physics: the physics, differentiable.
    :param tuple shape: (B, C, H, W) of the images in [0, 1].
    :param torch.Tensor like: a tensor of the dtype and device to work in.
    :param bool single: there is one row in all, so that batches need not be probed.
    :param Nuisance nuisance: unknown parameters of the physics, if any.
    :raises ValueError: A has no gradient, or gives two results for the same image.
    """
    physics = physics if nuisance is None else nuisance.physics
    like = like.new_zeros(()).expand(shape)
    if nuisance is not None:
        nuisance.check(like)
    arguments = physics, like, Probe.of(physics, like), nuisance
    forward: ForwardModel = SharedForward(*arguments)
    forward.noise_tensors = {} if single else _tensors_of_images(forward, of_noise=True)
    forward.noise_is_split = True if single else None
    if single or _is_split(forward, lambda x, _: measure(x, physics)):
        return forward
    if nuisance is not None:
        raise ValueError(
            "unknown needs a physics that is the same for all images except for the unknown parameters; reconstruct "
            "the images one by one"
        )
    per_image = PerImageForward(*arguments)
    per_image.tensors = _tensors_of_images(forward, of_noise=False)
    is_split = bool(per_image.tensors) and _is_split(per_image, per_image.measured)
    found = per_image if is_split else WholeBatchForward(*arguments)
    found.noise_tensors = forward.noise_tensors
    return found


def _is_split(forward: ForwardModel, measured: Callable[[Tensor, Tensor], Measurements]) -> bool:
    """Whether ``measured(x, rows)`` gives images the measurements they have in the batch, in any order and alone."""
    x, rows = random_images(forward.like, max(forward.batch, 2), seed=1), forward.images
    try:
        whole = measure(x, forward.physics)
    except SHAPE_ERRORS as error:  # a physics for one image
        raise_out_of_memory(error)
        x = x[: forward.batch]
        whole = measure(x, forward.physics)
    try:
        rolled, alone = measured(x.roll(1, 0), rows.roll(1)), measured(x[:1], rows[:1])
        order = torch.arange(len(parts(whole)[0])).roll(1)
        return agree(take(whole, order), rolled) and agree(take(whole, rows[:1]), alone)
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False


def _tensors_of_images(forward: ForwardModel, *, of_noise: bool) -> dict[str, Tensor]:
    """Tensors of the physics, or of its noise model, that may have one row for each image."""
    tensors = [*forward.members.named_parameters(), *forward.members.named_buffers()]
    batch, device = forward.batch, forward.like.device
    return {
        name: t.detach()
        for name, t in tensors
        if t.ndim and len(t) == batch and ("noise_model" in name) == of_noise and t.device == device
    }
