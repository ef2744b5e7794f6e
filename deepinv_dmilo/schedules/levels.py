"""The default schedule: noise levels from coarse to fine, with one layer each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.posterior.facts import Facts, facts_of
from deepinv_dmilo.posterior.noise_estimation import with_noise_at
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem, Target
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.schedules.blind_blur import LAST_SIGMAS, kernel_stages, shares_of
from deepinv_dmilo.schedules.finishing import IMAGE_ERROR, PosteriorMean, SparseDeviation
from deepinv_dmilo.schedules.initial import first_images
from deepinv_dmilo.schedules.planning import (
    COVER_ALL,
    COVER_ERROR,
    COVER_REST,
    RULES,
    Rule,
    active_levels,
    decoupled_calls,
    decoupled_sigmas,
    rounded_up,
    rule_for,
    sigma_to_cover,
)
from deepinv_dmilo.schedules.schedule import Budget, Finish, Layers, Plan, Schedule, Stage
from deepinv_dmilo.utils.settings import check_flags, check_settings

FIXED_IMAGE = 1e-3  # image error, in [0, 1], so small that the gradient steps of DMILO-PGD do not move the image
# Lower bound of an estimated noise level, as a fraction of the level of the stage, since the image still has errors.
CLOSENESS = 0.02


@dataclass(frozen=True)
class Levels(Schedule):
    r"""
    Noise levels from coarse to fine, with one layer and one outer step each: ours.

    Each level adds fresh noise to the current image, :math:`z = a u + s \epsilon` (signal a, noise s), and solves

    .. math::

        \min_z \; -\log p(y \,|\, x(z)) + \frac{\|z - a u\|^2}{2 s^2},

    the maximum a posteriori estimate of z given the current image, which fits y to its noise level and not below.

    :param tuple[float] sigmas: standard deviations of the noise, for images in [0, 1], from coarse to fine; None:
        those of the rule that applies (:doc:`/plans`): seven for most problems, 15 or 55 for blind ones.
    :param bool skip: start at the lowest level whose noise hides the LMMSE error, at every spatial frequency, and the
        noise of the first image (ours; needs evaluations of the physics alone); False: start at the first level. The
        budget is shared by the levels from there on; a small budget takes a subset of them with at least five passes
        each.
    :param bool decoupled: begin with stages without gradients of the network, for a third of the budget: denoise, a
        proximal step on the likelihood, fresh noise :footcite:p:`zhu2023diffpir`. In the proximal step, the error of
        the denoised image has the spectrum of natural images, up to the noise level (ours). An error with
        ``unknown``; none are planned with a latent prior, whose noise is not that of pixels. What it gains and loses is
        in :doc:`/lab-book/decoupled`.
    :param bool mean: after the last level, move from the most probable image towards the posterior mean, by a proximal
        step on the measurements and one network call as a denoiser (ours); not with a ``data_fidelity`` or a latent
        prior.
    :param float deviation_threshold: after the last level, add a sparse deviation from the prior where the gradient of
        the negative log-likelihood exceeds this many standard deviations of its noise (ours); None: no deviation.
    :param tuple finishing: further finishing steps, functions of the posterior and the images.
    :param tuple[Rule] rules: rules for the plan; the first that applies to an image is used; end with ``*RULES``
        (:doc:`/plans`). Their limits hold for your own ``sigmas``, too.
    """

    sigmas: tuple[float, ...] | None = None
    skip: bool = True
    decoupled: bool = False
    mean: bool = True
    deviation_threshold: float | None = 5.0
    finishing: tuple[Finish, ...] = ()
    rules: tuple[Rule, ...] = field(default_factory=lambda: RULES, repr=False)

    def __post_init__(self) -> None:
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", check_falling(self.sigmas))
        if self.deviation_threshold is not None:
            check_settings(steps={}, rates={}, weights={"deviation_threshold": self.deviation_threshold})
            # torch cannot multiply by a Fraction
            object.__setattr__(self, "deviation_threshold", float(self.deviation_threshold))
        check_flags(skip=self.skip, decoupled=self.decoupled, mean=self.mean)
        if self.decoupled and not self.skip:
            raise ValueError("decoupled=True needs the LMMSE error, which skip=False leaves out; type one of them")
        for name in ("finishing", "rules"):
            if not isinstance(getattr(self, name), tuple):
                raise TypeError(f"{name}={getattr(self, name)!r}: type a tuple, {name}=(one, another)")

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """Each image has the plan of its rule; images with equal plans form a group."""
        groups = []
        for part, x, how in first_images(posterior):
            part = with_noise_at(part, x)
            facts = facts_of(part, x, with_error=self.skip)
            plans = [self._stages(part, of_image, budget) for of_image in facts]
            distinct = [plan for k, plan in enumerate(plans) if plan not in plans[:k]]
            for rule, stages in distinct:
                images = [image for image, plan in enumerate(plans) if plan == (rule, stages)]
                rows = part.rows_of(torch.tensor(images, device=x.device))
                of_images = tuple(facts[image] for image in images)
                plan = Plan(rule, stages, x[rows], of_images, how, part.likelihood.source or "noise model")
                groups.append((part.select(rows), plan))
        return groups

    def _stages(self, posterior: Posterior, facts: Facts, budget: Budget) -> tuple[str, tuple[Stage, ...]]:
        """The name of the rule for an image, and its stages."""
        rule, last = rule_for(facts, self.rules), posterior.prior.levels(1)[-1]
        sigmas = self.sigmas or rule.sigmas
        levels = distinct_levels(posterior.prior, sigmas)
        coarse: tuple[Level, ...] = ()
        start = 0
        if self.skip:
            coarse = self._decoupled(posterior.prior, levels, facts, rule, budget)
            budget = budget.less(len(coarse))
            start = _lowest(levels, sigma_to_cover(facts, rule, COVER_REST if coarse else COVER_ERROR))
        shares = shares_of(posterior, facts, budget)
        budget = shares.search if shares else budget
        active = active_levels(start, len(levels), rule, budget)
        steps = budget.steps(len(active))
        if rule.max_steps is not None and budget.solver_steps is None:
            steps = min(steps, rule.max_steps)
        is_fixed = posterior.likelihood.has_outliers  # which gradient steps would fit
        errors = [FIXED_IMAGE if is_fixed else min(IMAGE_ERROR, level.sigma / 2) for level in levels]
        stages = [Stage(k, (level, last), 0, decoupled=True) for k, level in enumerate(coarse)]
        stages += [Stage(len(coarse) + k, (levels[k], last), steps, errors[k]) for k in active]
        if shares:
            stages += kernel_stages(posterior.prior, shares, len(coarse) + len(levels))
            of_known = distinct_levels(posterior.prior, LAST_SIGMAS)
            steps, index = shares.last.steps(len(of_known)), stages[-1].index + 1
            stages += [
                Stage(index + k, (level, last), steps, min(IMAGE_ERROR, level.sigma / 2), fixed=True)
                for k, level in enumerate(of_known)
            ]
        stages[-1] = replace(stages[-1], finishing=self._finishing(posterior, facts))
        return rule.name, tuple(stages)

    def _decoupled(
        self, prior: Prior, levels: tuple[Level, ...], facts: Facts, rule: Rule, budget: Budget
    ) -> tuple[Level, ...]:
        """The levels of the decoupled stages; none with a latent prior, or where the last level hides the error."""
        if not self.decoupled or not prior.affine:
            return ()
        first = min(rounded_up(sigma_to_cover(facts, rule, COVER_ALL)), rule.most_to_cover, levels[0].sigma)
        if first <= levels[-1].sigma:
            return ()
        return distinct_levels(prior, decoupled_sigmas(first, decoupled_calls(budget)))

    def _finishing(self, posterior: Posterior, facts: Facts) -> tuple[Finish, ...]:
        steps: list[Finish] = []
        if self.mean and posterior.likelihood.has_noise and posterior.prior.affine:
            steps.append(PosteriorMean(facts.well_determined))
        has_deviation = posterior.likelihood.allows_deviation and not facts.blind
        if self.deviation_threshold is not None and has_deviation:
            steps.append(SparseDeviation(self.deviation_threshold))
        return (*steps, *self.finishing)

    def likelihood(self, posterior: Posterior, plan: Plan, stage: Stage, x: Tensor) -> Likelihood:
        """That of the posterior, with the noise simulated at x; an estimated noise level falls with the residual."""
        is_first = stage is plan.stages[0]
        likelihood = posterior.likelihood if is_first else posterior.likelihood.at(x)
        return likelihood.at_least(CLOSENESS * stage.levels[0].sigma)

    def start(self, posterior: Posterior, stage: Stage, x: Tensor, layers: Layers | None) -> Layers:
        """The current image with fresh noise."""
        if posterior.nuisance is not None and not stage.fixed:
            posterior.nuisance.loosen(posterior.rows)
        level, u = stage.levels[0], posterior.prior.encode(x)
        noise = posterior.prior.starting_noise(posterior.noise("level", stage.index))
        z = level.signal * u + level.noise * noise
        return Layers(stage.levels, [{"latent": z}], center=level.signal * u)

    def problem(self, posterior: Posterior, stage: Stage, layers: Layers, i: int, target: Target) -> Problem:
        """The data term, and the squared distance of the latent from the current image."""
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


def distinct_levels(prior: Prior, sigmas: Iterable[float]) -> tuple[Level, ...]:
    """The levels of a prior nearest to noise levels for images in [0, 1], without duplicates."""
    return tuple(dict.fromkeys(prior.level(2 * sigma) for sigma in sigmas))


def _lowest(levels: tuple[Level, ...], sigma: float) -> int:
    """The index of the lowest level at or above a noise level; of the first if there is none."""
    return max(0, sum(level.sigma >= sigma for level in levels) - 1)


def check_falling(given: object) -> tuple[float, ...]:
    """Check that noise levels are positive and decrease."""
    if not isinstance(given, Iterable):
        raise TypeError(f"sigmas={given!r}: type a sequence of noise levels, Levels((1.0, 0.2)), or Levels() for ours")
    sigmas = tuple(given)
    if not sigmas:
        raise ValueError("sigmas is empty; type Levels() for ours, or schedule=Chain() for chains from pure noise")
    check_settings(steps={}, rates={f"sigmas[{i}]": s for i, s in enumerate(sigmas)}, weights={})
    if any(after >= before for before, after in pairwise(sigmas)):
        falling = tuple(sorted(set(sigmas), reverse=True))
        raise ValueError(f"sigmas={sigmas} must decrease; type {falling}")
    return sigmas
