"""A schedule of noise levels, from coarse to fine, one layer each: what the outer steps do by default."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood, NoiseModel
from deepinv_dmilo.posterior.facts import Facts, facts_of
from deepinv_dmilo.posterior.noise_estimation import with_noise_at
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem, Target
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.schedules.finishing import IMAGE_ERROR, PosteriorMean, SparseDeviation
from deepinv_dmilo.schedules.initial import first_images
from deepinv_dmilo.schedules.planning import RULES, Rule, active_levels, rule_for, starting_sigma
from deepinv_dmilo.schedules.schedule import Budget, Finish, Layers, Plan, Stage
from deepinv_dmilo.utils.settings import check_flags, check_settings

NO_ERROR = 1e-3  # in [0, 1], which steps leave where it is
# Of noise that nobody told: after a level it is what the image leaves unexplained, if that is less than the estimate,
# and such a part of the noise of the level at least (the image errs yet): ours.
CLOSENESS = 0.02


@dataclass(frozen=True)
class Levels:
    r"""
    Coarse to fine over noise levels, one layer and one outer step each: ours.

    Each level puts fresh noise on the image so far, :math:`z = a u + s \epsilon` (signal a, noise s), and solves

    .. math::

        \min_z \; -\log p(y \,|\, x(z)) + \frac{\|z - a u\|^2}{2 s^2},

    the maximum a posteriori estimate of z given the image so far: fitted to the noise, not below it.

    :param tuple[float] sigmas: standard deviations of the noise, for images in [0, 1]; None: those of the rule that
        applies (:doc:`/plans`), seven, or fifteen where parameters of the physics are unknown.
    :param bool skip: an image begins with the lowest level whose noise hides, at every spatial frequency, what its
        measurements leave open, and the noise that they bring in (ours; asks the physics alone), and its budget is
        shared by the levels from there on; False: with the first. Of many levels a small budget takes as many as it
        has five passes for, evenly.
    :param bool mean: after the last level, steps towards the measurements and one call of the network as a
        denoiser, which take the most probable image towards the mean of those that go with y (ours); not with a
        ``data_fidelity``, nor where the latents are those of an autoencoder.
    :param float deviation_threshold: after the last level the image may deviate sparsely from the prior, where the
        identity is measured by what is left above so many standard deviations of the noise (ours); None: not at all.
    :param tuple finishing: further steps after these, functions of the posterior and its images.
    :param tuple[Rule] rules: the first that applies to an image is its (:doc:`/plans`).
    """

    sigmas: tuple[float, ...] | None = None
    skip: bool = True
    mean: bool = True
    deviation_threshold: float | None = 5.0
    finishing: tuple[Finish, ...] = ()
    rules: tuple[Rule, ...] = field(default=RULES, repr=False)

    def __post_init__(self) -> None:
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", _falling(self.sigmas))
        if self.deviation_threshold is not None:
            check_settings(steps={}, rates={}, weights={"deviation_threshold": self.deviation_threshold})
            # a fraction times a tensor is not known
            object.__setattr__(self, "deviation_threshold", float(self.deviation_threshold))
        check_flags(skip=self.skip, mean=self.mean)

    def least_problems(self, prior: Prior) -> int:
        """One level."""
        return 1

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """By the rule of each image: images with equal plans go together."""
        groups = []
        for part, x, how in first_images(posterior):
            part = with_noise_at(part, x)
            facts = facts_of(part, x, with_error=self.skip)
            stages: dict[tuple[str, tuple[Stage, ...]], list[int]] = {}
            for image, of_image in enumerate(facts):
                stages.setdefault(self._stages(part, of_image, budget), []).append(image)
            for (rule, of_group), images in stages.items():
                chosen = torch.tensor(images, device=x.device)
                first = x.view(part.num_samples, -1, *x.shape[1:])[:, chosen].flatten(0, 1)
                plan = Plan(rule, of_group, first, tuple(facts[image] for image in images), how)
                groups.append((part.of_images(chosen), plan))
        return groups

    def _stages(self, posterior: Posterior, facts: Facts, budget: Budget) -> tuple[str, tuple[Stage, ...]]:
        """The name of the rule for an image, and its outer steps."""
        rule, last = rule_for(facts, self.rules), posterior.prior.levels(1)[-1]
        sigmas = self.sigmas or rule.sigmas
        levels = list(
            dict.fromkeys(posterior.prior.level(2 * sigma) for sigma in sigmas)
        )  # those that the prior tells apart
        start = 0
        if self.skip:
            needed = starting_sigma(facts, rule)
            start = max(0, sum(level.sigma >= needed for level in levels) - 1)
        active = active_levels(start, len(levels), rule, budget)
        steps = budget.steps(len(active))
        if rule.max_steps is not None and budget.solver_steps is None:
            steps = min(steps, rule.max_steps)
        stages = [
            Stage(k, (levels[k], last), steps, k == active[0], self._image_error(posterior, levels[k])) for k in active
        ]
        stages[-1] = replace(stages[-1], finishing=self._finishing(posterior, facts))
        return rule.name, tuple(stages)

    def _finishing(self, posterior: Posterior, facts: Facts) -> tuple[Finish, ...]:
        steps: list[Finish] = []
        if self.mean and posterior.likelihood.has_noise and posterior.prior.affine:
            steps.append(PosteriorMean(facts.well_determined))
        has_deviation = not isinstance(posterior.likelihood, NoiseModel) and not facts.blind
        if self.deviation_threshold is not None and has_deviation:
            steps.append(SparseDeviation(self.deviation_threshold))
        return (*steps, *self.finishing)

    @staticmethod
    def _image_error(posterior: Posterior, level: Level) -> float:
        """Half of the level's noise, or less; with outliers none, which the steps would follow."""
        return NO_ERROR if posterior.likelihood.has_outliers else min(IMAGE_ERROR, level.sigma / 2)

    def likelihood(self, posterior: Posterior, stage: Stage, x: Tensor) -> Likelihood:
        """That of the posterior, its noise simulated at x, or estimated: then it falls with the residual."""
        likelihood = posterior.likelihood
        if not isinstance(likelihood, Gaussian):
            return likelihood
        if likelihood.source != "estimated":
            return likelihood if stage.is_first else likelihood.simulated_at(x)
        variance, level = likelihood.variance, stage.levels[0]
        if not stage.is_first:
            variance = torch.minimum(likelihood.residual_variance(x), variance)
        least = (CLOSENESS * level.sigma) ** 2 * likelihood.squared_norm
        return replace(likelihood, variance=torch.maximum(variance, least))

    def after_descent(self, likelihood: Likelihood, x: Tensor) -> Likelihood:
        """The level fits y all the same."""
        return likelihood

    def start(self, posterior: Posterior, stage: Stage, x: Tensor, layers: Layers | None) -> Layers:
        """Fresh noise on the image so far."""
        if posterior.nuisance is not None:
            posterior.nuisance.loosen(posterior.rows)
        level, u = stage.levels[0], posterior.prior.encode(x)
        z = level.signal * u + level.noise * posterior.noise("level", stage.index)
        return Layers(stage.levels, [{"latent": z}], center=level.signal * u)

    def problem(self, posterior: Posterior, stage: Stage, layers: Layers, i: int, target: Target) -> Problem:
        """The target, and the distance of the latent to the image so far."""
        level, z = stage.levels[0], layers.variables[0]["latent"]
        return Problem(
            posterior.prior,
            layers.levels,
            target,
            penalty=1 / (2 * level.noise**2),
            center=layers.center,
            unit=z[0].numel() / 2,
            micro_batch=posterior.micro_batch,
            name="layer 1 of 1",
        )


def _falling(given: object) -> tuple[float, ...]:
    """Noise levels, checked."""
    if not isinstance(given, Iterable):
        raise TypeError(f"sigmas={given!r}: type a sequence of noise levels, Levels((1.0, 0.2)), or Levels() for ours")
    sigmas = tuple(given)
    if not sigmas:
        raise ValueError("sigmas is empty; type Levels() for ours, or schedule=Chain() for chains from pure noise")
    check_settings(steps={}, rates={f"sigmas[{i}]": s for i, s in enumerate(sigmas)}, weights={})
    if any(after >= before for before, after in pairwise(sigmas)):
        falling = tuple(sorted(set(sigmas), reverse=True))
        raise ValueError(f"sigmas={sigmas} go from coarse to fine; type {falling}")
    return sigmas
