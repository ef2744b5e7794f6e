"""Budgets in calls of the network: counted, the same in passes, tiny ones, and what is told of them."""

import io

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DMPlug, Levels, Positive
from deepinv_dmilo.methods import monitor

IMAGE = (3, 16, 24)
METHODS = (DMILO, DMILOPGD)
DECOUPLED = Levels(decoupled=True)


def counting():
    """A network, and the rows of its calls, by whether a backward pass follows."""
    rows = {True: [], False: []}

    class Counting(ConvNet):
        def forward(self, z, t):
            rows[z.requires_grad].append(len(z))
            return super().forward(z, t)

    return Counting(), rows


@pytest.fixture
def problem():
    """A physics, and measurements of an image."""
    noise = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    physics = dinv.physics.Inpainting(IMAGE, mask=0.4, noise_model=noise, rng=torch.Generator().manual_seed(0)).double()
    return physics, physics(torch.rand(1, *IMAGE).double())


def stages_of(plan):
    """Numbers of decoupled stages and of levels."""
    return [sum(stage.decoupled is decoupled for stage in plan.stages) for decoupled in (True, False)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_max_calls_is_a_hard_budget(method, num_samples, problem):
    """Counted where nothing ends early; on top come the first image, the image of each level, and the last call."""
    physics, y = problem
    settings = {"num_samples": num_samples, "solver": LBFGS(tolerance=0.0), "noise_level": 0.05, "schedule": DECOUPLED}
    net, rows = counting()
    model = method(toy_prior(net), max_calls=60 * num_samples, **settings)
    solution = model.solve(y, physics, compute_metrics=True)
    ((_, plan),) = solution.plan.groups
    coarse, levels = stages_of(plan)
    assert coarse == 20
    assert levels > 1
    passes, alone = (sum(rows[followed]) / num_samples for followed in (True, False))
    assert 0.9 * 60 <= 2 * passes + coarse <= 60
    assert alone <= coarse + levels + 2
    assert plan.calls == 2 * plan.passes + coarse <= 60
    assert solution.plan.calls == (num_samples * plan.calls,)
    assert solution.metrics["passes"][0][-1] == passes * num_samples
    assert solution.metrics["calls"][0][-1] == (2 * passes + coarse) * num_samples


@pytest.mark.parametrize(
    "make",
    [
        DMILO,
        DMILOPGD,
        lambda prior, **s: DMILO(prior, unknown={"mask": Positive(torch.ones(1, *IMAGE).double())}, **s),
        lambda prior, **s: DMILO(prior, schedule=Chain(num_layers=2, outer_steps=3), solver=Adam(20), **s),
        lambda prior, **s: DMPlug(prior, **s),
    ],
)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_as_many_passes_are_half_as_many_calls(make, num_samples, problem):
    physics, y = problem
    calls, passes = (
        make(toy_prior(ConvNet()), num_samples=num_samples, **budget).plan(y, physics)
        for budget in ({"max_calls": 60}, {"max_passes": 30})
    )
    assert calls.groups == passes.groups
    assert calls.calls == passes.calls
    assert calls.calls[0] <= 60


@pytest.mark.parametrize(("method", "calls"), [(DMILO, 200), (DMILOPGD, 200), (DMPlug, 2 * 900)])
def test_the_default_is_two_hundred_calls_a_sample(method, calls, problem):
    physics, y = problem
    default = method(toy_prior(ConvNet()), num_samples=2).plan(y, physics)
    told = method(toy_prior(ConvNet()), num_samples=2, max_calls=2 * calls).plan(y, physics)
    assert default.groups == told.groups


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("max_calls", range(2, 13))
def test_tiny_budgets(method, max_calls, problem):
    """A level takes at least a pass, which decoupled stages leave."""
    physics, y = problem
    net, rows = counting()
    solution = method(toy_prior(net), max_calls=max_calls, noise_level=0.05, schedule=DECOUPLED).solve(y, physics)
    ((_, plan),) = solution.plan.groups
    coarse, levels = stages_of(plan)
    assert (coarse, levels) == (max_calls // 3, 1)
    assert 0 < 2 * sum(rows[True]) + coarse <= max_calls
    assert torch.isfinite(solution.images).all()


@pytest.mark.parametrize("budget", [{"max_calls": 60}, {"max_passes": 30}])
def test_a_plan_tells_passes_and_calls(budget, problem):
    physics, y = problem
    plan = DMILO(toy_prior(ConvNet()), num_samples=2, noise_level=0.05, schedule=DECOUPLED, **budget).plan(y, physics)
    ((_, of_image),) = plan.groups
    coarse, levels = stages_of(of_image)
    first, last = (of_image.stages[k].levels[0].sigma for k in (0, coarse - 1))
    text = str(plan)
    assert f"  {coarse} decoupled stages of noise {first:.3g} to {last:.3g}\n  {levels} stages of noise " in text
    assert f"at most {plan.passes[0]} passes of the network for an image, {plan.calls[0]} calls in all\n" in text
    assert plan.passes[0] < plan.calls[0] / 2


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        DMILO,
        DMILOPGD,
        lambda prior, solver, **s: DMILO(prior, schedule=Chain(2, outer_steps=2), solver=Adam(3), **s),
        lambda prior, solver, **s: DMPlug(prior, steps=3, **s),
    ],
)
def test_the_bar_counts_calls_and_ends_at_its_total(make, tolerance, problem, monkeypatch):
    """Also where problems end early, whose calls are not taken."""
    physics, y = problem
    bars, tqdm = [], monitor.tqdm

    def watched(**settings):
        bars.append(tqdm(file=io.StringIO(), **settings))
        return bars[-1]

    monkeypatch.setattr(monitor, "tqdm", watched)
    model = make(toy_prior(ConvNet()), max_calls=60, num_samples=2, verbose=True, solver=LBFGS(tolerance=tolerance))
    solution = model.solve(y, physics)
    (bar,) = bars
    ((_, plan),) = solution.plan.groups
    assert bar.unit == "call"
    assert bar.n == bar.total == plan.calls
