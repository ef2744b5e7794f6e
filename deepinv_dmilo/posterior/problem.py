"""The optimisation problem of one layer: its latent, and its sparse deviation, given a target for its output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.profile import JointLikelihood
from deepinv_dmilo.optim.solvers import Variables
from deepinv_dmilo.priors.prior import Level, Prior


class Target(Protocol):
    """The data term of a layer: the measurements, or the latent of the next layer."""

    def __call__(self, output: Tensor, /) -> Tensor:
        """The misfit of each output, (n, C, H, W) -> (n,), differentiable."""

    def select(self, rows: Tensor) -> Target:
        """The data term of some of the rows."""


@dataclass(frozen=True)
class LatentTerm:
    """The data term of an inner layer: mean squared distance to the latent of the next layer."""

    latent: Tensor  # (n, C, H, W)

    def __call__(self, output: Tensor) -> Tensor:
        return (output - self.latent).square().flatten(1).mean(1)

    def select(self, rows: Tensor) -> LatentTerm:
        return LatentTerm(self.latent[rows])


@dataclass(frozen=True)
class Problem:
    r"""
    The objective of one layer g, for each row, minimised over its input :math:`z` and its deviation :math:`\nu`:

    .. math::

        \mathrm{target}(g(z) + \nu) + p \, \|z - c\|^2 + \lambda \, \|\nu\|_1.

    The output of the last layer is decoded to images in [0, 1] before it is compared, and the energy of the prior is
    added.
    """

    prior: Prior
    levels: tuple[Level, ...]  # from the input to the output; more than two: a chain of layers
    target: Target
    penalty: float  # p
    sparsity: float = 0.0  # lambda
    center: Tensor | None = None  # c, (n, C, H, W); None: 0
    gives_image: bool = True  # whether it is the last layer
    energy: float = 1.0  # weight of the energy of the prior
    unit: float | None = None  # scale of the objective for the solver's tolerance; None: the objective itself
    micro_batch: int | None = None  # rows per network pass
    name: str = "all layers"  # for messages

    def value(self, v: Variables) -> Tensor:
        """The objective of each row, (n,)."""
        z = output = v["latent"]
        for a, b in pairwise(self.levels):
            output = self.prior.step(output, a, b)
        offset = z if self.center is None else z - self.center
        value = self.penalty * offset.square().flatten(1).sum(1)
        if "deviation" in v:
            output = output + v["deviation"]
            value = value + self.sparsity * v["deviation"].abs().flatten(1).sum(1)
        if self.gives_image:
            output = self.prior.decode(output)
            value = value + self.energy * self.prior.energy(output)
        if isinstance(self.target, JointLikelihood):
            return value + self.target(output, v["unknown"])
        return value + self.target(output)

    def select(self, rows: Tensor) -> Problem:
        """The problem of some of the rows."""
        center = None if self.center is None else self.center[rows]
        return replace(self, prior=self.prior.select(rows), target=self.target.select(rows), center=center)

    def gradients(self, v: Variables) -> tuple[Tensor, Variables]:
        """The objective of each row, (n,), and its gradients; one pass of the network."""
        rows = torch.arange(len(v["latent"]), device=v["latent"].device).split(self.micro_batch or len(v["latent"]))
        if len(rows) == 1:
            return self._gradients(v)
        chunks = [self.select(part)._gradients({name: t[part] for name, t in v.items()}) for part in rows]
        values, gradients = zip(*chunks, strict=True)
        return torch.cat(values), {name: torch.cat([g[name] for g in gradients]) for name in v}

    def _gradients(self, v: Variables) -> tuple[Tensor, Variables]:
        with torch.enable_grad():
            v = {name: t.detach().requires_grad_() for name, t in v.items()}
            value = self.value(v)
            gradients = torch.autograd.grad(value.sum(), tuple(v.values()))
        return value.detach(), dict(zip(v, gradients, strict=True))
