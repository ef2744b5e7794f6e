"""The table of rules from which a schedule of levels plans: the first rule that applies to an image is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, isfinite, log2

import torch

from deepinv_dmilo.posterior.facts import Facts
from deepinv_dmilo.schedules.schedule import Budget

# The first level reaches at least these multiples of the LMMSE error and of the noise of the first image; measured in
# docs/lab-book/first-level.md.
COVER_ERROR, COVER_NOISE = 1.5, 2.0
# With decoupled stages: multiples of the error that the first level, and the first of these stages, reach; their number
# without a budget, share of the calls, and standard deviation of the last one. By trials.
COVER_REST, COVER_ALL = 0.75, 3.0
DECOUPLED, SHARE_DECOUPLED, LAST_DECOUPLED = 20, 1 / 3, 0.05
# Minimum number of passes per level.
PASSES_OF_A_LEVEL = 5
# Relative noise above which a blind problem counts as noisy; measured in docs/lab-book/blind.md.
MUCH_NOISE = 0.025

SEVEN = (5.0, 2.2, 1.0, 0.65, 0.37, 0.17, 0.055)
FIFTEEN = (5.0, 2.2, 1.0, 0.65, 0.5, 0.37, 0.3, 0.24, 0.2, 0.17, 0.14, 0.1, 0.08, 0.055, 0.04)
FIFTY_FIVE = tuple(0.2 * 0.2 ** (k / 39) for k in range(-15, 40))


@dataclass(frozen=True)
class Rule:
    """
    The noise levels and their budget for one class of problems.

    :param str name: of the class of problems.
    :param applies: function of the facts about an image: whether the rule applies to it.
    :param tuple[float] sigmas: standard deviations of the levels, in [0, 1], from coarse to fine.
    :param float most_to_cover: upper bound of the noise level, in [0, 1], that the first level must reach; the first
        level is the lowest at or above it.
    :param int max_levels: maximum number of levels.
    :param int max_steps: maximum number of solver steps per level; None: an equal share of the budget.
    :param str evidence: the measurement that the rule is based on.
    """

    name: str
    applies: Callable[[Facts], bool]
    sigmas: tuple[float, ...] = SEVEN
    most_to_cover: float = inf
    max_levels: int = 99
    max_steps: int | None = None
    evidence: str = ""


def hold(facts: Facts, *, names: tuple[str, ...], noise_above: float = -inf) -> bool:
    """Whether all named facts are true and the relative noise is above a bound."""
    return all(getattr(facts, name) for name in names) and not facts.relative_noise <= noise_above  # NaN, too


RULES = (
    Rule(
        "blind, camera, much noise",
        partial(hold, names=("blind", "open_boundary", "fully_observed"), noise_above=MUCH_NOISE),
        FIFTY_FIVE,
        most_to_cover=0.35,
        max_levels=10,
        max_steps=PASSES_OF_A_LEVEL,
        evidence="noise 0.05: 20 levels from 0.2 lose 1.4 dB (Gaussian); 40 lose 0.6 (Gaussian) and gain 0.4 (motion)",
    ),
    Rule(
        "blind, camera",
        partial(hold, names=("blind", "open_boundary", "fully_observed")),
        FIFTY_FIVE,
        most_to_cover=0.195,
        evidence="a higher start replaces the image, and the kernel adapts to it: motion blur 27.6 instead of 30.8 dB",
    ),
    Rule(
        "blind, camera, masked",
        partial(hold, names=("blind", "open_boundary")),
        FIFTY_FIVE,
        evidence="masked pixels need higher levels: unknown gain, 70 % missing, 19.8 dB with the bound, 24.9 without",
    ),
    Rule(
        "blind, much noise",
        partial(hold, names=("blind", "fully_observed"), noise_above=MUCH_NOISE),
        FIFTEEN,
        most_to_cover=0.35,
        max_levels=10,
        max_steps=PASSES_OF_A_LEVEL,
        evidence="more steps end at no blur: noise 0.05, Gaussian blur 23.4 instead of 26.9 dB, motion 24.4 and 28.6",
    ),
    Rule(
        "blind",
        partial(hold, names=("blind", "fully_observed")),
        FIFTEEN,
        most_to_cover=0.35,
        evidence="motion blur: up to 9 dB above five levels from 1.0, Gaussian blur: equal (trials, not kept)",
    ),
    Rule(
        "blind, masked",
        partial(hold, names=("blind",)),
        FIFTEEN,
        evidence="masked pixels need higher levels: unknown gain, 70 % missing, 19.8 dB with the bound, 24.9 without",
    ),
    Rule(
        "nonlinear",
        partial(hold, names=("nonlinear", "fully_observed")),
        most_to_cover=0.6,
        evidence="A linearised at the first image overstates the LMMSE error: docs/lab-book/levels.md",
    ),
    Rule(
        "linear, or masked",
        partial(hold, names=()),
        evidence="the best seven levels of those tried on ten problems: docs/lab-book/problems.md",
    ),
)


def rule_for(facts: Facts, rules: tuple[Rule, ...] = RULES) -> Rule:
    """The first rule that applies."""
    for rule in rules:
        if rule.applies(facts):
            return rule
    raise ValueError(f"no rule applies to {facts}; type rules=(..., *RULES)")


def sigma_to_cover(facts: Facts, rule: Rule, multiple: float = COVER_ERROR) -> float:
    """The noise level that the first level must reach: it hides the LMMSE error and the noise of the first image."""
    return min(max(multiple * facts.lmmse_error, COVER_NOISE * facts.image_noise), rule.most_to_cover)


def rounded_up(sigma: float) -> float:
    """A noise level rounded up to a half octave, so that images that differ little have equal plans."""
    return 2 ** (ceil(2 * log2(sigma)) / 2) if isfinite(sigma) else sigma


def decoupled_sigmas(first: float, count: int) -> list[float]:
    """The noise levels of decoupled stages, geometrically spaced, none above the first."""
    ratio = min(1.0, LAST_DECOUPLED / first)
    return [first * ratio ** (k / max(1, count - 1)) for k in range(count)]


def decoupled_calls(budget: Budget) -> int:
    """The number of decoupled stages that a budget affords."""
    return DECOUPLED if budget.calls is None else int(SHARE_DECOUPLED * budget.calls)


def active_levels(start: int, count: int, rule: Rule, budget: Budget) -> list[int]:
    """The indices of the levels that are used: evenly spaced from the start, as many as the budget affords."""
    affordable = count if budget.passes is None else max(1, budget.passes // PASSES_OF_A_LEVEL)
    most = min(affordable, rule.max_levels, count - start)
    if affordable == 1 or rule.max_levels == 1:
        return [count - 1]
    return sorted(set(torch.linspace(start, count - 1, most).round().long().tolist()))
