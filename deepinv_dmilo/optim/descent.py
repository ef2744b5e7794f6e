"""What moves images without the network: gradient steps on the measurements, and sparse deviations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from deepinv_dmilo.optim import lbfgs

# All ours.
POWER_STEPS, POWER_ACCURACY = 30, 1e-2  # a step that is a hundredth too long descends as well
STANDSTILL = 1e-3  # root mean square of a step that moves an image in [0, 1] no more
PROXIMAL_STEPS, HALVINGS = 100, 30  # of a sparse deviation, and of one of its steps
ACCURACY = 1e-5  # of the objective, that a step towards a proximal point must gain
DECREASE = 1e-4  # of the value, along the gradient, that is enough (Armijo)

#: images (n, C, H, W) to a value of each, (n,)
Values: TypeAlias = Callable[[Tensor], Tensor]


class Potential(Protocol):
    """A negative log-density of each of n images, up to a constant, such as that of measurements."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Images (n, C, H, W) to values, (n,), differentiable."""

    def select(self, rows: Tensor) -> Potential:
        """The same for some of the images."""


@dataclass(frozen=True)
class Penalised:
    """``objective(x) + p |x - c|^2 / 2``: proximal points of the objective at c minimise it."""

    objective: Potential
    center: Tensor  # c, (n, C, H, W)
    penalty: Tensor  # p, (n,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.objective(x) + self.penalty * (x - self.center).square().flatten(1).sum(1) / 2

    def select(self, rows: Tensor) -> Penalised:
        return Penalised(self.objective.select(rows), self.center[rows], self.penalty[rows])

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same of images as the rows of a matrix, (n, d), with gradients."""
        value, gradient = value_and_gradient(self, z.view_as(self.center))
        return value, gradient.flatten(1)


def gradient_steps(
    x: Tensor,
    objective: Potential,
    *,
    steps: int,
    size: Tensor | None,
    normalize: bool = False,
    penalty: Tensor | None = None,
    standstill: float = 0.0,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    r"""
    Gradient steps of images on an objective, clamped to ``limits`` after each.

    :param torch.Tensor x: images, (n, C, H, W).
    :param objective: such as :math:`\|A(x) - y\|^2 / 2`.
    :param int steps: at most.
    :param torch.Tensor size: of a step, (n,); None: found by backtracking.
    :param bool normalize: descend the square root of twice the objective, :math:`\|A(x) - y\|`.
    :param torch.Tensor penalty: p of each image, (n,): the steps go towards the proximal point at the x that was given,
        the minimiser of the objective :math:`+ \, p \|x - x_0\|^2 / 2`.
    :param float standstill: an image whose step had a root mean square of at most so much is left as it is, and A is
        not asked for it again.
    """
    target = Penalised(objective, x, torch.zeros_like(x[:, 0, 0, 0]) if penalty is None else penalty)
    if size is None:
        return _backtracking(target, x, steps, standstill, limits)
    x, rows, step = x.clone(), torch.arange(len(x), device=x.device), _column(size / (1 + size * target.penalty))
    for _ in range(steps):
        value, gradient = value_and_gradient(target, x[rows])
        if normalize:
            gradient = gradient / _column(2 * value).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        moved = (x[rows] - step * gradient).clamp(*limits)
        moving = (_rms(moved - x[rows]) > standstill).nonzero()[:, 0]
        x[rows[moving]] = moved[moving]
        if not len(moving):
            break
        if len(moving) < len(rows):
            rows, step, target = rows[moving], step[moving], target.select(moving)
    return x


def proximal_point(
    x: Tensor,
    objective: Potential,
    *,
    penalty: Tensor,
    steps: int,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """About the minimiser of ``objective(x) + p |x - x_0|^2 / 2``, by L-BFGS in so many evaluations, then clamped."""
    target = Penalised(objective, x, penalty)
    moved, value, _ = lbfgs.minimize(target, x.flatten(1), steps=steps, tolerance=ACCURACY)
    return torch.where(_column(torch.isfinite(value)), moved.view_as(x), x).clamp(*limits)


def sparse_deviation(
    objective: Potential,
    x: Tensor,
    weight: Tensor,
    step: Tensor,
    *,
    steps: int = PROXIMAL_STEPS,
    standstill: float = STANDSTILL,
) -> Tensor:
    r"""
    The :math:`\nu` that minimises an objective of :math:`x + \nu` plus :math:`w \|\nu\|_1`; no network pass.

    Proximal gradient descent (soft thresholding), with a step of each row that is halved where it is too long, until
    no pixel of a row moves by more than ``standstill``.

    :param torch.Tensor x: shape (n, C, H, W).
    :param torch.Tensor weight: w of each row, (n,).
    :param torch.Tensor step: first step of each row, (n,): the inverse of the objective's curvature, or more.
    :return: the deviation, most of it exactly 0.
    """
    found, rows, nu = torch.zeros_like(x), torch.arange(len(x), device=x.device), torch.zeros_like(x)
    value, gradient = value_and_gradient(objective, x)
    for _ in range(steps):
        for _ in range(HALVINGS):
            trial = _soften(nu - _column(step) * gradient, _column(step * weight))
            move = trial - nu
            trial_value, trial_gradient = value_and_gradient(objective, x + trial)
            bound = value + (gradient * move).flatten(1).sum(1) + move.square().flatten(1).sum(1) / (2 * step)
            good = trial_value <= bound + 1e-6 * value.abs()  # not so where it is NaN
            if good.all():
                break
            step = torch.where(good, step, step / 2)
        nu, gradient = torch.where(_column(good), trial, nu), torch.where(_column(good), trial_gradient, gradient)
        value, found[rows] = torch.where(good, trial_value, value), nu
        moving = (good & (move.abs().flatten(1).amax(1) > standstill)).nonzero()[:, 0]
        if not len(moving):
            break
        if len(moving) < len(rows):
            rows, objective, x = rows[moving], objective.select(moving), x[moving]
            nu, gradient, value, step, weight = (t[moving] for t in (nu, gradient, value, step, weight))
    return found


def squared_norm(energy: Values, like: Tensor) -> Tensor:
    """
    ``||A||^2`` of each image, (n,), by a power method, to a hundredth; ``energy`` is ``||A x||^2`` of images, (n,).

    Our own: deepinv's takes one norm for the whole batch, and draws from the global random state. Like the steps, it
    asks autograd for the adjoint, so that an ``A_adjoint`` that is missing or scaled otherwise does no harm.
    """
    rng = torch.Generator("cpu").manual_seed(0)
    probe = torch.randn(like.shape[1:], generator=rng, device="cpu", dtype=torch.float32).to(like).expand(like.shape)
    norm, moving = _energy(probe).sqrt(), torch.ones_like(like[:, 0, 0, 0], dtype=torch.bool)
    for _ in range(POWER_STEPS):
        _, image = value_and_gradient(lambda x: energy(x) / 2, probe / _column(norm))
        larger = _energy(image).sqrt().clamp(min=torch.finfo(like.dtype).tiny)
        still = (larger - norm).abs() > POWER_ACCURACY * larger
        norm, probe = torch.where(moving, larger, norm), torch.where(_column(moving), image, probe)
        moving = moving & still
        if not moving.any():
            break
    return norm


def value_and_gradient(objective: Values, x: Tensor) -> tuple[Tensor, Tensor]:
    """A value of each image, (n,), and its gradient."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def _backtracking(
    objective: Penalised, x: Tensor, steps: int, standstill: float, limits: tuple[float, float]
) -> Tensor:
    """
    Tries at a step of each image: one that does not decrease the objective enough is halved.

    The others have the length that the last one's change of the gradient asks for (Barzilai and Borwein, 1988).
    """
    value, gradient = value_and_gradient(objective, x)
    # The first goes to zero, were A linear and 1-d, and neither hardly anywhere nor through all of [0, 1].
    slope = _energy(gradient).clamp(min=torch.finfo(x.dtype).tiny)
    unit = (x[0].numel() / slope).sqrt()  # of a root mean square of 1
    step = torch.clamp(2 * value.abs() / slope, STANDSTILL * unit, unit)
    found, rows, moving = x.clone(), torch.arange(len(x), device=x.device), _energy(gradient) > 0
    for _ in range(max(1, steps - 1)):  # as many evaluations as steps of a given size take
        if not moving.all():
            keep = moving.nonzero()[:, 0]
            rows, objective = rows[keep], objective.select(keep)
            x, gradient, value, step = (t[keep] for t in (x, gradient, value, step))
        if not len(rows):
            break
        trial = (x - _column(step) * gradient).clamp(*limits)
        trial_value, trial_gradient = value_and_gradient(objective, trial)
        enough = trial_value <= value - DECREASE * (gradient * (x - trial)).flatten(1).sum(1)
        move = trial - x
        moving = ~enough | (_rms(move) > standstill)
        curvature = (move * (trial_gradient - gradient)).flatten(1).sum(1)
        longer = torch.where(curvature > 0, _energy(move) / curvature, 2 * step)
        x, gradient = torch.where(_column(enough), trial, x), torch.where(_column(enough), trial_gradient, gradient)
        value, step = torch.where(enough, trial_value, value), torch.where(enough, longer, step / 2)
        found[rows] = x
    return found


def _soften(t: Tensor, threshold: Tensor) -> Tensor:
    return t.sign() * (t.abs() - threshold).clamp(min=0)


def _energy(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


def _rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1).sqrt()


def _column(t: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return t.view(-1, 1, 1, 1)
