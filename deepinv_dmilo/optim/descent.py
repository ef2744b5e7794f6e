"""Descent of images on an objective without the network: gradient, proximal and soft-thresholding steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from deepinv_dmilo.optim import lbfgs
from deepinv_dmilo.utils.rows import column, dot, sum_of_squares

# All ours.
POWER_STEPS, POWER_ACCURACY = 30, 1e-2  # a step that is 1 % too long still descends
STANDSTILL = 1e-3  # root mean square of a step at which an image in [0, 1] has converged
PROXIMAL_STEPS, HALVINGS = 100, 30  # of a sparse deviation; of the length of one step
ACCURACY = 1e-5  # relative decrease of the objective at which a proximal point has converged
DECREASE = 1e-4  # sufficient decrease (Armijo)

#: maps images (n, C, H, W) to one value each, (n,)
Values: TypeAlias = Callable[[Tensor], Tensor]


class Potential(Protocol):
    """A negative log-density of each of n images, up to a constant, such as a likelihood."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """The values of images, (n, C, H, W) -> (n,), differentiable."""

    def select(self, rows: Tensor) -> Potential:
        """The same for some of the images."""


@dataclass(frozen=True)
class Penalised:
    """``objective(x) + p |x - c|^2 / 2``, whose minimiser is the proximal point of the objective at c."""

    objective: Potential
    center: Tensor  # c, (n, C, H, W)
    penalty: Tensor  # p, (n,)

    def __call__(self, x: Tensor) -> Tensor:
        return self.objective(x) + self.penalty * sum_of_squares(x - self.center) / 2

    def select(self, rows: Tensor) -> Penalised:
        return Penalised(self.objective.select(rows), self.center[rows], self.penalty[rows])

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients for images as the rows of a matrix, (n, d)."""
        value, gradient = value_and_gradient(self, z.view_as(self.center))
        return value, gradient.flatten(1)


@dataclass(frozen=True)
class Whitened:
    """``objective(x) + s x + |w|^2 / 2`` for images x = c + F^-1 g F w, with F the Fourier transform and a gain g."""

    objective: Potential
    center: Tensor  # c, (n, C, H, W)
    gain: Tensor  # g, (H, W), or (n, 1, H, W)
    slope: Tensor  # s, (n, C, H, W)

    def images(self, w: Tensor) -> Tensor:
        """The images of white variables, (n, d) -> (n, C, H, W)."""
        return self.center + filtered(w.view_as(self.center), self.gain)

    def gradients(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients for white variables as the rows of a matrix, (n, d)."""
        return value_and_gradient(self._value, w)

    def _value(self, w: Tensor) -> Tensor:
        x = self.images(w)
        return self.objective(x) + dot(self.slope, x) + sum_of_squares(w) / 2

    def select(self, rows: Tensor) -> Whitened:
        gain = self.gain[rows] if self.gain.ndim == 4 else self.gain
        return Whitened(self.objective.select(rows), self.center[rows], gain, self.slope[rows])


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
    Gradient descent of images on an objective, clamped to ``limits`` after each step.

    :param torch.Tensor x: initial images :math:`x_0`, (n, C, H, W).
    :param objective: such as :math:`\|A(x) - y\|^2 / 2`.
    :param int steps: maximum number of steps.
    :param torch.Tensor size: step size of each image, (n,); None: by backtracking.
    :param bool normalize: descend the square root of twice the objective, :math:`\|A(x) - y\|`.
    :param torch.Tensor penalty: p of each image, (n,): adds :math:`p \|x - x_0\|^2 / 2` to the objective, whose
        minimiser is then the proximal point at :math:`x_0`.
    :param float standstill: an image stops at a step whose root mean square is at most this.
    """
    target = Penalised(objective, x, torch.zeros_like(x[:, 0, 0, 0]) if penalty is None else penalty)
    if size is None:
        return _backtracking(target, x, steps, standstill, limits)
    x, rows, step = x.clone(), torch.arange(len(x), device=x.device), column(size / (1 + size * target.penalty), x)
    for _ in range(steps):
        value, gradient = value_and_gradient(target, x[rows])
        if normalize:
            gradient = gradient / column(2 * value, x).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
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
    """An approximate minimiser of ``objective(x) + p |x - x_0|^2 / 2``: ``steps`` evaluations of L-BFGS, clamped."""
    target = Penalised(objective, x, penalty)
    moved, value, _ = lbfgs.minimize(target, x.flatten(1), steps=steps, tolerance=ACCURACY)
    return torch.where(column(torch.isfinite(value), x), moved.view_as(x), x).clamp(*limits)


def correlated_proximal_point(
    x: Tensor,
    objective: Potential,
    *,
    spectrum: Tensor,
    steps: int,
    slope: Tensor | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    r"""
    An approximate minimiser of ``objective(x)`` :math:`+ s^\top x + (x - x_0)^\top C^{-1} (x - x_0) / 2`, clamped.

    L-BFGS over white variables :math:`w, x = x_0 + C^{1/2} w`, which precondition the problem.

    :param torch.Tensor x: the images :math:`x_0`, (n, C, H, W).
    :param torch.Tensor spectrum: eigenvalues of the covariance C of the error of :math:`x_0`, by frequency, (H, W) or
        for each image, (n, 1, H, W); a constant for white errors.
    :param int steps: maximum number of evaluations of the objective.
    :param torch.Tensor slope: s, (n, C, H, W); None: 0.
    :return: the images, (n, C, H, W), clamped to ``limits``; :math:`x_0` where no value is finite.
    """
    target = Whitened(objective, x, spectrum.sqrt(), torch.zeros_like(x) if slope is None else slope)
    w, value, _ = lbfgs.minimize(target, torch.zeros_like(x).flatten(1), steps=steps, tolerance=ACCURACY)
    return torch.where(column(torch.isfinite(value), x), target.images(w), x).clamp(*limits)


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
    The :math:`\nu` that minimises ``objective`` :math:`(x + \nu) + w \|\nu\|_1`.

    Proximal gradient descent (soft thresholding). The step size of a row is halved where it is too long; a row stops
    when no pixel moves by more than ``standstill``.

    :param torch.Tensor x: images, (n, C, H, W).
    :param torch.Tensor weight: w of each row, (n,).
    :param torch.Tensor step: initial step size of each row, (n,): at least the inverse curvature of the objective.
    :return: the deviation, (n, C, H, W), sparse.
    """
    found, rows, nu = torch.zeros_like(x), torch.arange(len(x), device=x.device), torch.zeros_like(x)
    value, gradient = value_and_gradient(objective, x)
    for _ in range(steps):
        for _ in range(HALVINGS):
            trial = nu - column(step, x) * gradient
            trial = trial.sign() * (trial.abs() - column(step * weight, x)).clamp(min=0)  # soft thresholding
            move = trial - nu
            trial_value, trial_gradient = value_and_gradient(objective, x + trial)
            bound = value + dot(gradient, move) + sum_of_squares(move) / (2 * step)
            good = trial_value <= bound + 1e-6 * value.abs()  # False for NaN
            if good.all():
                break
            step = torch.where(good, step, step / 2)
        mask = column(good, x)
        nu, gradient = torch.where(mask, trial, nu), torch.where(mask, trial_gradient, gradient)
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
    ``||A||^2`` of each image, (n,), to 1 %, by power iterations; ``energy`` maps images to ``||A x||^2``, (n,).

    deepinv's own computes one norm for the whole batch and draws from the global random state. The adjoint comes from
    autograd, so that ``A_adjoint`` may be missing or scaled differently.
    """
    rng = torch.Generator("cpu").manual_seed(0)
    probe = torch.randn(like.shape[1:], generator=rng, device="cpu", dtype=torch.float32).to(like).expand(like.shape)
    norm, moving = sum_of_squares(probe).sqrt(), torch.ones_like(like[:, 0, 0, 0], dtype=torch.bool)
    for _ in range(POWER_STEPS):
        _, image = value_and_gradient(lambda x: energy(x) / 2, probe / column(norm, probe))
        larger = sum_of_squares(image).sqrt().clamp(min=torch.finfo(like.dtype).tiny)
        still = (larger - norm).abs() > POWER_ACCURACY * larger
        norm, probe = torch.where(moving, larger, norm), torch.where(column(moving, probe), image, probe)
        moving = moving & still
        if not moving.any():
            break
    return norm


def filtered(v: Tensor, gain: Tensor) -> Tensor:
    """Images, (n, C, H, W), with their frequencies multiplied by a gain, (H, W) or for each image."""
    return torch.fft.ifft2(torch.fft.fft2(v) * gain).real


def value_and_gradient(objective: Values, x: Tensor) -> tuple[Tensor, Tensor]:
    """The values of images, (n,), and their gradients."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def _backtracking(
    objective: Penalised, x: Tensor, steps: int, standstill: float, limits: tuple[float, float]
) -> Tensor:
    """
    Gradient descent with a backtracking line search: a step without sufficient decrease is halved.

    After an accepted step, the size is that of Barzilai and Borwein (1988).
    """
    value, gradient = value_and_gradient(objective, x)
    # The first step reaches zero of a one-dimensional quadratic; its root mean square is between STANDSTILL and 1.
    slope = sum_of_squares(gradient).clamp(min=torch.finfo(x.dtype).tiny)
    unit = (x[0].numel() / slope).sqrt()
    step = torch.clamp(2 * value.abs() / slope, STANDSTILL * unit, unit)
    found, rows, moving = x.clone(), torch.arange(len(x), device=x.device), sum_of_squares(gradient) > 0
    for _ in range(max(1, steps - 1)):  # as many evaluations as with a given size
        if not moving.all():
            keep = moving.nonzero()[:, 0]
            rows, objective = rows[keep], objective.select(keep)
            x, gradient, value, step = (t[keep] for t in (x, gradient, value, step))
        if not len(rows):
            break
        trial = (x - column(step, x) * gradient).clamp(*limits)
        trial_value, trial_gradient = value_and_gradient(objective, trial)
        enough = trial_value <= value - DECREASE * dot(gradient, x - trial)
        move = trial - x
        moving = ~enough | (_rms(move) > standstill)
        curvature = dot(move, trial_gradient - gradient)
        longer = torch.where(curvature > 0, sum_of_squares(move) / curvature, 2 * step)
        mask = column(enough, x)
        x, gradient = torch.where(mask, trial, x), torch.where(mask, trial_gradient, gradient)
        value, step = torch.where(enough, trial_value, value), torch.where(enough, longer, step / 2)
        found[rows] = x
    return found


def _rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1).sqrt()
