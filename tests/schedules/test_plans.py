"""The page of plans is that of the tables, and its examples run."""

import re
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from plans import page
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Levels
from deepinv_dmilo.schedules.planning import Rule

PAGE = Path(__file__).parents[2] / "docs" / "plans.md"
SHAPE = (3, 12, 20)


@pytest.fixture(scope="module")
def own():
    """What the page's example defines."""
    (code,) = re.findall(r"```python\n(from dataclasses.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"__name__": "example"}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def reconstructed(method, schedule, noise=None):
    noise = noise or dinv.physics.GaussianNoise(0.3, rng=torch.Generator().manual_seed(0))
    physics = dinv.physics.Denoising(noise).double()
    y = physics(torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double())
    model = method(toy_prior(ConvNet()), schedule=schedule, max_passes=25)
    return model.solve(y, physics)


def test_the_page_is_that_of_the_tables():
    assert PAGE.read_text() == page(), "type: python docs/scripts/plans.py --out docs/plans.md"


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_rule_of_ones_own_comes_first(own, method):
    ((_, plan),) = reconstructed(method, own["by_rule"]).plan.groups
    assert plan.rule == "very noisy"
    assert max(stage.levels[0].sigma for stage in plan.stages) < 1.1


def test_a_finishing_step_of_ones_own_comes_last(own):
    x = reconstructed(DMILO, own["by_step"]).images
    torch.testing.assert_close(255 * x, (255 * x).round(), rtol=0, atol=1e-9)


def test_a_schedule_of_ones_own(own):
    ((_, plan),) = reconstructed(DMILO, own["Geometric"](number=3, skip=False)).plan.groups
    assert len(plan.stages) == 3


def test_a_likelihood_of_ones_own(own):
    """Heavy tails: nearer to the truth than by squares of noise that has no variance."""
    torch.manual_seed(0)
    solution = reconstructed(DMILO, None, own["CauchyNoise"](0.05))
    assert solution.images.isfinite().all()
    assert solution.plan.groups[0][1].facts[0].gaussian is False


class Step:
    """A finishing step that cannot be hashed, as a plain dataclass cannot."""

    __hash__ = None

    def __call__(self, posterior, x):
        return 0 * x


def test_a_finishing_step_need_not_be_hashable():
    assert not reconstructed(DMILO, Levels(finishing=(Step(),))).images.any()


def test_settings_of_ones_own_say_what_to_type():
    with pytest.raises(TypeError, match=r"type a tuple, finishing=\(one, another\)"):
        Levels(finishing=Step())
    never = Rule("never", lambda facts: False)
    with pytest.raises(ValueError, match=r"no rule applies .* type rules=\(\.\.\., \*RULES\)"):
        reconstructed(DMILO, Levels(rules=(never,)))
