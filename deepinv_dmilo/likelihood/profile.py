"""The likelihood of images where parameters of the physics are unknown: at the best parameters for each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.optim import lbfgs

# Of L-BFGS for an image, from the parameters of the image before; the tolerance is of what a unit is worth: ours.
_STEPS, _TOLERANCE = 30, 1e-2


@dataclass(frozen=True)
class ProfileLikelihood:
    r"""
    The profile likelihood :math:`\min_w -\log p(y | x, w)` over the nuisance parameters w.

    Its gradient is that at the best parameters, held fixed (variable projection, :footcite:t:`golub2003separable`).
    The search for them starts from where it ended last, which ``nuisance`` keeps.
    """

    inner: Likelihood  # at the parameters found so far
    nuisance: Nuisance

    def __call__(self, x: Tensor) -> Tensor:
        """The values of images in [0, 1], (n, C, H, W) -> (n,)."""
        rows, nuisance = self.inner.rows, self.nuisance
        start = nuisance.packed(rows)
        parameters = _OfParameters(self.inner, nuisance, x.detach())
        best, value, _ = lbfgs.minimize(parameters, start, steps=_STEPS, tolerance=_TOLERANCE, unit=start.shape[1] / 2)
        nuisance.keep(rows, torch.where(torch.isfinite(value)[:, None], best, start))
        return self.inner(x)

    def select(self, rows: Tensor) -> ProfileLikelihood:
        """The same for some of the rows."""
        return ProfileLikelihood(self.inner.select(rows), self.nuisance)


@dataclass(frozen=True)
class _OfParameters:
    """The likelihood of images that stay as they are, as a function of the unknown parameters, (n, d)."""

    inner: Likelihood
    nuisance: Nuisance
    x: Tensor

    def gradients(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            flat = flat.detach().requires_grad_()
            with self.nuisance.trying(self.inner.rows, self.nuisance.unpacked(flat)):
                value = self.inner(self.x)
            (gradient,) = torch.autograd.grad(value.sum(), flat)
        return value.detach(), gradient

    def select(self, rows: Tensor) -> _OfParameters:
        return _OfParameters(self.inner.select(rows), self.nuisance, self.x[rows])
