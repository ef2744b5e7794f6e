"""The likelihood of images when the physics has unknown parameters: its minimum over them, for each image."""

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
class _OfParameters:
    """The likelihood at fixed images as a function of the raw parameters, (n, d)."""

    inner: Likelihood
    nuisance: Nuisance
    x: Tensor

    def __call__(self, flat: Tensor) -> Tensor:
        with self.nuisance.at(self.inner.rows, unpack(flat, self.nuisance.raw)):
            return self.inner(self.x)

    def gradients(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(self, flat)

    def select(self, rows: Tensor) -> _OfParameters:
        return _OfParameters(self.inner.select(rows), self.nuisance, self.x[rows])
