"""The problem of one layer: the latent, and the sparse deviation, that reproduce a target after that layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepinv_dmilo.core import lbfgs
from deepinv_dmilo.priors.diffusers import DiffusionPrior

ADVICE = "lower latent_lr (or lr, step_size), or use float32 weights"

# Output of a layer for n samples, (n, C, H, W), and their rows in the batch, (n,) or None for all of them
# -> misfit to the target of each, (n,).
Fit = Callable[[Tensor, "Tensor | None"], Tensor]


def per_sample_mean(t: Tensor) -> Tensor:
    """Mean over all but the batch dimension, shape (B,)."""
    return t.flatten(1).mean(1)


def latent_fit(target: Tensor) -> Fit:
    """The misfit of an inner layer: mean squared distance to the latent found for the layer after it."""
    return lambda latent, rows: per_sample_mean((latent - _select(target, rows)).square())


@dataclass(frozen=True)
class LayerProblem:
    r"""
    The objective of one layer, per sample, minimised over its input :math:`z` and its deviation :math:`\nu`:

    .. math::

        \mathrm{fit}(g(z) + \nu) + \lambda \, \mathrm{mean}|\nu| + \rho \, \mathrm{mean}((z - c)^2).

    As published c is 0. ``rows`` says which samples of the batch are looked at, None all of them.
    """

    prior: DiffusionPrior
    steps: tuple[int, ...]  # training steps that the layer starts and ends at; more than two: a chain of layers
    fit: Fit
    sparsity: float
    latent_penalty: Tensor  # (B,)
    center: Tensor | None = None  # (B, C, H, W)
    micro_batch: int | None = None  # samples whose graph is alive at a time
    on_pass: Callable[[Tensor | None], object] = lambda rows: None

    def objective(self, z: Tensor, nu: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """The objective of each of n samples, shape (n,)."""
        output, offset = z, z
        for step in pairwise(self.steps):
            output = self.prior.step(output, *step)
        if self.center is not None:
            offset = z - _select(self.center, rows)
        value = _select(self.latent_penalty, rows) * per_sample_mean(offset.square())
        if nu is None:
            return value + self.fit(output, rows)
        return value + self.fit(output + nu, rows) + self.sparsity * per_sample_mean(nu.abs())

    def gradients(
        self, z: Tensor, nu: Tensor | None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The objective of each of n samples, (n,), and its gradients by z and nu; one network pass."""
        self.on_pass(rows)
        if self.micro_batch is None or len(z) <= self.micro_batch:
            return self._gradients(z, nu, rows)
        rows = torch.arange(len(z), device=z.device) if rows is None else rows
        chunks = [
            self._gradients(z[part], None if nu is None else nu[part], rows[part])
            for part in torch.arange(len(z), device=z.device).split(self.micro_batch)
        ]
        values, by_z, by_nu = zip(*chunks, strict=True)
        return torch.cat(values), torch.cat(by_z), None if nu is None else torch.cat(by_nu)

    def _gradients(self, z: Tensor, nu: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            if nu is None:
                value = self.objective(z, None, rows)
                return value.detach(), torch.autograd.grad(value.sum(), z)[0], None
            nu = nu.detach().requires_grad_()
            value = self.objective(z, nu, rows)
            by_z, by_nu = torch.autograd.grad(value.sum(), (z, nu))
        return value.detach(), by_z, by_nu


def solve_with_adam(
    problem: LayerProblem,
    z: Tensor,  # (B, C, H, W)
    nu: Tensor | None,  # (B, C, H, W)
    *,
    steps: int,
    latent_lr: float,
    deviation_lr: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """
    Adam on (z, nu) with a fresh state, as published.

    The objectives are summed over the batch and Adam works entry by entry, so samples do not see one another.
    Returns z, nu and the objective before each step, shape (steps, B), still on the device: no step waits for it.
    """
    z = z.clone()
    groups = [{"params": [z], "lr": latent_lr}]
    if nu is not None:
        nu = nu.clone()
        groups.append({"params": [nu], "lr": deviation_lr})
    optimizer = torch.optim.Adam(groups)
    history = []
    for _ in range(steps):
        value, z.grad, by_nu = problem.gradients(z, nu)
        if nu is not None:
            nu.grad = by_nu
        optimizer.step()
        history.append(value)
    return z, nu, torch.stack(history)


def solve_with_lbfgs(
    problem: LayerProblem,
    z: Tensor,  # (B, C, H, W)
    *,
    steps: int,  # passes that a sample may take
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """L-BFGS on z, without a deviation, every sample on its own; returns z and the objective it reached, (B,)."""

    def evaluate(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient, _ = problem.gradients(z, None, rows)
        return value, gradient

    # A look at the device costs a GPU its queue of work; a CPU nothing.
    check_every = 1 if z.device.type == "cpu" else 5
    return lbfgs.minimize(evaluate, z, steps=steps, tolerance=tolerance, check_every=check_every)


def sparse_deviation(fit: Fit, output: Tensor, sparsity: Tensor, steps: int = 100) -> Tensor:
    r"""
    The :math:`\nu` that minimises :math:`\mathrm{fit}(g + \nu) + \lambda \, \mathrm{mean}|\nu|` at an output g.

    Proximal gradient descent (soft thresholding), with a step of each sample that is halved where it is too long. The
    first step is exact where the fit is the mean squared distance to an image: soft thresholding of that distance
    by :math:`\lambda / 2`. No network pass.

    :param torch.Tensor output: g, shape (B, C, H, W).
    :param torch.Tensor sparsity: the weight of each sample, shape (B,).
    :return: the deviation, most of it exactly 0.
    """
    nu = torch.zeros_like(output)
    pixels = output[0].numel()
    step = torch.full_like(output[:, 0, 0, 0], pixels / 2)[:, None, None, None]
    threshold = sparsity[:, None, None, None] / pixels
    for _ in range(steps):
        with torch.enable_grad():
            nu = nu.detach().requires_grad_()
            value = fit(output + nu, None)
            (gradient,) = torch.autograd.grad(value.sum(), nu)
        nu, value = nu.detach(), value.detach()
        too_long = torch.ones_like(value, dtype=torch.bool)
        for _ in range(30):
            trial = _soften(nu - step * gradient, step * threshold)
            move = trial - nu
            bound = value + (gradient * move).flatten(1).sum(1) + (move.square() / (2 * step)).flatten(1).sum(1)
            too_long = fit(output + trial, None) > bound + 1e-6 * value
            if not too_long.any():
                break
            step = torch.where(too_long[:, None, None, None], step / 2, step)
        nu = torch.where(too_long[:, None, None, None], nu, trial)
    return nu


def _soften(t: Tensor, threshold: Tensor) -> Tensor:
    return t.sign() * (t.abs() - threshold).clamp(min=0)


def check_finite(history: Tensor, where: str) -> None:
    """Stop with the place and the step at which an objective, shape (steps, B), stopped being finite."""
    bad = ~torch.isfinite(history)
    if bad.any():
        step, sample = (int(n) for n in bad.nonzero()[0])
        raise FloatingPointError(
            f"the objective became {history[step, sample].item()} at {where}, step {step + 1}, sample {sample}; "
            f"{ADVICE}"
        )


def _select(t: Tensor, rows: Tensor | None) -> Tensor:
    return t if rows is None else t[rows]
