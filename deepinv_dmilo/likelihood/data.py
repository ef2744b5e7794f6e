"""Data terms: how far the measurements of images are from those that were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from deepinv.optim import DataFidelity, PoissonLikelihood
from deepinv.physics import Physics, StackedPhysics
from torch import Tensor

from deepinv_dmilo.likelihood.forward import Operator
from deepinv_dmilo.likelihood.measurements import Measurements, as_input, energy, mean_energy, raise_out_of_memory, take

LEAST_PHOTONS = 0.1  # of a measurement that the logarithm of a Poisson likelihood takes: ours


class Fit(Protocol):
    """What the output of a layer is compared with."""

    def __call__(self, output: Tensor, /) -> Tensor:
        """The misfit of each of n outputs, (n, C, H, W) -> (n,), differentiable."""

    def select(self, rows: Tensor) -> Fit:
        """The same for some of the rows."""


@dataclass(frozen=True)
class Data:
    """Measurements y of some rows of images, and the operator that made them."""

    y: Measurements  # (n, ...)
    operator: Operator
    rows: Tensor  # (n,) which of the S * B they are

    def select(self, rows: Tensor) -> Data:
        """Some of the rows."""
        return Data(take(self.y, rows), self.operator, self.rows[rows])

    def residual(self, x: Tensor) -> Measurements:
        """A(x) - y of images in [0, 1], (n, C, H, W)."""
        return self.operator(x, self.rows) - self.y

    def energy(self, x: Tensor) -> Tensor:
        """``||A(x) - y||^2``, (n,)."""
        return energy(self.residual(x))

    def residual_as_made(self, x: Tensor) -> Measurements:
        """The same as the physics has it, whatever the operator counts in."""
        return self.operator.units.as_made(self.residual(x), self.rows)

    def energy_as_made(self, x: Tensor) -> Tensor:
        """``||A(x) - y||^2`` of measurements as the physics has them, (n,)."""
        return energy(self.residual_as_made(x))

    def rms(self, x: Tensor) -> Tensor:
        """Root mean square of A(x) - y, as the physics has it, (n,); at a perfect fit the noise level."""
        units = self.operator.units  # the scale last: the squares of a small unit are none
        return units.scale * mean_energy(replace(units, scale=1.0).as_made(self.residual(x), self.rows)).sqrt()


@dataclass(frozen=True)
class SquaresFit:
    """``weight ||A(x) - y||^2`` of images x in [0, 1]."""

    data: Data
    weight: Tensor  # (n,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * self.data.energy(x)

    def select(self, rows: Tensor) -> SquaresFit:
        return replace(self, data=self.data.select(rows), weight=self.weight[rows])


@dataclass(frozen=True)
class SquaresAsMade(SquaresFit):
    """The same of measurements as the physics has them."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * self.data.energy_as_made(x)


@dataclass(frozen=True)
class FidelityFit:
    """A data fidelity of deepinv, as the negative log-likelihood of images x in [0, 1]."""

    data: Data
    fidelity: DataFidelity

    def __call__(self, x: Tensor) -> Tensor:
        operator, rows = self.data.operator, self.data.rows
        y = operator.units.as_made(self.data.y, rows)
        members = (self.fidelity, *getattr(self.fidelity, "data_fidelity_list", ()))
        if len(x) > 1 and any(isinstance(member, PoissonLikelihood) for member in members):
            # deepinv 0.5's adds one of its two terms over the whole batch
            each = torch.arange(len(x), device=x.device).split(1)
            return torch.cat([self.select(row)(x[row]) for row in each])
        physics = operator.physics
        if isinstance(physics, StackedPhysics):
            stack: Any = physics
            if len(members) > 1:
                stack = [_floored(one, member.A) for one, member in zip(members[1:], physics, strict=True)]
            return operator.apply(lambda: self.fidelity(x, y, stack), rows)
        is_poisson = isinstance(self.fidelity, PoissonLikelihood)
        if operator.is_split and operator.unknowns is None and not is_poisson:
            return operator.apply(lambda: self.fidelity(as_input(x, physics), y, physics), rows)
        return self.fidelity(
            x, y, _floored(self.fidelity, lambda x, **_: operator.units.as_made(operator(x, rows), rows))
        )

    def select(self, rows: Tensor) -> FidelityFit:
        return FidelityFit(self.data.select(rows), self.fidelity)


def _floored(fidelity: DataFidelity, operator: Callable[..., Measurements]) -> Physics:
    """A as a physics; for deepinv's Poisson likelihood, which takes logarithms, of a tenth of a photon at least."""
    if not isinstance(fidelity, PoissonLikelihood):
        return Physics(A=operator)
    darkest = LEAST_PHOTONS * float(fidelity.gain)
    return Physics(A=lambda x, **_: operator(x).clamp(min=darkest))  # type: ignore[union-attr]


def check_fidelity(fidelity: DataFidelity, data: Data, x: Tensor) -> None:
    """Refuse a data fidelity that is not one finite value for each image, whatever the others are."""
    if isinstance(data.operator.physics, StackedPhysics):
        if not data.operator.is_split:
            raise ValueError(
                "data_fidelity of a stack that hides what differs between its images; leave data_fidelity out"
            )
        if data.operator.unknowns is not None:
            raise ValueError("data_fidelity of a stack does not go with unknown parameters; leave data_fidelity out")
    name, twice = type(fidelity).__name__, torch.zeros(2, dtype=torch.long, device=x.device)
    try:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            one, two = (FidelityFit(data, fidelity).select(rows)(x[rows]) for rows in (twice[:1], twice))
        shapes = [tuple(one.shape), tuple(two.shape)]
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise_out_of_memory(error)
        raise ValueError(
            f"data_fidelity {name} cannot be called as fidelity(x, y, physics): {error}; pass one that takes what the "
            "physics measures"
        ) from error
    if not two.requires_grad:
        raise ValueError(f"data_fidelity {name} has no gradient; pass one that is written in torch, such as L2(sigma)")
    if shapes != [(1,), (2,)]:
        raise ValueError(
            f"data_fidelity {name} gives values of shape {tuple(two.shape)} for two images; pass one that gives a "
            "value for each image, (B,)"
        )
    if not torch.isfinite(two).all():
        raise ValueError(f"data_fidelity {name} is {two[0].item()} for a grey image; check that y is what it takes")
    if not torch.allclose(two, one.expand(2), rtol=1e-4):
        raise ValueError(
            f"data_fidelity {name} is {two.tolist()} for an image given twice and {one.tolist()} for it alone: it "
            "mixes the images of a batch; pass one that gives a value for each image"
        )
