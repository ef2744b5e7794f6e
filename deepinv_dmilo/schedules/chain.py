"""The schedule of the paper: every outer step optimises a whole chain of layers that starts from pure noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.observe import GUESSED_NOISE
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem, Target
from deepinv_dmilo.priors.prior import Level
from deepinv_dmilo.schedules.schedule import Budget, Layers, Plan, Schedule, Stage
from deepinv_dmilo.utils.settings import check_settings

# Weight of the energy of a prior beside four mean squares, times the number of pixels: what makes them the negative
# log-likelihood of noise of this standard deviation.
ENERGY = 8 * GUESSED_NOISE**2


@dataclass(frozen=True)
class Chain(Schedule):
    r"""
    The outer steps of the paper: each optimises the whole chain from pure noise, with the paper's objectives.

    :param int num_layers: layers N of the chain (paper: 3).
    :param int outer_steps: outer steps (paper: 5 or 10).
    :param float sparsity: weight :math:`\lambda` of the mean absolute deviation (paper: 0.1); None: no deviations.
    :param float latent_penalty: weight of the mean squared latent (authors' code: 1e-4).
    """

    uses_likelihood = False
    starts_from_latent = True

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
            object.__setattr__(self, name, float(weight))  # torch cannot multiply by a Fraction

    @property
    def least_problems(self) -> int:
        """All layers of all outer steps."""
        return self.num_layers * self.outer_steps

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """One group and equal outer steps. The first image is mid-grey; the first latent is drawn, or ``init``."""
        levels, steps = posterior.prior.levels(self.num_layers), budget.steps(self.least_problems)
        stages = tuple(Stage(k, levels, steps) for k in range(self.outer_steps))
        return [(posterior, Plan("as published", stages, posterior.grey(), first=("mid-grey",)))]

    def after_descent(self, likelihood: Likelihood, x: Tensor) -> Likelihood:
        """The layers of DMILO-PGD fit A(x) instead of y."""
        return likelihood.of_clean(x)

    def start(self, posterior: Posterior, stage: Stage, x: Tensor, layers: Layers | None) -> Layers:
        """The final variables of the stage before; at first pure noise, run through the chain once."""
        if layers is not None:
            return layers
        z = first_latent(posterior, stage.levels[0])
        deviation = {} if self.sparsity is None else {"deviation": torch.zeros_like(z)}
        layers = Layers(stage.levels, [{"latent": z, **deviation} for _ in stage.levels[1:]])
        layers.forward(posterior)
        return layers

    def problem(self, posterior: Posterior, stage: Stage, layers: Layers, i: int, target: Target) -> Problem:
        """The data term of layer i, a small penalty on its latent and the sparse deviation."""
        pixels = layers.variables[i]["latent"][0].numel()
        return Problem(
            posterior.prior,
            layers.levels[i : i + 2],
            target,
            penalty=self.latent_penalty / pixels,
            sparsity=(self.sparsity or 0.0) / pixels,
            gives_image=i == self.num_layers - 1,
            energy=ENERGY / pixels,
            micro_batch=posterior.micro_batch,
            name=f"layer {i + 1} of {self.num_layers}",
        )


def first_latent(posterior: Posterior, level: Level) -> Tensor:
    """The start of a chain: ``init``, or pure noise."""
    if posterior.init is not None:
        return posterior.init
    return level.spread * posterior.prior.starting_noise(posterior.noise("start"))
