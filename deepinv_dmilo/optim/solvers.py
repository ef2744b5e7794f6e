"""What solves the problem of a layer: Adam, as published, and the batched L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from deepinv_dmilo.optim import lbfgs
from deepinv_dmilo.utils.settings import check_settings

SLOWER = "lower latent_lr (or lr, step_size), or use float32 weights"
FLOOR = "physics.A or its gradient may be infinite there: give a power or logarithm a floor, such as x.clamp(min=1e-3)"
STEPS_BETWEEN_CHECKS = 50  # of the objective: a look at the device costs a GPU its queue of work
#: the paper's learning rate of the deviations
DEVIATION_LR = 1e-3


#: what a problem is solved for, by name, the rows of a batch first: ``latent``, ``deviation``
Variables: TypeAlias = "dict[str, Tensor]"


class Minimisable(Protocol):
    """An objective of each of n rows, such as the problem of a layer."""

    @property
    def unit(self) -> float | None:
        """Change of the objective that counts as one; None: as large as the objective itself."""

    def gradients(self, v: Variables) -> tuple[Tensor, Variables]:
        """The objective of each row, (n,), and its gradients; one pass of the network."""

    def select(self, rows: Tensor) -> Minimisable:
        """The same for some of the rows."""


class Minimum(NamedTuple):
    """What a solver found for each of n rows."""

    variables: Variables
    value: Tensor  # (n,) the objective, with Adam before its last step
    passes: Tensor  # (n,) of the network


#: called at each step with the variables and the objectives before it, where a solver has them
Watch = Callable[["Variables | None", "Tensor | None"], object]


@runtime_checkable
class Solver(Protocol):
    """Minimises an objective from a start."""

    @property
    def steps(self) -> int | None:
        """Passes that a problem may take; None: what the reconstructor grants it."""

    def __call__(self, problem: Minimisable, start: Variables, *, steps: int, watch: Watch) -> Minimum:
        """At most ``steps`` passes of the network for a row."""


@dataclass(frozen=True)
class LBFGS:
    """
    A batched L-BFGS: every row has its own curvature, step length and end.

    :param int steps: passes that a problem may take; None: its share of ``max_passes``, or where that is not given
        either, of 100 for a sample (200 with unknown parameters).
    :param float tolerance: a row is done when a step lowers its objective by less than this fraction of what one
        standard deviation of every unknown is worth (with ``Chain``: of the objective itself). Default ours.
    """

    steps: int | None = None
    tolerance: float = 2e-3

    def __post_init__(self) -> None:
        steps = {} if self.steps is None else {"steps": self.steps}
        check_settings(steps=steps, rates={}, weights={"tolerance": self.tolerance})

    def __call__(self, problem: Minimisable, start: Variables, *, steps: int, watch: Watch) -> Minimum:
        flat = _Flat(problem, {name: t.shape[1:] for name, t in start.items()}, watch)
        z, value, passes = lbfgs.minimize(
            flat, flat.pack(start), steps=steps, tolerance=self.tolerance, unit=problem.unit
        )
        if not torch.isfinite(value).all():
            row = int((~torch.isfinite(value)).nonzero()[0])
            raise FloatingPointError(f"the objective of row {row} is nowhere finite, from the first step on; {FLOOR}")
        return Minimum(flat.unpack(z), value, passes)


@dataclass(frozen=True)
class _Flat:
    """A problem whose variables are the columns of one matrix."""

    problem: Minimisable
    shapes: dict[str, torch.Size]
    watch: Watch

    def pack(self, v: Variables) -> Tensor:
        """(n, ...) each, to (n, d)."""
        return torch.cat([v[name].flatten(1) for name in self.shapes], 1)

    def unpack(self, z: Tensor) -> Variables:
        """(n, d) to (n, ...) each."""
        columns = z.split([shape.numel() for shape in self.shapes.values()], 1)
        return {name: c.reshape(len(z), *self.shapes[name]) for name, c in zip(self.shapes, columns, strict=True)}

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.watch(None, None)
        value, gradients = self.problem.gradients(self.unpack(z))
        return value, self.pack(gradients)

    def select(self, rows: Tensor) -> _Flat:
        return _Flat(self.problem.select(rows), self.shapes, self.watch)


@dataclass(frozen=True)
class Adam:
    """
    Adam with a fresh state, as published: entry by entry, so that rows do not see one another.

    :param int steps: passes that a problem takes (paper: 200 to 1000).
    :param float latent_lr: learning rate of the latents (paper: 8e-3 to 2e-2).
    :param float deviation_lr: learning rate of the deviations (paper and None: 1e-3).
    """

    steps: int = 200
    latent_lr: float = 2e-2
    deviation_lr: float | None = None

    def __post_init__(self) -> None:
        rates = {"latent_lr": self.latent_lr, "deviation_lr": self.deviation_lr}
        given = {name: rate for name, rate in rates.items() if rate is not None}
        check_settings(steps={"steps": self.steps}, rates=given, weights={})

    def __call__(self, problem: Minimisable, start: Variables, *, steps: int, watch: Watch) -> Minimum:
        v = {name: t.clone() for name, t in start.items()}
        rates = {"latent": self.latent_lr, "deviation": self.deviation_lr or DEVIATION_LR}
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
    """Stop where objectives of the last steps, (k, n), are not finite; ``step`` is the last of them."""
    bad = ~torch.isfinite(values)
    if bad.any():
        k, row = (int(i) for i in bad.nonzero()[0])
        raise FloatingPointError(
            f"the objective became {values[k, row].item()} in step {step - len(bad) + 1 + k} of row {row}; {SLOWER}"
        )
