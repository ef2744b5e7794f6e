"""Chains of layers from pure noise: what the outer steps do in the paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem, Target
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.schedules.schedule import Budget, Layers, Plan, Stage
from deepinv_dmilo.utils.settings import check_settings


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

    def least_problems(self, prior: Prior) -> int:
        """All layers of all outer steps."""
        return self.num_layers * self.outer_steps

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """The same outer step so many times, from mid-grey; it is the first latent that is drawn, or given."""
        levels = posterior.prior.levels(self.num_layers)
        steps = budget.steps(self.least_problems(posterior.prior))
        stages = tuple(Stage(k, levels, steps, k == 0) for k in range(self.outer_steps))
        return [(posterior, Plan("as published", stages, posterior.grey(), first=("mid-grey",)))]

    def likelihood(self, posterior: Posterior, stage: Stage, x: Tensor) -> Likelihood:
        """The paper's mean squares; it asks for no noise."""
        return posterior.likelihood

    def after_descent(self, likelihood: Likelihood, x: Tensor) -> Likelihood:
        """DMILO-PGD fits the measurements of its iterate."""
        return likelihood.of_clean(x)

    def start(self, posterior: Posterior, stage: Stage, x: Tensor, layers: Layers | None) -> Layers:
        """Where the outer step before left off; the first from pure noise, run through the chain once."""
        if layers is not None:
            return layers
        z = first_latent(posterior, stage.levels[0])
        deviation = {} if self.sparsity is None else {"deviation": torch.zeros_like(z)}
        layers = Layers(stage.levels, [{"latent": z, **deviation} for _ in stage.levels[1:]])
        layers.forward(posterior)
        return layers

    def problem(self, posterior: Posterior, stage: Stage, layers: Layers, i: int, target: Target) -> Problem:
        """The target of layer i, a small penalty on its latent and the sparse deviation."""
        pixels = layers.variables[i]["latent"][0].numel()
        return Problem(
            posterior.prior,
            layers.levels[i : i + 2],
            target,
            penalty=self.latent_penalty / pixels,
            sparsity=(self.sparsity or 0.0) / pixels,
            gives_image=i == self.num_layers - 1,
            micro_batch=posterior.micro_batch,
            name=f"layer {i + 1} of {self.num_layers}",
        )


def first_latent(posterior: Posterior, level: Level) -> Tensor:
    """Where a chain starts: what the caller gave, or pure noise."""
    return level.spread * posterior.noise("start") if posterior.init is None else posterior.init
