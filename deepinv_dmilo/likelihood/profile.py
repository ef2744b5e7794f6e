"""The likelihood of images when the physics has unknown parameters: its minimum over them, or jointly in both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.optim import lbfgs
from deepinv_dmilo.optim.descent import value_and_gradient
from deepinv_dmilo.utils.rows import unpack

_STEPS, _TOLERANCE = 30, 1e-2  # of L-BFGS for an image, started at the last parameters: ours


@dataclass(frozen=True)
class ProfileLikelihood:
    r"""
    The profile likelihood :math:`\min_w -\log p(y | x, w)` over the nuisance parameters w.

    Its gradient is that at the best parameters, held fixed (variable projection, :footcite:t:`golub2003separable`).
    The search starts from the parameters that it found last, which ``nuisance`` stores.
    """

    inner: Likelihood  # at the current parameters
    nuisance: Nuisance

    def __call__(self, x: Tensor) -> Tensor:
        """The values of images in [0, 1], (n, C, H, W) -> (n,)."""
        rows, nuisance = self.inner.rows, self.nuisance
        start = nuisance.packed(rows)
        objective = _OfParameters(self.inner, nuisance, x.detach())
        best, value, _ = lbfgs.minimize(objective, start, steps=_STEPS, tolerance=_TOLERANCE, unit=start.shape[1] / 2)
        nuisance.keep(rows, torch.where(torch.isfinite(value)[:, None], best, start))
        return self.inner(x)

    def select(self, rows: Tensor) -> ProfileLikelihood:
        """The profile likelihood of some of the rows."""
        return ProfileLikelihood(self.inner.select(rows), self.nuisance)


@dataclass(frozen=True)
class JointLikelihood:
    """-log p(y | x, w) as a function of images x and raw nuisance parameters w, which a solver optimises together."""

    inner: Likelihood
    nuisance: Nuisance

    def __call__(self, x: Tensor, unknown: Tensor | None = None) -> Tensor:
        """The values of images in [0, 1], (n, C, H, W), and raw parameters, (n, d), None: those stored -> (n,)."""
        unknown = self.unknown if unknown is None else unknown
        with self.nuisance.at(self.inner.rows, unpack(unknown, self.nuisance.raw)):
            return self.inner(x)

    @property
    def unknown(self) -> Tensor:
        """The raw parameters that ``nuisance`` stores, (n, d)."""
        return self.nuisance.packed(self.inner.rows)

    def keep(self, unknown: Tensor) -> None:
        """Store raw parameters, (n, d)."""
        self.nuisance.keep(self.inner.rows, unknown)

    def select(self, rows: Tensor) -> JointLikelihood:
        """The likelihood of some of the rows."""
        return JointLikelihood(self.inner.select(rows), self.nuisance)


@dataclass(frozen=True)
class _OfParameters:
    """The likelihood at fixed images as a function of the raw parameters, (n, d)."""

    inner: Likelihood
    nuisance: Nuisance
    x: Tensor

    def __call__(self, flat: Tensor) -> Tensor:
        return JointLikelihood(self.inner, self.nuisance)(self.x, flat)

    def gradients(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(self, flat)

    def select(self, rows: Tensor) -> _OfParameters:
        return _OfParameters(self.inner.select(rows), self.nuisance, self.x[rows])
