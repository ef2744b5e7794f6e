"""The problem of one layer: find the latent and the sparse deviation that reproduce a target after that layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.prior import DiffusionPrior

ADVICE = "lower latent_lr (or lr, step_size), or use float32 weights"

Fit = Callable[[Tensor], Tensor]  # output of a layer, (B, C, H, W) -> misfit to the target of each sample, (B,)


def per_sample_mean(t: Tensor) -> Tensor:
    """Mean over all but the batch dimension, shape (B,)."""
    return t.flatten(1).mean(1)


@dataclass(frozen=True)
class LayerProblem:
    r"""
    The objective of one layer, per sample, minimised over its input :math:`z` and its deviation :math:`\nu`:

    .. math::

        \mathrm{fit}(g_i(z) + \nu) + \lambda \, \mathrm{mean}|\nu| + \rho \, \mathrm{mean}(z^2).
    """

    prior: DiffusionPrior
    layer: int
    fit: Fit
    sparsity: float
    latent_penalty: float

    def objective(self, z: Tensor, nu: Tensor) -> Tensor:
        """The objective of each sample, shape (B,)."""
        return (
            self.fit(self.prior.layer(self.layer, z) + nu)
            + self.sparsity * per_sample_mean(nu.abs())
            + self.latent_penalty * per_sample_mean(z.square())
        )


def solve_with_adam(
    problem: LayerProblem,
    z: Tensor,  # (B, C, H, W)
    nu: Tensor,  # (B, C, H, W)
    *,
    steps: int,
    latent_lr: float,
    deviation_lr: float,
    on_step: Callable[[], object],
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Adam on (z, nu) with a fresh state, as published.

    The objectives are summed over the batch and Adam works entry by entry, so samples do not see one another.
    Returns z, nu and the objective before each step, shape (steps, B), still on the device: no step waits for it.
    """
    z, nu = z.clone().requires_grad_(), nu.clone().requires_grad_()
    optimizer = torch.optim.Adam([{"params": [z], "lr": latent_lr}, {"params": [nu], "lr": deviation_lr}])
    history = []
    for _ in range(steps):
        objective = problem.objective(z, nu)
        z.grad, nu.grad = torch.autograd.grad(objective.sum(), (z, nu))
        optimizer.step()
        history.append(objective.detach())
        on_step()
    return z.detach(), nu.detach(), torch.stack(history)


def check_finite(history: Tensor, where: str) -> None:
    """Stop with the place and the step at which an objective, shape (steps, B), stopped being finite."""
    bad = ~torch.isfinite(history)
    if bad.any():
        step, sample = (int(n) for n in bad.nonzero()[0])
        raise FloatingPointError(
            f"the objective became {history[step, sample].item()} at {where}, step {step + 1}, sample {sample}; "
            f"{ADVICE}"
        )
