"""The plan of a schedule of levels: a table of rules, the first that applies to the facts of an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import torch

from deepinv_dmilo.posterior.facts import Facts
from deepinv_dmilo.schedules.schedule import Budget

# An image begins with the lowest level that is so many times what its measurements leave open, and so many times the
# noise that they bring in at least, which is in the first image; measured in docs/defaults.md.
COVER_ERROR, COVER_NOISE = 1.5, 2.0
# Passes that a level is worth taking for, at least.
PASSES_OF_A_LEVEL = 5
# Noise above which a blind problem has much of it, over y (root mean squares); measured in docs/defaults.md.
MUCH_NOISE = 0.025

SEVEN = (5.0, 2.2, 1.0, 0.65, 0.37, 0.17, 0.055)
FIFTEEN = (5.0, 2.2, 1.0, 0.65, 0.5, 0.37, 0.3, 0.24, 0.2, 0.17, 0.14, 0.1, 0.08, 0.055, 0.04)
FIFTY_FIVE = tuple(0.2 * 0.2 ** (k / 39) for k in range(-15, 40))


@dataclass(frozen=True)
class Rule:
    """
    What is done for images of some facts.

    :param str name: what they are.
    :param applies: of the facts of an image, whether it is for it.
    :param tuple[float] sigmas: standard deviations of the levels, in [0, 1], from coarse to fine.
    :param float start_below: the level that an image begins with is the lowest of at least so much, or lower.
    :param int max_levels: levels that it takes at most.
    :param int max_steps: steps of the solver that a level takes at most; None: its share of the budget.
    :param str evidence: what was measured.
    """

    name: str
    applies: Callable[[Facts], bool]
    sigmas: tuple[float, ...] = SEVEN
    start_below: float = inf
    max_levels: int = 99
    max_steps: int | None = None
    evidence: str = ""


def hold(facts: Facts, *, names: tuple[str, ...], noise_above: float = -inf) -> bool:
    """Whether all facts of these names hold, and the relative noise is above so much."""
    return all(getattr(facts, name) for name in names) and not facts.relative_noise <= noise_above


RULES = (
    Rule(
        "blind, camera, much noise",
        partial(hold, names=("blind", "open_boundary", "fully_observed"), noise_above=MUCH_NOISE),
        FIFTY_FIVE,
        start_below=0.35,
        max_levels=10,
        max_steps=PASSES_OF_A_LEVEL,
        evidence="more steps lead to a smooth image and no blur, which explain y too; 40 levels lose 0.6 dB",
    ),
    Rule(
        "blind, camera",
        partial(hold, names=("blind", "open_boundary", "fully_observed")),
        FIFTY_FIVE,
        start_below=0.195,
        evidence="from above the image is made anew and the kernel explains it: motion blur 27.6 in place of 30.8 dB",
    ),
    Rule(
        "blind, camera, masked",
        partial(hold, names=("blind", "open_boundary")),
        FIFTY_FIVE,
        evidence="masked pixels need the levels above: 19.8 in place of 24.9 dB with 70 % missing",
    ),
    Rule(
        "blind, much noise",
        partial(hold, names=("blind", "fully_observed"), noise_above=MUCH_NOISE),
        FIFTEEN,
        start_below=0.35,
        max_levels=10,
        max_steps=PASSES_OF_A_LEVEL,
        evidence="as above: at 0.05 Gaussian blur 23.4 in place of 26.9 dB, motion blur 24.4 in place of 28.6",
    ),
    Rule(
        "blind",
        partial(hold, names=("blind", "fully_observed")),
        FIFTEEN,
        start_below=0.35,
        evidence="images and parameters take turns more often than on seven levels: 9 dB for motion blur (trials)",
    ),
    Rule(
        "blind, masked",
        partial(hold, names=("blind",)),
        FIFTEEN,
        evidence="as above",
    ),
    Rule(
        "nonlinear",
        partial(hold, names=("nonlinear", "fully_observed")),
        start_below=0.6,
        evidence="the slope of A at the first image says that more is open than is: docs/defaults.md",
    ),
    Rule(
        "linear, or masked",
        partial(hold, names=()),
        evidence="seven levels, the best of those tried on ten problems: docs/defaults.md",
    ),
)


def rule_for(facts: Facts, rules: tuple[Rule, ...] = RULES) -> Rule:
    """The first that applies."""
    return next(rule for rule in rules if rule.applies(facts))


def starting_sigma(facts: Facts, rule: Rule) -> float:
    """The noise that hides what the measurements of an image leave open, and the noise that they bring in."""
    return min(max(COVER_ERROR * facts.lmmse_error, COVER_NOISE * facts.image_noise), rule.start_below)


def active_levels(start: int, count: int, rule: Rule, budget: Budget) -> list[int]:
    """Which of so many levels an image takes: evenly from where it begins, as many as the budget is worth."""
    affordable = count if budget.passes is None else max(1, budget.passes // PASSES_OF_A_LEVEL)
    most = min(affordable, rule.max_levels, count - start)
    if affordable == 1 or rule.max_levels == 1:
        return [count - 1]
    return sorted(set(torch.linspace(start, count - 1, most).round().long().tolist()))
