"""Chains of layers from pure noise: what the outer steps do in the paper."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.data import Fit
from deepinv_dmilo.likelihood.observation import Observation
from deepinv_dmilo.methods.run import Run
from deepinv_dmilo.posterior.problem import Problem, Variables
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.utils.settings import check_settings


@dataclass
class State:
    """The variables of every layer of a chain, the layer next to the noise first, of the rows that take part."""

    levels: tuple[Level, ...]
    variables: list[Variables]
    center: Tensor | None = None  # of the latents, (n, C, H, W)

    def run(self, run: Run) -> Tensor:
        """The chain from its first latent with the deviations, every latent kept; returns its output."""
        z = self.variables[0]["latent"]
        for (a, b), v in zip(pairwise(self.levels), self.variables, strict=True):
            v["latent"] = z
            z = run.in_parts(lambda prior, part, a=a, b=b: prior.step(part, a, b), z)  # type: ignore[misc]
            z = z + v["deviation"] if "deviation" in v else z
        return z


@dataclass(frozen=True)
class Chain:
    r"""
    The paper's outer steps, each through the whole chain from pure noise, on the paper's objectives.

    :param int num_layers: layers N of the chain (paper: 3).
    :param int outer_steps: outer steps (paper: 5 or 10).
    :param float sparsity: weight :math:`\lambda` of the mean absolute deviation (paper: 0.1); None: no deviations.
    :param float latent_penalty: weight of the mean squared latent (authors' code: 1e-4).
    """

    num_layers: int = 3
    outer_steps: int = 5
    sparsity: float | None = 0.1
    latent_penalty: float = 1e-4

    def __post_init__(self) -> None:
        weights = {"latent_penalty": self.latent_penalty}
        if self.sparsity is not None:
            weights["sparsity"] = self.sparsity
        steps = {"num_layers": self.num_layers, "outer_steps": self.outer_steps}
        check_settings(steps=steps, rates={}, weights=weights)
        for name, weight in weights.items():
            object.__setattr__(self, name, float(weight))  # a fraction times a tensor is not known

    def chains(self, prior: Prior) -> list[tuple[Level, ...]]:
        """The same chain in every outer step."""
        return [prior.levels(self.num_layers)] * self.outer_steps

    def taken(self, run: Run, x: Tensor, chains: list[tuple[Level, ...]]) -> None:
        """All images take all outer steps."""

    def first_image(self, run: Run) -> Tensor:
        """Mid-grey; it is the first latent that is drawn, or given."""
        return run.grey()

    def start(self, run: Run, levels: tuple[Level, ...], x: Tensor, before: State | None) -> State:
        """Where the outer step before left off; the first from pure noise, run through the chain once."""
        if before is not None:
            return before
        z = run.first_latent(levels[0])
        with_deviation = {} if self.sparsity is None else {"deviation": torch.zeros_like(z)}
        state = State(levels, [{"latent": z, **with_deviation} for _ in levels[1:]])
        state.run(run)
        return state

    def variance(self, run: Run, x: Tensor, level: Level) -> None:
        """The paper asks for no noise."""

    def fit(self, observation: Observation, variance: Tensor | None) -> Fit:
        """The paper's mean square."""
        return observation.mean_squares()

    def fit_after(self, observation: Observation, variance: Tensor | None, x: Tensor) -> Fit:
        """DMILO-PGD fits the measurements of its iterate."""
        return observation.mean_squares(x)

    def pull(self, observation: Observation, variance: Tensor | None, level: Level) -> None:
        """The gradient steps are free."""

    def problem(self, run: Run, state: State, i: int, fit: Fit) -> Problem:
        """The problem of layer i."""
        pixels = state.variables[i]["latent"][0].numel()
        return Problem(
            run.prior.select(run.rows),
            state.levels[i : i + 2],
            fit,
            pull=self.latent_penalty / pixels,
            sparsity=(self.sparsity or 0.0) / pixels,
            gives_image=i == self.num_layers - 1,
            micro_batch=run.model.micro_batch,
            name=f"layer {i + 1} of {self.num_layers}",
        )

    def finish(self, run: Run, x: Tensor) -> Tensor:
        """Nothing is left to do."""
        return x
