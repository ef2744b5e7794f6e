"""A deepinv data fidelity in place of the likelihood of the noise model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from deepinv.optim import DataFidelity, PoissonLikelihood
from deepinv.physics import Physics, StackedPhysics
from torch import Tensor

from deepinv_dmilo.likelihood.densities import LEAST_PHOTONS
from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements, as_input
from deepinv_dmilo.utils.memory import raise_out_of_memory


@dataclass(frozen=True)
class Fidelity(Likelihood):
    """A deepinv data fidelity as the negative log-likelihood; it does not define a noise level."""

    has_noise = False
    fidelity: DataFidelity

    def __call__(self, x: Tensor) -> Tensor:
        forward, rows = self.forward, self.rows
        y = forward.units.physical(self.y, rows)
        members = (self.fidelity, *getattr(self.fidelity, "data_fidelity_list", ()))
        if len(x) > 1 and any(isinstance(member, PoissonLikelihood) for member in members):
            # deepinv 0.5 sums one of its two terms over the whole batch
            each = torch.arange(len(x), device=x.device).split(1)
            return torch.cat([self.select(row)(x[row]) for row in each])
        physics = forward.physics
        if isinstance(physics, StackedPhysics):
            stack: Any = physics
            if len(members) > 1:
                stack = [_floored(one, member.A) for one, member in zip(members[1:], physics, strict=True)]
            return forward.apply(lambda: self.fidelity(x, y, stack), rows)
        is_poisson = isinstance(self.fidelity, PoissonLikelihood)
        if forward.is_split and forward.nuisance is None and not is_poisson:
            return forward.apply(lambda: self.fidelity(as_input(x, physics), y, physics), rows)
        return self.fidelity(x, y, _floored(self.fidelity, lambda x, **_: forward.measured(x, rows)))


def _floored(fidelity: DataFidelity, operator: Callable[..., Measurements]) -> Physics:
    """A as a physics; for deepinv's Poisson likelihood, which takes its logarithm, with a floor."""
    if not isinstance(fidelity, PoissonLikelihood):
        return Physics(A=operator)
    darkest = LEAST_PHOTONS * float(fidelity.gain)
    return Physics(A=lambda x, **_: operator(x).clamp(min=darkest))  # type: ignore[union-attr]


def check_fidelity(likelihood: Fidelity, x: Tensor) -> None:
    """Check that a data fidelity is differentiable, and gives one finite value for each image, whatever the others."""
    forward = likelihood.forward
    if isinstance(forward.physics, StackedPhysics):
        if not forward.is_split:
            raise ValueError(
                "data_fidelity of a stack that differs between images in a hidden way; leave data_fidelity out"
            )
        if forward.nuisance is not None:
            raise ValueError("data_fidelity of a stack excludes unknown parameters; leave data_fidelity out")
    name, twice = type(likelihood.fidelity).__name__, torch.zeros(2, dtype=torch.long, device=x.device)
    try:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            one, two = (likelihood.select(rows)(x[rows]) for rows in (twice[:1], twice))
        shapes = [tuple(one.shape), tuple(two.shape)]
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise_out_of_memory(error)
        raise ValueError(
            f"data_fidelity {name} cannot be called as fidelity(x, y, physics): {error}; pass one for the "
            "measurements of this physics"
        ) from error
    if not two.requires_grad:
        raise ValueError(f"data_fidelity {name} has no gradient; pass one that is written in torch, such as L2(sigma)")
    if shapes != [(1,), (2,)]:
        raise ValueError(
            f"data_fidelity {name} gives values of shape {tuple(two.shape)} for two images; pass one that gives a "
            "value for each image, (B,)"
        )
    if not torch.isfinite(two).all():
        raise ValueError(f"data_fidelity {name} is {two[0].item()} for a grey image; check that y is valid for it")
    if not torch.allclose(two, one.expand(2), rtol=1e-4):
        raise ValueError(
            f"data_fidelity {name} is {two.tolist()} for an image given twice and {one.tolist()} for it alone: it "
            "mixes the images of a batch; pass one that gives a value for each image"
        )
