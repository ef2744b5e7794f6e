"""Schedules, finishing steps and rules of others."""

from dataclasses import dataclass, replace

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Levels
from deepinv_dmilo.schedules.planning import RULES, Rule
from deepinv_dmilo.schedules.schedule import Schedule


@dataclass(frozen=True)
class Dimmed:
    """A finishing step: images at a part of their brightness."""

    part: float

    def __call__(self, posterior, x):
        return self.part * x


class Finished(Levels):
    """The levels, and a finishing step of one's own after all others."""

    def plan(self, posterior, budget):
        groups = []
        for group, plan in super().plan(posterior, budget):
            *stages, last = plan.stages
            last = replace(last, finishing=(*last.finishing, Dimmed(0.5)))
            groups.append((group, replace(plan, stages=(*stages, last))))
        return groups


class LastTwo(Levels):
    """The two lowest levels of those that an image takes, each with twice the steps."""

    def plan(self, posterior, budget):
        groups = []
        for group, plan in super().plan(posterior, budget):
            first, last = (replace(stage, steps=2 * stage.steps) for stage in plan.stages[-2:])
            groups.append((group, replace(plan, stages=(first, last))))
        return groups


class Delegating(Schedule):
    """A schedule that is no ``Levels`` and defines no more than it must."""

    levels = Levels((0.5,), skip=False)

    def plan(self, posterior, budget):
        return self.levels.plan(posterior, budget)

    def start(self, posterior, stage, x, layers):
        return self.levels.start(posterior, stage, x, layers)

    def problem(self, posterior, stage, layers, i, target):
        return self.levels.problem(posterior, stage, layers, i, target)


#: a rule for what is noisy, before those that there are
NOISY = Levels(rules=(Rule("noisy", lambda facts: facts.relative_noise > 0.1, (0.5, 0.25), max_levels=1), *RULES))


@pytest.fixture
def problem():
    physics = dinv.physics.Denoising(GaussianNoise(0.02, rng=torch.Generator().manual_seed(0)))
    x = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0)).double()
    return x, physics, physics(x)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_finishing_step_of_ones_own(method, problem):
    _, physics, y = problem
    own, plain = (method(toy_prior(ConvNet()), schedule=kind(), max_passes=10) for kind in (Finished, Levels))
    torch.testing.assert_close(own(y, physics), 0.5 * plain(y, physics))
    assert "finishing: PosteriorMean, SparseDeviation, Dimmed" in str(own.plan(y, physics))


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_schedule_of_ones_own(method, problem):
    _, physics, y = problem
    own, plain = (method(toy_prior(ConvNet()), schedule=kind(skip=False), max_passes=35) for kind in (LastTwo, Levels))
    solution, levels = own.solve(y, physics), plain.plan(y, physics).groups[0][1].stages
    ((_, plan),) = solution.plan.groups
    assert [(stage.index, stage.steps) for stage in plan.stages] == [(stage.index, 10) for stage in levels[-2:]]
    assert [problem.sigma for problem in solution.ended[1]] == [stage.levels[0].sigma for stage in levels[-2:]]
    assert "LastTwo(sigmas=None, skip=False" in repr(own)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_schedule_that_is_no_levels(method, problem):
    """Its likelihood has a noise level, and ``init`` is an image, not a latent."""
    x, physics, y = problem
    own, plain = (
        method(toy_prior(ConvNet()), schedule=schedule, max_passes=5, num_samples=2, noise_level=0.02)
        for schedule in (Delegating(), Delegating.levels)
    )
    assert torch.equal(own(y, physics, init=x), plain(y, physics, init=x))


def test_a_rule_of_ones_own(problem):
    x, physics, y = problem
    noisy = dinv.physics.Denoising(GaussianNoise(0.3, rng=torch.Generator().manual_seed(0)))
    model = DMILO(toy_prior(ConvNet()), schedule=NOISY, max_passes=10)
    ((_, plan),) = model.plan(noisy(x), noisy).groups
    assert plan.rule == "noisy"
    assert [stage.levels[0] for stage in plan.stages] == [model.prior.level(2 * 0.25)]
    ((_, plan),) = model.plan(y, physics).groups
    assert plan.rule == "linear, or masked"
