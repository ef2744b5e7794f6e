"""What moves images without the network: gradient steps on the measurements, and sparse deviations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, energy
from deepinv_dmilo.optim import lbfgs

# All ours.
POWER_STEPS, POWER_ACCURACY = 30, 1e-2  # a step that is a hundredth too long descends as well
STANDSTILL = 1e-3  # root mean square of a step that moves an image in [0, 1] no more
PROXIMAL_STEPS, HALVINGS = 100, 30  # of a sparse deviation, and of one of its steps
ACCURACY = 1e-5  # of the objective, that a step towards a proximal point must gain
DECREASE = 1e-4  # of the value, along the gradient, that is enough (Armijo)

# Images (n, C, H, W) to a value of each, (n,).
Values = Callable[[Tensor], Tensor]


def gradient_steps(
    x: Tensor,  # (n, C, H, W)
    misfit: Values,  # ||A(x) - y||^2
    *,
    steps: int,
    size: Tensor | None,  # (n,); None: found by backtracking
    normalize: bool = False,
    pull: Tensor | None = None,  # (n,)
    standstill: float = 0.0,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    r"""
    Descend :math:`\|A(x) - y\|^2 / 2` (``normalize``: :math:`\|A(x) - y\|`), clamped to ``limits`` after each step.

    With ``pull`` p, what is descended is :math:`\|A(x) - y\|^2 / 2 + p \|x - x_0\|^2 / 2`: the steps go towards its
    proximal point of the data term at x_0, the x that was given, instead of to the measurements themselves. An image
    whose step had a root mean square of at most ``standstill`` is left as it is.
    """
    pull = torch.zeros_like(x[:, 0, 0, 0]) if pull is None else pull
    objective = partial(_objective, misfit=misfit, anchor=x, pull=pull)
    if size is None:
        return _backtracking(objective, x, steps, standstill, limits)
    moving = torch.ones_like(pull, dtype=torch.bool)
    for _ in range(steps):
        value, gradient = value_and_gradient(objective, x)
        if normalize:
            gradient = gradient / _column(2 * value).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        moved = (x - _column(size / (1 + size * pull)) * gradient).clamp(*limits)
        moving, x = moving & (_rms(moved - x) > standstill), torch.where(_column(moving), moved, x)
        if not moving.any():
            break
    return x


def proximal_point(
    x: Tensor,  # (n, C, H, W)
    misfit: Values,  # ||A(x) - y||^2, or twice another negative log-likelihood
    *,
    pull: Tensor,  # (n,)
    steps: int,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """About the minimiser of ``misfit(x) / 2 + p |x - x_0|^2 / 2``, by L-BFGS in so many evaluations, then clamped."""
    around = _Around(partial(_objective, misfit=misfit, anchor=x, pull=pull), x, torch.arange(len(x), device=x.device))
    moved, value, _ = lbfgs.minimize(around, x.flatten(1), steps=steps, tolerance=ACCURACY)
    return torch.where(_column(torch.isfinite(value)), moved.view_as(x), x).clamp(*limits)


@dataclass(frozen=True)
class _Around:
    """An objective of all images, as a function of some of them: the others stay where they are."""

    objective: Values
    x: Tensor  # (n, C, H, W)
    rows: Tensor

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        moved = self.x.index_copy(0, self.rows, z.view(-1, *self.x.shape[1:]))
        value, gradient = value_and_gradient(self.objective, moved)
        return value[self.rows], gradient[self.rows].flatten(1)

    def select(self, rows: Tensor) -> _Around:
        return replace(self, rows=self.rows[rows])


def sparse_deviation(
    fit: Values, x: Tensor, weight: Tensor, step: Tensor, *, steps: int = PROXIMAL_STEPS, standstill: float = STANDSTILL
) -> Tensor:
    r"""
    The :math:`\nu` that minimises :math:`\mathrm{fit}(x + \nu) + w \|\nu\|_1`; no network pass.

    Proximal gradient descent (soft thresholding), with a step of each row that is halved where it is too long, until
    no pixel of a row moves by more than ``standstill``.

    :param torch.Tensor x: shape (n, C, H, W).
    :param torch.Tensor weight: w of each row, (n,).
    :param torch.Tensor step: first step of each row, (n,): the inverse of the fit's curvature, or more.
    :return: the deviation, most of it exactly 0.
    """
    nu, moving = torch.zeros_like(x), torch.ones_like(weight, dtype=torch.bool)
    value, gradient = value_and_gradient(fit, x)
    for _ in range(steps):
        for _ in range(HALVINGS):
            trial = _soften(nu - _column(step) * gradient, _column(step * weight))
            move = trial - nu
            trial_value, trial_gradient = value_and_gradient(fit, x + trial)
            bound = value + (gradient * move).flatten(1).sum(1) + move.square().flatten(1).sum(1) / (2 * step)
            good = trial_value <= bound + 1e-6 * value.abs()  # not so where it is NaN
            if (good | ~moving).all():
                break
            step = torch.where(good, step, step / 2)
        taken = moving & good
        nu, gradient = torch.where(_column(taken), trial, nu), torch.where(_column(taken), trial_gradient, gradient)
        value, moving = torch.where(taken, trial_value, value), taken & (move.abs().flatten(1).amax(1) > standstill)
        if not moving.any():
            break
    return nu


def squared_norm(operator: Callable[[Tensor], Measurements], like: Tensor) -> Tensor:
    """
    ``||A||^2`` of each image, (n,), by a power method, to a hundredth.

    Our own: deepinv's takes one norm for the whole batch, and draws from the global random state. Like the steps, it
    asks autograd for the adjoint, so that an ``A_adjoint`` that is missing or scaled otherwise does no harm.
    """
    rng = torch.Generator("cpu").manual_seed(0)
    probe = torch.randn(like.shape[1:], generator=rng, device="cpu", dtype=torch.float32).to(like).expand(like.shape)
    norm, moving = energy(probe).sqrt(), torch.ones_like(like[:, 0, 0, 0], dtype=torch.bool)
    for _ in range(POWER_STEPS):
        _, image = value_and_gradient(lambda x: energy(operator(x)) / 2, probe / _column(norm))
        larger = energy(image).sqrt().clamp(min=torch.finfo(like.dtype).tiny)
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


def _objective(x: Tensor, misfit: Values, anchor: Tensor, pull: Tensor) -> Tensor:
    return (misfit(x) + pull * energy(x - anchor)) / 2


def _backtracking(objective: Values, x: Tensor, steps: int, standstill: float, limits: tuple[float, float]) -> Tensor:
    """
    Tries at a step of each image: one that does not decrease the objective enough is halved.

    The others have the length that the last one's change of the gradient asks for (Barzilai and Borwein, 1988).
    """
    value, gradient = value_and_gradient(objective, x)
    # The first goes to zero, were A linear and 1-d, and neither hardly anywhere nor through all of [0, 1].
    slope = energy(gradient).clamp(min=torch.finfo(x.dtype).tiny)
    unit = (x[0].numel() / slope).sqrt()  # of a root mean square of 1
    step = torch.clamp(2 * value.abs() / slope, STANDSTILL * unit, unit)
    moving = energy(gradient) > 0
    for _ in range(max(1, steps - 1)):  # as many evaluations as steps of a given size take
        trial = (x - _column(step) * gradient).clamp(*limits)
        trial_value, trial_gradient = value_and_gradient(objective, trial)
        enough = trial_value <= value - DECREASE * (gradient * (x - trial)).flatten(1).sum(1)
        move = trial - x
        taken, still = moving & enough, enough & (_rms(move) <= standstill)
        curvature = (move * (trial_gradient - gradient)).flatten(1).sum(1)
        longer = torch.where(curvature > 0, energy(move) / curvature, 2 * step)
        x, gradient = torch.where(_column(taken), trial, x), torch.where(_column(taken), trial_gradient, gradient)
        value, step = torch.where(taken, trial_value, value), torch.where(enough, longer, step / 2)
        moving = moving & ~still
        if not moving.any():
            break
    return x


def _soften(t: Tensor, threshold: Tensor) -> Tensor:
    return t.sign() * (t.abs() - threshold).clamp(min=0)


def _rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1).sqrt()


def _column(t: Tensor) -> Tensor:
    """(n,) -> (n, 1, 1, 1)."""
    return t.view(-1, 1, 1, 1)
