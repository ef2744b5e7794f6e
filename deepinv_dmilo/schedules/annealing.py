"""The noise levels of the sampler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.posterior.moments import CALLS_OF_A_LEVEL, PRODUCTS
from deepinv_dmilo.posterior.noise_estimation import with_noise_at
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.schedules.initial import first_images
from deepinv_dmilo.schedules.levels import check_falling, distinct_levels
from deepinv_dmilo.schedules.schedule import Budget, Plan, Planner, Stage

# Standard deviations of the first and the last level, in [0, 1]: ours.
FIRST, LAST = 5.0, 0.02
FEWEST = 5  # levels from which draws are approximate ones of the posterior; docs/calibration.md


@dataclass(frozen=True)
class Annealing(Planner):
    """
    Levels from coarse to fine, at each of which an image is drawn and noise is added for the next.

    :param tuple[float] sigmas: standard deviations of the noise, decreasing, for images in [0, 1]; None: from 5, or
        the most that the network knows, to 0.02, evenly spaced in their logarithm, as many as the budget affords.
    """

    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.sigmas is None:
            return
        if not isinstance(self.sigmas, Iterable):
            raise TypeError(f"sigmas={self.sigmas!r}: type at least {FEWEST} noise levels, or None for ours")
        sigmas = tuple(self.sigmas)
        if len(sigmas) < FEWEST:
            raise ValueError(f"sigmas has {len(sigmas)} levels; type at least {FEWEST}, or None for ours")
        object.__setattr__(self, "sigmas", check_falling(sigmas))

    def plan(self, posterior: Posterior, budget: Budget) -> list[tuple[Posterior, Plan]]:
        """The same levels for all images."""
        prior, last = posterior.prior, posterior.prior.levels(1)[-1]
        first = min(FIRST, prior.level(2 * FIRST).sigma)  # some networks know less noise
        count = (budget.calls or 0) // CALLS_OF_A_LEVEL
        levels = distinct_levels(prior, self.sigmas or _evenly_spaced(first, count))
        stages = tuple(Stage(k, (a, last), 0, decoupled=True, products=PRODUCTS) for k, a in enumerate(levels))
        groups = []
        for part, x, how in first_images(posterior):
            part = with_noise_at(part, x)
            groups.append((part, Plan("annealing", stages, x, (), how, part.likelihood.source or "noise model")))
        return groups

    def likelihood(self, posterior: Posterior, plan: Plan, stage: Stage, x: Tensor) -> Likelihood:
        """That of the posterior, with the noise simulated at x; an estimated noise level falls with the residual."""
        return posterior.likelihood if stage is plan.stages[0] else posterior.likelihood.at(x)


def _evenly_spaced(first: float, count: int) -> list[float]:
    """Noise levels from the first to the last, evenly spaced in their logarithm."""
    return [first * (LAST / first) ** (k / max(1, count - 1)) for k in range(count)]
