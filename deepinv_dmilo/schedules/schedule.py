"""The contract of a schedule: it plans a call, starts the layers of each stage and states their problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.optim.solvers import Variables
from deepinv_dmilo.posterior.facts import Facts
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem, Target
from deepinv_dmilo.priors.prior import Level

# Time of a forward and backward pass relative to a forward pass: with frozen weights 1.9 to 2.4 for the bundled priors
# (docs/lab-book/passes.md).
CALLS_OF_A_PASS = 2


@dataclass(frozen=True)
class Budget:
    """
    The budget of one sample of an image.

    :param int calls: forward passes of the network; a forward and backward pass counts as two. None: limited by the
        solver's steps alone.
    :param int solver_steps: solver steps for each layer problem; None: an equal share of the passes.
    """

    calls: int | None
    solver_steps: int | None

    @property
    def passes(self) -> int | None:
        """Forward and backward passes."""
        return None if self.calls is None else self.calls // CALLS_OF_A_PASS

    def less(self, calls: int) -> Budget:
        """What is left after some calls."""
        return self if self.calls is None else replace(self, calls=self.calls - calls)

    def steps(self, problems: int) -> int:
        """Solver steps for each of a number of layer problems."""
        if self.passes is None:
            return self.solver_steps or 0
        share = self.passes // problems
        return share if self.solver_steps is None else min(self.solver_steps, share)

    def check(self, given: str, problems: int, cost: int) -> None:
        """Refuse a budget, as given by a setting, of less than a pass, at a cost in its unit, per layer problem."""
        if self.steps(problems) < 1:
            raise ValueError(
                f"{given} is less than a pass per layer problem and sample; type at least {problems * cost}, or fewer "
                "layers, outer steps or samples"
            )


#: a finishing step: it maps the images of the last stage, (n, C, H, W), to images
Finish: TypeAlias = Callable[[Posterior, Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """
    One outer step.

    :param int index: number of the stage in the whole schedule, from 0.
    :param tuple[Level] levels: noise levels between the layers, from the noise to the image.
    :param int steps: maximum number of solver steps per layer.
    :param float image_error: standard deviation, in [0, 1], of the proximal term of DMILO-PGD's gradient steps; None:
        no proximal term.
    :param tuple finishing: finishing steps after it.
    :param bool decoupled: no layer is solved: the network is a denoiser, whose output a proximal step fits to y.
    :param int products: products with the Jacobian of the denoiser in a decoupled stage, each counted as a call.
    :param float kernel_sigma: noise level of the kernels of a blur, which a decoupled stage estimates before it draws
        images; None: it does not.
    :param bool fixed: solvers do not fit the nuisance parameters.
    """

    index: int
    levels: tuple[Level, ...]
    steps: int
    image_error: float | None = None
    finishing: tuple[Finish, ...] = ()
    decoupled: bool = False
    products: int = 0
    kernel_sigma: float | None = None
    fixed: bool = False


@dataclass(frozen=True)
class Plan:
    """
    The plan of a group of images.

    :param str rule: name of the rule that applies.
    :param tuple[Stage] stages: the outer steps.
    :param torch.Tensor first_image: the initial images in [0, 1], (n, C, H, W).
    :param tuple[Facts] facts: the facts about each image of the group; empty if the schedule uses none.
    :param tuple[str] first: how the initial images were made, for printing.
    :param str noise: where the noise level comes from, for printing.
    """

    rule: str
    stages: tuple[Stage, ...]
    first_image: Tensor = field(repr=False, compare=False)
    facts: tuple[Facts, ...] = ()
    first: tuple[str, ...] = ()
    noise: str = "not used"

    @property
    def passes(self) -> int:
        """Maximum number of forward and backward passes of the network per sample."""
        return sum(stage.steps * (len(stage.levels) - 1) for stage in self.stages)

    @property
    def calls(self) -> int:
        """Maximum number of forward passes per sample; a forward and backward pass counts as two."""
        return CALLS_OF_A_PASS * self.passes + sum(stage.decoupled * (1 + stage.products) for stage in self.stages)


@dataclass
class Layers:
    """The variables of each layer of a chain, from the noise to the image."""

    levels: tuple[Level, ...]
    variables: list[Variables]
    center: Tensor | None = None  # of the latents, (n, C, H, W)

    def forward(self, posterior: Posterior) -> Tensor:
        """Run the chain with the deviations from its first latent; updates every latent and returns the output."""
        z = self.variables[0]["latent"]
        for (a, b), v in zip(pairwise(self.levels), self.variables, strict=True):
            v["latent"] = z
            z = posterior.in_parts(lambda prior, part, a=a, b=b: prior.step(part, a, b), z)  # type: ignore[misc]
            z = z + v["deviation"] if "deviation" in v else z
        return z


class Planner(Protocol):
    """Plans the outer steps of a call."""

    #: whether the data term is a likelihood with a noise level; False: the paper's mean squares
    uses_likelihood: ClassVar[bool] = True
    #: whether ``init`` is the first latent of a chain; False: the first image
    starts_from_latent: ClassVar[bool] = False

    @property
    def least_problems(self) -> int:
        """Minimum number of layer problems, each of which needs a pass of the network."""
        return 1

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """The plan of each group of images."""


@runtime_checkable
class Schedule(Planner, Protocol):
    """The outer steps of a reconstructor. Your own inherits from it, as ``Levels`` and ``Chain`` do."""

    @property
    def sparsity(self) -> float | None:
        """Weight of the sparse deviations, which make the problems nonsmooth; None: no deviations."""
        return None

    def likelihood(self, posterior: Posterior, plan: Plan, stage: Stage, x: Tensor) -> Likelihood:
        """The likelihood at a stage of the plan, given the current images x; by default always the same."""
        return posterior.likelihood

    def after_descent(self, likelihood: Likelihood, x: Tensor) -> Likelihood:
        """The likelihood that the layers of DMILO-PGD fit after the gradient steps to x."""
        return likelihood

    def start(self, posterior: Posterior, stage: Stage, x: Tensor, layers: Layers | None) -> Layers:
        """The initial variables of a stage; ``layers`` are the final ones of the stage before."""

    def problem(self, posterior: Posterior, stage: Stage, layers: Layers, i: int, target: Target) -> Problem:
        """The optimisation problem of layer i."""
