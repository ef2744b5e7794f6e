"""The contract of a schedule: it plans a call, starts the layers of a stage, and says what a layer minimises."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.optim.solvers import Variables
from deepinv_dmilo.posterior.facts import Facts
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem, Target
from deepinv_dmilo.priors.prior import Level, Prior


@dataclass(frozen=True)
class Budget:
    """
    What a sample of an image may cost.

    :param int passes: forward and backward passes of the network; None: as many as the steps of the solver come to.
    :param int solver_steps: of the solver for a problem; None: its share of the passes.
    """

    passes: int | None
    solver_steps: int | None

    def steps(self, problems: int) -> int:
        """Steps of the solver that each of so many problems may take."""
        if self.passes is None:
            return self.solver_steps or 0
        share = self.passes // problems
        return share if self.solver_steps is None else min(self.solver_steps, share)


class Finish(Protocol):
    """What is done with the images of the last stage."""

    def __call__(self, posterior: Posterior, x: Tensor, /) -> Tensor:
        """Images (n, C, H, W) to images."""


@dataclass(frozen=True)
class Stage:
    """
    An outer step.

    :param int index: its number among all that the schedule has, from 0.
    :param tuple[Level] levels: that the layers start and end at, from the noise to the image.
    :param int steps: of the solver for a layer, at most.
    :param bool is_first: whether it is the first that these images take.
    :param float image_error: standard deviation of the errors, in [0, 1], that DMILO-PGD's gradient steps before it
        take the image to have; None: they are free.
    :param tuple[Finish] finishing: what follows it.
    """

    index: int
    levels: tuple[Level, ...]
    steps: int
    is_first: bool = False
    image_error: float | None = None
    finishing: tuple[Finish, ...] = ()


@dataclass(frozen=True)
class Plan:
    """
    What is done for a group of images.

    :param str rule: the name of the rule that applies.
    :param tuple[Stage] stages: the outer steps.
    :param torch.Tensor first_image: where they start, (n, C, H, W).
    :param tuple[Facts] facts: of each image of the group; empty: none were asked for.
    :param tuple[str] first: how the first image was made.
    """

    rule: str
    stages: tuple[Stage, ...]
    first_image: Tensor = field(repr=False, compare=False)
    facts: tuple[Facts, ...] = ()
    first: tuple[str, ...] = ()

    @property
    def passes(self) -> int:
        """Forward and backward passes of the network for a sample, at most."""
        return sum(stage.steps * (len(stage.levels) - 1) for stage in self.stages)


@dataclass
class Layers:
    """The variables of every layer of a chain, the layer next to the noise first."""

    levels: tuple[Level, ...]
    variables: list[Variables]
    center: Tensor | None = None  # of the latents, (n, C, H, W)

    def forward(self, posterior: Posterior) -> Tensor:
        """The chain from its first latent with the deviations, every latent kept; returns its output."""
        z = self.variables[0]["latent"]
        for (a, b), v in zip(pairwise(self.levels), self.variables, strict=True):
            v["latent"] = z
            z = posterior.in_parts(lambda prior, part, a=a, b=b: prior.step(part, a, b), z)  # type: ignore[misc]
            z = z + v["deviation"] if "deviation" in v else z
        return z


@runtime_checkable
class Schedule(Protocol):
    """What the outer steps of a reconstructor do. :class:`Levels` and :class:`Chain` are two; yours is a third."""

    def least_problems(self, prior: Prior) -> int:
        """How many layer problems it cannot do without."""

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """The images in groups, each with what is done for it."""

    def likelihood(self, posterior: Posterior, stage: Stage, x: Tensor) -> Likelihood:
        """The likelihood at a stage; ``x`` are the images so far."""

    def after_descent(self, likelihood: Likelihood, x: Tensor) -> Likelihood:
        """The same once the gradient steps of DMILO-PGD took the images to ``x``."""

    def start(self, posterior: Posterior, stage: Stage, x: Tensor, layers: Layers | None) -> Layers:
        """The variables that a stage begins with; ``layers`` are those that the one before ended with."""

    def problem(self, posterior: Posterior, stage: Stage, layers: Layers, i: int, target: Target) -> Problem:
        """What layer i minimises."""
