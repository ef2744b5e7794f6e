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
    """
    The parts of a budget; None: the unknown is no ``BlurKernel``.

    :raises ValueError: the noise has no standard deviation, pixels are masked or latents none, the budget is too small.
    """
    likelihood, nuisance = posterior.likelihood, posterior.nuisance
    if nuisance is None or not nuisance.is_blur:
        return None
    if not facts.fully_observed or not likelihood.has_noise or likelihood.forward.units.relative:
        raise ValueError(
            "BlurKernel needs noise of one standard deviation and no masked pixels: type noise_level=..., or "
            "Simplex(kernel)"
        )
    if not posterior.prior.affine:
        raise ValueError("BlurKernel needs a prior of pixels, not of latents; type Simplex(kernel)")
    if budget.calls is None:
        return Shares(budget, MOST_LEVELS, budget)
    levels = min(MOST_LEVELS, (budget.calls - SEARCH_CALLS - LEAST_LAST_CALLS) // CALLS_OF_A_LEVEL)
    if levels < FEWEST_LEVELS:
        least = SEARCH_CALLS + FEWEST_LEVELS * CALLS_OF_A_LEVEL + LEAST_LAST_CALLS
        raise ValueError(
            f"BlurKernel needs {least} calls a sample and has {budget.calls}; type max_calls={least} times "
            "num_samples, or Simplex(kernel)"
        )
    last = budget.less(SEARCH_CALLS + levels * CALLS_OF_A_LEVEL)
    return Shares(replace(budget, calls=SEARCH_CALLS), levels, last)


def kernel_stages(prior: Prior, shares: Shares, index: int) -> list[Stage]:
    """The stages that estimate the kernel; ``index`` is that of the first."""
    last, stages = prior.levels(1)[-1], []
    for k in range(shares.levels):
        sigma, kernel_sigma = (a * (b / a) ** (k / max(1, shares.levels - 1)) for a, b in (IMAGE_SIGMAS, KERNEL_SIGMAS))
        of_kernel = Stage(index + k, (prior.level(2 * sigma), last), 0, kernel_sigma=kernel_sigma)
        stages.append(replace(of_kernel, decoupled=True, products=PRODUCTS, fixed=True))
    return stages
