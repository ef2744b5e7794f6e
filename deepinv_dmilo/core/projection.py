"""The projected-gradient part of DMILO-PGD: steps on the measurements, and their size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from deepinv_dmilo.core.measurements import Measurements, energy, measure

POWER_STEPS = 100
_SQUARED_NORMS: WeakKeyDictionary[Physics, tuple[list, Tensor]] = WeakKeyDictionary()  # fingerprint, norms


def gradient_steps(
    x: Tensor,  # (B, C, H, W) in [0, 1]
    y: Measurements,
    physics: Physics,
    *,
    steps: int,
    step_size: float | str = "auto",
    normalize: bool = False,
    pull: Tensor | None = None,  # (B,)
) -> Tensor:
    r"""
    Descend :math:`\|A(x) - y\|^2 / 2` (``normalize``: :math:`\|A(x) - y\|`), clamped to [0, 1] after each step.

    With ``pull`` p, what is descended is :math:`\|A(x) - y\|^2 / 2 + p \|x - x_0\|^2 / 2`: the steps go towards its
    proximal point of the data term at x_0, the x that was given, instead of to the measurements themselves.
    """
    pull = torch.zeros_like(x[:, 0, 0, 0]) if pull is None else pull
    objective = partial(_objective, y=y, physics=physics, anchor=x, pull=pull)
    size = None
    if step_size != "auto" or isinstance(physics, LinearPhysics):
        inverse_curvature = 1 / squared_norm(physics, x) if step_size == "auto" else float(step_size)  # type: ignore
        size = inverse_curvature / (1 + inverse_curvature * pull)
    for _ in range(steps):
        value, gradient = _value_and_gradient(objective, x)
        if normalize:
            gradient = gradient / _column(2 * value).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        x = _backtrack(objective, x, value, gradient) if size is None else x - _column(size) * gradient
        x = x.clamp(0, 1)
    return x


def squared_norm(physics: LinearPhysics, x: Tensor) -> Tensor:
    """
    ``||A||^2`` of each sample, (B,), by a power method, cached per physics until the operator changes.

    Our own: deepinv's takes one norm for the whole batch, and draws from the global random state. Like the steps, it
    asks autograd for the adjoint, so that an ``A_adjoint`` that is missing or scaled otherwise does no harm.
    """
    rng = torch.Generator("cpu").manual_seed(0)
    probe = torch.randn(x.shape[1:], generator=rng, device="cpu").to(x).expand_as(x)
    # What the operator does to the probe tells whether it is still the same, wherever it keeps its parameters.
    fingerprint = [probe.shape, x.dtype, x.device, energy(physics.A(probe)).tolist()]
    cached = _SQUARED_NORMS.get(physics)
    if cached is None or cached[0] != fingerprint:
        norm = energy(probe).sqrt()
        for _ in range(POWER_STEPS):
            _, probe = _value_and_gradient(lambda x: energy(measure(x, physics)) / 2, probe / _column(norm))
            norm = energy(probe).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        cached = (fingerprint, norm)
        _SQUARED_NORMS[physics] = cached
    return cached[1]


def _objective(x: Tensor, y: Measurements, physics: Physics, anchor: Tensor, pull: Tensor) -> Tensor:
    """``||A(x) - y||^2 / 2 + pull ||x - anchor||^2 / 2`` of each sample, (B,)."""
    return (energy(measure(x, physics) - y) + pull * energy(x - anchor)) / 2


def _value_and_gradient(objective: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def _backtrack(objective: Callable[[Tensor], Tensor], x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """One step of each sample, halved until it decreases the objective enough (Armijo, 1e-4) or 30 times."""
    slope = energy(gradient)
    step = 2 * value / slope.clamp(min=torch.finfo(x.dtype).tiny)  # the step to zero, were A linear and 1-d
    accepted = x
    pending = slope > 0
    for _ in range(30):
        trial = (x - _column(step) * gradient).clamp(0, 1)
        enough = objective(trial) <= value - 1e-4 * (gradient * (x - trial)).flatten(1).sum(1)
        accepted = torch.where(_column(pending & enough), trial, accepted)
        pending = pending & ~enough
        if not pending.any():
            break
        step = step / 2
    return accepted


def _column(t: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return t.view(-1, 1, 1, 1)
