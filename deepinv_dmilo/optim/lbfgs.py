"""Batched L-BFGS: each row has its own curvature pairs, step length and stopping; one evaluation a step for all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

# Sufficient decrease, and the bounds of a shortened step relative to the rejected one (Nocedal and Wright, Numerical
# Optimization, sections 3.1 and 3.5).
ARMIJO, SHORTEST, LONGEST = 1e-4, 0.1, 0.5
HISTORY, MAX_FAILURES = 10, 6  # curvature pairs; rejected steps in a row at which a row stops
FIRST_STEP = (1e-3, 1.0)  # bounds of the root mean square of the first step, for variables of order one: ours
CHECK_EVERY = 5  # steps between synchronisations with a GPU: ours


def steps_between_checks(like: Tensor) -> int:
    """After how many steps a solver looks whether rows have stopped, which a GPU has to be waited for."""
    return 1 if like.device.type == "cpu" else CHECK_EVERY


class RowwiseFunction(Protocol):
    """A function of each of n points."""

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points (n, d) to values (n,), of any sign, and gradients (n, d)."""

    def select(self, rows: Tensor) -> RowwiseFunction:
        """The same for some of the rows."""


def minimize(
    objective: RowwiseFunction,
    z: Tensor,  # (n, d)
    *,
    steps: int,
    tolerance: float = 0.0,
    unit: float | None = None,
    check_every: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Minimise a function of each row, from z of order one, by L-BFGS with a backtracking line search.

    Each step evaluates every unfinished row once, at its own trial point. With sufficient decrease, the row moves
    there and takes a new direction; otherwise its step is shortened by quadratic interpolation. A row stops when its
    gradient vanishes, when its value decreases by less than ``tolerance`` times ``unit`` (None: times the value), or
    after ``MAX_FAILURES`` rejected steps in a row. Rows that have stopped are not evaluated again; they are looked for
    every ``check_every`` steps (None: each step on a CPU, every ``CHECK_EVERY`` on other devices).

    :return: the points (n, d), their values (n,), and the numbers of evaluations (n,); z and infinity for rows without
        any finite value.
    """
    check_every = check_every or steps_between_checks(z)
    best_z, best_value = z.clone(), torch.full((len(z),), torch.inf, device=z.device, dtype=z.dtype)
    rows = torch.arange(len(z), device=z.device)
    taken = torch.zeros_like(rows)
    state = _State.start(z)
    for step in range(steps):
        if step % check_every == 0 and state.finished.any():
            keep = (~state.finished).nonzero()[:, 0]
            rows, state, objective = rows[keep], state.select(keep), objective.select(keep)
        if not len(rows):
            break
        value, gradient = (t.to(z) for t in objective.gradients(state.trial))  # a physics may use another dtype
        taken[rows] += 1
        state.move(value, gradient, tolerance, unit)
        best_z[rows], best_value[rows] = state.z, state.value
    return best_z, best_value, taken


@dataclass
class _State:
    """The state of n rows of d variables; the first dimension of every field is the row."""

    z: Tensor  # (n, d) current point
    value: Tensor  # (n,)
    gradient: Tensor  # (n, d)
    direction: Tensor  # (n, d)
    slope: Tensor  # (n,) directional derivative
    length: Tensor  # (n,) of the trial step
    failures: Tensor  # (n,) rejected steps in a row
    finished: Tensor  # (n,)
    s: Tensor  # (n, HISTORY, d) steps, latest first
    y: Tensor  # (n, HISTORY, d) gradient differences
    rho: Tensor  # (n, HISTORY) 1 / (s . y), 0 for empty places

    @classmethod
    def start(cls, z: Tensor) -> _State:
        """The first trial point is z itself, a step of length 0."""
        zero = z.new_zeros(len(z))
        pairs = z.new_zeros(len(z), HISTORY, z.shape[1])
        return cls(
            z=z,
            value=zero + torch.inf,
            gradient=torch.zeros_like(z),
            direction=torch.zeros_like(z),
            slope=zero,
            length=zero,
            failures=torch.zeros(len(z), dtype=torch.long, device=z.device),
            finished=torch.zeros(len(z), dtype=torch.bool, device=z.device),
            s=pairs,
            y=pairs,
            rho=z.new_zeros(len(z), HISTORY),
        )

    def select(self, keep: Tensor) -> _State:
        return _State(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    @property
    def trial(self) -> Tensor:
        return self.z + self.length[:, None] * self.direction

    def move(self, value: Tensor, gradient: Tensor, tolerance: float, unit: float | None) -> None:
        """Accept trial points with sufficient decrease; shorten the steps of the others."""
        accepted = ~self.finished & (value <= self.value + ARMIJO * self.length * self.slope)
        self.failures = torch.where(accepted, 0, self.failures + 1)
        stalled = accepted & (self.value - value < tolerance * (value.abs() if unit is None else unit))
        failed_length = self._shortened(value)
        self._remember(accepted, self.trial - self.z, gradient - self.gradient)
        self.z = torch.where(accepted[:, None], self.trial, self.z)
        self.value = torch.where(accepted, value, self.value)
        self.gradient = torch.where(accepted[:, None], gradient, self.gradient)
        self._aim(accepted)
        self.length = torch.where(accepted, 1.0, failed_length)
        self.finished = self.finished | (self.failures >= MAX_FAILURES) | stalled | (self.slope == 0)

    def _shortened(self, value: Tensor) -> Tensor:
        """The minimiser of the parabola through the value, the slope and the rejected value, within bounds."""
        excess = value - self.value - self.slope * self.length
        minimum = -self.slope * self.length.square() / (2 * excess)
        shortest, longest = SHORTEST * self.length, LONGEST * self.length
        return torch.where(torch.isfinite(minimum), minimum, shortest).clamp(shortest, longest)

    def _remember(self, accepted: Tensor, s: Tensor, y: Tensor) -> None:
        """Add the pairs of positive curvature and drop the oldest."""
        curvature = (s * y).sum(1)
        usable = accepted & (curvature > torch.finfo(s.dtype).eps * y.square().sum(1))
        column, cube = usable[:, None], usable[:, None, None]
        self.s = torch.where(cube, torch.cat((s[:, None], self.s[:, :-1]), 1), self.s)
        self.y = torch.where(cube, torch.cat((y[:, None], self.y[:, :-1]), 1), self.y)
        self.rho = torch.where(column, torch.cat((1 / curvature[:, None], self.rho[:, :-1]), 1), self.rho)

    def _aim(self, accepted: Tensor) -> None:
        """A new direction for accepted rows: the two-loop recursion; without pairs, the negative gradient."""
        energy = self.gradient.square().sum(1)
        r, alphas = self.gradient, []
        for s, y, rho in zip(self.s.unbind(1), self.y.unbind(1), self.rho.unbind(1), strict=True):
            alphas.append(rho * (s * r).sum(1))
            r = r - alphas[-1][:, None] * y
        rho, y = self.rho[:, 0], self.y[:, 0]
        scale = torch.where(rho > 0, 1 / (rho * y.square().sum(1)), self._first_step(energy))
        r = torch.where(energy > 0, scale, 0)[:, None] * r
        pairs = zip(self.s.unbind(1), self.y.unbind(1), self.rho.unbind(1), alphas, strict=True)
        for s, y, rho, alpha in reversed(list(pairs)):
            r = r + (alpha - rho * (y * r).sum(1))[:, None] * s
        self.direction = torch.where(accepted[:, None], -r, self.direction)
        self.slope = torch.where(accepted, -(r * self.gradient).sum(1), self.slope)

    def _first_step(self, energy: Tensor) -> Tensor:
        """The length along the gradient at which a linear model of the value is 0, within bounds."""
        shortest, longest = (bound * (self.z.shape[1] / energy).sqrt() for bound in FIRST_STEP)
        return torch.clamp(self.value.abs() / energy, shortest, longest)
