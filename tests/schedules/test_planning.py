"""The table of rules: what the facts of an image lead to."""

import pytest

from deepinv_dmilo.posterior.facts import Facts
from deepinv_dmilo.schedules.planning import FIFTEEN, FIFTY_FIVE, RULES, SEVEN, Rule, active_levels, rule_for
from deepinv_dmilo.schedules.planning import sigma_to_cover as start_of
from deepinv_dmilo.schedules.schedule import Budget

PLAIN = {
    "linear": True,
    "blind": False,
    "open_boundary": False,
    "fully_observed": True,
    "gaussian": True,
    "relative_noise": 0.01,
    "image_noise": 0.01,
    "lmmse_error": 0.1,
    "well_determined": False,
}
BLIND = {"linear": False, "blind": True}
CAMERA = {**BLIND, "open_boundary": True}
NOISY, MASKED = {"relative_noise": 0.026}, {"fully_observed": False}


def facts(**others):
    return Facts(**{**PLAIN, **others})


@pytest.mark.parametrize(
    ("name", "of_image"),
    [
        ("blind, camera, much noise", {**CAMERA, **NOISY}),
        ("blind, camera", CAMERA),
        ("blind, camera", {**CAMERA, "relative_noise": 0.025}),
        ("blind, camera, masked", {**CAMERA, **MASKED}),
        ("blind, camera, masked", {**CAMERA, **MASKED, **NOISY}),
        ("blind, much noise", {**BLIND, **NOISY}),
        ("blind", BLIND),
        ("blind, masked", {**BLIND, **MASKED, **NOISY}),
        ("nonlinear", {"linear": False}),
        ("nonlinear", {"linear": False, **NOISY}),
        ("linear, or masked", {}),
        ("linear, or masked", {**MASKED, **NOISY}),
        ("linear, or masked", {"linear": False, **MASKED}),
    ],
)
def test_the_first_rule_that_applies(name, of_image):
    assert rule_for(facts(**of_image)).name == name


@pytest.mark.parametrize(
    ("name", "sigmas", "most_to_cover", "max_levels", "max_steps"),
    [
        ("blind, camera, much noise", FIFTY_FIVE, 0.35, 10, 5),
        ("blind, camera", FIFTY_FIVE, 0.195, 99, None),
        ("blind, camera, masked", FIFTY_FIVE, float("inf"), 99, None),
        ("blind, much noise", FIFTEEN, 0.35, 10, 5),
        ("blind", FIFTEEN, 0.35, 99, None),
        ("blind, masked", FIFTEEN, float("inf"), 99, None),
        ("nonlinear", SEVEN, 0.6, 99, None),
        ("linear, or masked", SEVEN, float("inf"), 99, None),
    ],
)
def test_what_a_rule_says(name, sigmas, most_to_cover, max_levels, max_steps):
    assert [rule.name for rule in RULES].count(name) == 1
    assert len(RULES) == 8
    (rule,) = (rule for rule in RULES if rule.name == name)
    assert (rule.sigmas, rule.most_to_cover, rule.max_levels, rule.max_steps) == (
        sigmas,
        most_to_cover,
        max_levels,
        max_steps,
    )
    assert rule.evidence


def test_the_noise_that_an_image_begins_with_hides_what_is_open_and_what_noise_brings_in():
    plain = Rule("any", lambda f: True)
    assert start_of(facts(lmmse_error=0.2, image_noise=0.1), plain) == pytest.approx(0.3)
    assert start_of(facts(lmmse_error=0.1, image_noise=0.2), plain) == pytest.approx(0.4)
    assert start_of(facts(lmmse_error=9.0), Rule("low", lambda f: True, most_to_cover=0.35)) == 0.35


@pytest.mark.parametrize(
    ("start", "passes", "settings", "taken"),
    [
        (2, None, {}, [2, 3, 4, 5, 6]),
        (2, 100, {}, [2, 3, 4, 5, 6]),
        (2, 15, {}, [2, 4, 6]),
        (2, 9, {}, [6]),
        (2, 3, {}, [6]),
        (0, None, {"max_levels": 3}, [0, 3, 6]),
        (0, None, {"max_levels": 1}, [6]),
    ],
)
def test_levels_are_taken_evenly_as_many_as_the_budget_is_worth(start, passes, settings, taken):
    rule = Rule("any", lambda f: True, **settings)
    assert active_levels(start, 7, rule, Budget(passes and 2 * passes, None)) == taken
