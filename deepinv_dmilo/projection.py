"""The projected-gradient part of DMILO-PGD: steps on the measurements, and their size."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from deepinv_dmilo.measurements import Measurements, energy, measure, parts

_SQUARED_NORMS: WeakKeyDictionary[Physics, tuple[list, float]] = WeakKeyDictionary()  # fingerprint, norm


def gradient_steps(
    x: Tensor,  # (B, C, H, W) in [0, 1]
    y: Measurements,
    physics: Physics,
    *,
    steps: int,
    step_size: float | str,
    normalize: bool,
) -> Tensor:
    r"""Descend :math:`\|A(x) - y\|^2 / 2` (``normalize``: :math:`\|A(x) - y\|`), clamped to [0, 1] after each step."""
    if step_size == "auto" and isinstance(physics, LinearPhysics):
        step_size = 1 / squared_norm(physics, x)
    for _ in range(steps):
        misfit, gradient = _misfit_and_gradient(x, y, physics)
        if normalize:
            gradient = gradient / _column(2 * misfit).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        x = _backtrack(x, y, physics, misfit, gradient) if step_size == "auto" else x - float(step_size) * gradient
        x = x.clamp(0, 1)
    return x


def squared_norm(physics: LinearPhysics, x: Tensor) -> float:
    """
    ``||A||^2`` by deepinv's power method, cached per physics until one of its parameters changes.

    Computed on a single image where the operator is the same for the whole batch, so that a batch takes the steps
    of its images; with per-sample parameters (one mask each) it is the largest of the batch.
    """
    fingerprint = [x.shape[1:], x.dtype, x.device, *map(_fingerprint, [*physics.parameters(), *physics.buffers()])]
    cached = _SQUARED_NORMS.get(physics)
    if cached is None or cached[0] != fingerprint:
        one = torch.zeros_like(x[:1])
        start = one if len(parts(physics.A(one))[0]) == 1 else torch.zeros_like(x)
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(0)  # the power method draws from the global state
            norm = physics.compute_sqnorm(start, max_iter=1000, tol=1e-4, verbose=False)
        cached = (fingerprint, max(float(norm), torch.finfo(x.dtype).tiny))
        _SQUARED_NORMS[physics] = cached
    return cached[1]


def _fingerprint(t: Tensor) -> tuple[torch.Size, complex]:
    """Shape and a weighted sum; by value, since deepinv makes derived buffers anew at every call."""
    weights = torch.linspace(1, 2, t.numel(), device=t.device, dtype=torch.float64)
    return t.shape, complex((t.detach().flatten() * weights).sum())


def _misfit_and_gradient(x: Tensor, y: Measurements, physics: Physics) -> tuple[Tensor, Tensor]:
    """``||A(x) - y||^2 / 2`` of each sample, (B,), and its gradient, (B, C, H, W), by automatic differentiation."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        misfit = energy(measure(x, physics) - y) / 2
        (gradient,) = torch.autograd.grad(misfit.sum(), x)
    return misfit.detach(), gradient


def _backtrack(x: Tensor, y: Measurements, physics: Physics, misfit: Tensor, gradient: Tensor) -> Tensor:
    """One step of each sample, halved until it decreases the misfit enough (Armijo, 1e-4) or 30 times."""
    slope = energy(gradient)
    step = 2 * misfit / slope.clamp(min=torch.finfo(x.dtype).tiny)  # the step to a zero misfit, were A linear and 1-d
    accepted = x
    pending = slope > 0
    for _ in range(30):
        trial = (x - _column(step) * gradient).clamp(0, 1)
        enough = energy(measure(trial, physics) - y) / 2 <= misfit - 1e-4 * (gradient * (x - trial)).flatten(1).sum(1)
        accepted = torch.where(_column(pending & enough), trial, accepted)
        pending = pending & ~enough
        if not pending.any():
            break
        step = step / 2
    return accepted


def _column(t: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return t.view(-1, 1, 1, 1)
