"""Solvers of the problem of a layer: Adam, as published, and a batched L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from deepinv_dmilo.optim import lbfgs
from deepinv_dmilo.utils.rows import pack, unpack
from deepinv_dmilo.utils.settings import check_settings

SLOWER = "lower latent_lr (or lr, step_size), or use float32 weights"
FLOOR = "physics.A or its gradient may be infinite there: give a power or logarithm a floor, such as x.clamp(min=1e-3)"
STEPS_BETWEEN_CHECKS = 50  # of the objective; each one synchronises with a GPU
#: the paper's learning rate of the deviations
DEVIATION_LR = 1e-3

#: the variables of a problem by name, (n, ...) each: ``latent``, ``deviation``, ``unknown``
Variables: TypeAlias = "dict[str, Tensor]"


class Minimisable(Protocol):
    """An objective of each of n rows, such as the problem of a layer."""

    @property
    def unit(self) -> float | None:
        """Scale of the objective, for tolerances; None: the objective itself."""

    def gradients(self, v: Variables) -> tuple[Tensor, Variables]:
        """The objective of each row, (n,), and its gradients: one pass of the network."""

    def select(self, rows: Tensor) -> Minimisable:
        """The same for some of the rows."""


class Minimum(NamedTuple):
    """The result of a solver for each of n rows."""

    variables: Variables
    value: Tensor  # (n,) of the objective; with Adam before its last step
    passes: Tensor  # (n,) of the network


#: called before each step with the variables and the objectives, None where a solver does not have them
Watch = Callable[["Variables | None", "Tensor | None"], object]


@runtime_checkable
class Solver(Protocol):
    """Minimises the objective of each row."""

    @property
    def steps(self) -> int | None:
        """Passes for a problem; None: set by the reconstructor."""

    def __call__(self, problem: Minimisable, start: Variables, *, steps: int, watch: Watch) -> Minimum:
        """Minimise in at most ``steps`` passes of the network for each row."""


@dataclass(frozen=True)
class LBFGS:
    """
    A batched L-BFGS: each row has its own curvature pairs, step length and stopping.

    :param int steps: maximum number of passes for a problem, each of which counts as two calls; None: its share of
        ``max_calls``.
    :param float tolerance: a row stops when a step lowers its objective by less than this fraction of the scale of the
        objective: its change for one standard deviation of every unknown (with ``Chain``: the objective itself).
        Default ours.
    """

    steps: int | None = None
    tolerance: float = 2e-3

    def __post_init__(self) -> None:
        steps = {} if self.steps is None else {"steps": self.steps}
        check_settings(steps=steps, rates={}, weights={"tolerance": self.tolerance})

    def __call__(self, problem: Minimisable, start: Variables, *, steps: int, watch: Watch) -> Minimum:
        z, value, passes = lbfgs.minimize(
            _Flat(problem, start, watch), pack(start), steps=steps, tolerance=self.tolerance, unit=problem.unit
        )
        if not torch.isfinite(value).all():
            row = int((~torch.isfinite(value)).nonzero()[0])
            raise FloatingPointError(f"the objective of row {row} is nowhere finite, from the first step on; {FLOOR}")
        return Minimum(unpack(z, start), value, passes)


@dataclass(frozen=True)
class _Flat:
    """A problem whose variables, named and shaped like ``like``, are the columns of one matrix."""

    problem: Minimisable
    like: Variables
    watch: Watch

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.watch(None, None)
        value, gradients = self.problem.gradients(unpack(z, self.like))
        return value, pack({name: gradients[name] for name in self.like})

    def select(self, rows: Tensor) -> _Flat:
        return _Flat(self.problem.select(rows), self.like, self.watch)


@dataclass(frozen=True)
class Adam:
    """
    Adam with a fresh state, as published; it works entry by entry, so that rows are independent.

    :param int steps: number of passes for a problem (paper: 200 to 1000).
    :param float latent_lr: learning rate of the latents (paper: 8e-3 to 2e-2).
    :param float deviation_lr: learning rate of the deviations (paper and None: 1e-3).
    :param float unknown_lr: in blind problems, learning rate of the raw nuisance parameters (of a simplex: logarithms)
        as further variables next to the latent (DMPlug: ten times ``latent_lr``); None: they are optimised at every
        evaluation instead (variable projection).
    """

    steps: int = 200
    latent_lr: float = 2e-2
    deviation_lr: float | None = None
    unknown_lr: float | None = None

    def __post_init__(self) -> None:
        rates = {"latent_lr": self.latent_lr, "deviation_lr": self.deviation_lr, "unknown_lr": self.unknown_lr}
        given = {name: rate for name, rate in rates.items() if rate is not None}
        check_settings(steps={"steps": self.steps}, rates=given, weights={})

    def __call__(self, problem: Minimisable, start: Variables, *, steps: int, watch: Watch) -> Minimum:
        v = {name: t.clone() for name, t in start.items()}
        rates = {"latent": self.latent_lr, "deviation": self.deviation_lr or DEVIATION_LR, "unknown": self.unknown_lr}
        optimizer = torch.optim.Adam([{"params": [t], "lr": rates[name]} for name, t in v.items()])
        values: list[Tensor] = []
        for step in range(steps):
            value, gradients = problem.gradients(v)
            watch(v, value)
            values.append(value)
            if len(values) == STEPS_BETWEEN_CHECKS or step == steps - 1:
                check_finite(torch.stack(values), step + 1)
                values.clear()
            for name, t in v.items():
                t.grad = gradients[name]
            optimizer.step()
        for t in v.values():
            t.grad = None
        return Minimum(v, value, torch.full((len(value),), steps, device=value.device))


def check_finite(values: Tensor, step: int) -> None:
    """Check that the objectives of the k steps up to ``step``, (k, n), are finite."""
    bad = ~torch.isfinite(values)
    if bad.any():
        k, row = (int(i) for i in bad.nonzero()[0])
        raise FloatingPointError(
            f"the objective became {values[k, row].item()} in step {step - len(bad) + 1 + k} of row {row}; {SLOWER}"
        )
