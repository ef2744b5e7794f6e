"""Data terms: how far the measurements of images are from those that were made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from deepinv.optim import DataFidelity, PoissonLikelihood
from deepinv.physics import Physics, StackedPhysics
from torch import Tensor

from deepinv_dmilo.core.measurements import Measurements, energy, mean_energy, raise_out_of_memory, take
from deepinv_dmilo.core.operator import Operator

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

    def rms(self, x: Tensor) -> Tensor:
        """Root mean square of A(x) - y over the measurements, (n,); at a perfect fit the noise level."""
        return mean_energy(self.residual(x)).sqrt()


@dataclass(frozen=True)
class SquaresFit:
    """``weight ||A(x) - y||^2`` of images x in [0, 1]."""

    data: Data
    weight: Tensor  # (n,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * self.data.energy(x)

    def select(self, rows: Tensor) -> SquaresFit:
        return SquaresFit(self.data.select(rows), self.weight[rows])


@dataclass(frozen=True)
class FidelityFit:
    """A data fidelity of deepinv, as the negative log-likelihood of images x in [0, 1]."""

    data: Data
    fidelity: DataFidelity

    def __call__(self, x: Tensor) -> Tensor:
        operator, y = self.data.operator, self.data.y
        if isinstance(self.fidelity, PoissonLikelihood):
            # deepinv 0.5's adds one of its two terms over the whole batch, and takes logarithms of what is below 0
            if len(x) > 1:
                each = torch.arange(len(x), device=x.device).split(1)
                return torch.cat([self.select(row)(x[row]) for row in each])
            darkest = LEAST_PHOTONS * float(self.fidelity.gain)
            return self.fidelity(x, y, Physics(A=lambda x, **_: operator(x, self.data.rows).clamp(min=darkest)))
        if isinstance(operator.physics, StackedPhysics):  # whose fidelity asks for its members
            return operator.apply(lambda: self.fidelity(x, y, operator.physics), self.data.rows)
        return self.fidelity(x, y, Physics(A=lambda x, **_: operator(x, self.data.rows)))

    def select(self, rows: Tensor) -> FidelityFit:
        return FidelityFit(self.data.select(rows), self.fidelity)


def check_fidelity(fidelity: DataFidelity, data: Data, x: Tensor) -> None:
    """Refuse a data fidelity that is not one finite value for each image, whatever the others are."""
    if isinstance(data.operator.physics, StackedPhysics) and not data.operator.is_split:
        raise ValueError("data_fidelity of a stack that hides what differs between its images; leave data_fidelity out")
    name, twice = type(fidelity).__name__, torch.zeros(2, dtype=torch.long, device=x.device)
    try:
        one, two = (FidelityFit(data, fidelity).select(rows)(x[rows]) for rows in (twice[:1], twice))
    except (TypeError, AttributeError, RuntimeError) as error:
        raise_out_of_memory(error)
        raise ValueError(f"data_fidelity {name} cannot be called as fidelity(x, y, physics): {error}") from error
    if one.shape != (1,) or two.shape != (2,):
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
