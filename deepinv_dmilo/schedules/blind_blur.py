"""The stages of an unknown blur after the search: its kernel by a chain of its own, then the image with it fixed."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from deepinv_dmilo.posterior.facts import Facts
from deepinv_dmilo.posterior.moments import CALLS_OF_A_LEVEL, PRODUCTS
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.schedules.schedule import Budget, Stage

# Noise levels of images, and of images of kernels, both in [0, 1], in the stages that estimate the kernel, and the
# levels that follow; measured in docs/lab-book/blind.md.
IMAGE_SIGMAS, KERNEL_SIGMAS, LAST_SIGMAS = (0.35, 0.02), (0.7, 0.1), (0.37, 0.17, 0.055)
# Their numbers, and the calls of the search, of which more end in worse minima, and at least of the last levels.
MOST_LEVELS, FEWEST_LEVELS = 20, 10
SEARCH_CALLS, LEAST_LAST_CALLS = 50, 50


class Shares(NamedTuple):
    """
    The parts of a budget.

    :param Budget search: of the levels at which the kernel explains y.
    :param int levels: number of the stages that estimate the kernel.
    :param Budget last: of the levels with the kernel fixed.
    """

    search: Budget
    levels: int
    last: Budget


def shares_of(posterior: Posterior, facts: Facts, budget: Budget) -> Shares | None:
    """The parts of a budget; None: the unknown is no kernel of a blur, or the budget is too small."""
    likelihood, nuisance = posterior.likelihood, posterior.nuisance
    is_blur = nuisance is not None and nuisance.is_blur and facts.fully_observed
    if not is_blur or not likelihood.has_noise or not posterior.prior.affine or likelihood.forward.units.relative:
        return None
    if budget.calls is None:  # the solver's steps are the caller's own
        return None
    levels = min(MOST_LEVELS, (budget.calls - SEARCH_CALLS - LEAST_LAST_CALLS) // CALLS_OF_A_LEVEL)
    last = budget.less(SEARCH_CALLS + levels * CALLS_OF_A_LEVEL)
    return None if levels < FEWEST_LEVELS else Shares(replace(budget, calls=SEARCH_CALLS), levels, last)


def kernel_stages(prior: Prior, shares: Shares, index: int) -> list[Stage]:
    """The stages that estimate the kernel; ``index`` is that of the first."""
    last, stages = prior.levels(1)[-1], []
    for k in range(shares.levels):
        sigma, kernel_sigma = (a * (b / a) ** (k / max(1, shares.levels - 1)) for a, b in (IMAGE_SIGMAS, KERNEL_SIGMAS))
        of_kernel = Stage(index + k, (prior.level(2 * sigma), last), 0, kernel_sigma=kernel_sigma)
        stages.append(replace(of_kernel, decoupled=True, products=PRODUCTS, fixed=True))
    return stages
