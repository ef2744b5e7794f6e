"""What a call would do, what it did, and all that it found."""

import re
import time

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting
from toys import AffineNet, ConvNet, Gain, prior_that_believes, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Chain, DMILOSampler, DMPlug, Levels, Positive

IMAGE = (3, 24, 40)
METHODS = {
    "dmilo": lambda **s: DMILO(toy_prior(ConvNet()), max_passes=20, **s),
    "dmilo-pgd": lambda **s: DMILOPGD(toy_prior(ConvNet()), max_passes=20, **s),
    "published": lambda **s: DMILO.from_preset("inpainting", toy_prior(ConvNet()), outer_steps=2, inner_steps=3, **s),
    "dmplug": lambda **s: DMPlug(toy_prior(ConvNet()), steps=3, **s),
}


@pytest.fixture
def masked():
    """One image that is seen, one of which a third is seen and nobody tells the noise, one with a hole."""
    mask = torch.ones(3, *IMAGE).double()
    mask[2, :, 5:17, 10:25] = 0
    mask[1] = (torch.rand(1, *IMAGE[1:], generator=torch.Generator().manual_seed(0)) < 0.3).double()
    sigma = torch.tensor([0.1, 0.0, 0.02]).double()

    def physics_of(n):
        noise = GaussianNoise(sigma[n], rng=torch.Generator().manual_seed(0))
        return Inpainting(IMAGE, mask=mask[n], noise_model=noise).double()

    x = torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(1)).double()
    return physics_of, physics_of(slice(0, 3))(x)


def test_a_plan_names_what_would_be_done(masked):
    physics_of, y = masked
    physics = physics_of(slice(0, 1))
    plan = DMILO(toy_prior(ConvNet()), schedule=Levels((1.0, 0.3), skip=False), max_passes=20).plan(y[:1], physics)
    (((images, of_image),), text) = plan.groups, str(plan)
    assert images == (0,)
    assert f"images 0: {of_image.rule}\n" in text
    assert "facts of 0: linear, all measurements depend on it, noise 0.1" in text
    assert "first image: prior mean, least squares\n  noise level: simulated\n" in text
    assert "2 stages of noise 1, 0.3, 10 steps a layer at most\n" in text
    assert "finishing: PosteriorMean, SparseDeviation\n" in text
    assert "at most 20 passes of the network for an image, 40 calls in all\n" in text
    assert re.search(r"about \S+ s in all: \S+ in the network, \S+ in A and the first image$", text)
    assert plan.seconds > plan.seconds_in_network > 0


@pytest.mark.parametrize("method", [DMILO, DMILOPGD, DMILOSampler])
def test_the_seconds_of_a_plan_count_evaluations_of_a_slow_operator(method, masked, monkeypatch):
    physics_of, y = masked
    physics, evaluations = physics_of(slice(0, 1)), []

    def slow(self, x, *args, A=Inpainting.A, **kwargs):
        time.sleep(0.01)
        evaluations.append(1)
        return A(self, x, *args, **kwargs)

    monkeypatch.setattr(Inpainting, "A", slow)
    model = method(toy_prior(ConvNet()), num_samples=2, max_calls=100)
    plan = model.plan(y[:1], physics)
    evaluations.clear()
    model(y[:1], physics)
    assert 0.6 < (plan.seconds - plan.seconds_in_network) / (0.01 * len(evaluations)) < 3


def test_a_plan_of_the_published_method_and_of_samples(masked):
    physics_of, y = masked
    chain = Chain(num_layers=2, outer_steps=3, sparsity=None)
    model = DMILO(toy_prior(ConvNet()), schedule=chain, solver=LBFGS(steps=4), num_samples=2)
    plan = model.plan(y, physics_of(slice(0, 3)))
    assert plan.passes == (2 * 3 * 2 * 4,)
    assert plan.calls == (2 * 2 * 3 * 2 * 4,)
    assert "images 0, 1, 2: as published\n  first image: mid-grey\n  noise level: not used\n  3 stages" in str(plan)
    assert "finishing: none" in str(plan)


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_changes_nothing(method, masked):
    physics_of, y = masked
    physics, rng = physics_of(slice(0, 3)), torch.Generator().manual_seed(3)
    expected = METHODS[method](rng=torch.Generator().manual_seed(3))(y, physics)
    before = [rng.get_state(), physics.noise_model.rng.get_state(), torch.get_rng_state()]
    tensors = {name: t.clone() for name, t in physics.named_buffers()}
    model = METHODS[method](rng=rng)
    model.plan(y, physics)
    after = [rng.get_state(), physics.noise_model.rng.get_state(), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(t, tensors[name]) for name, t in physics.named_buffers())
    assert torch.equal(model(y, physics), expected)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_planned_is_what_is_done(method, masked):
    physics_of, y = masked
    physics, model = physics_of(slice(0, 3)), METHODS[method]()
    planned, solution = model.plan(y, physics), model.solve(y, physics, compute_metrics=True)
    assert (solution.plan.passes, solution.plan.calls) == (planned.passes, planned.calls)
    assert solution.plan.seconds is None
    assert solution.plan.groups == planned.groups  # numbers, rules, stages, facts
    for (images, plan), (_, done) in zip(planned.groups, solution.plan.groups, strict=True):
        assert torch.equal(plan.first_image, done.first_image)
        points = len(plan.stages) if method != "dmplug" else 1 + plan.stages[0].steps
        layers = len(plan.stages[0].levels) - 1 if method == "published" else 1
        for image in images:
            assert {len(curves[image]) for curves in solution.metrics.values()} == {points}
            assert len(solution.ended[image]) == layers * sum(not stage.decoupled for stage in plan.stages)
    assert sorted(image for images, _ in planned.groups for image in images) == [0, 1, 2]
    numbered = list(zip(planned.groups, planned.passes, planned.calls, strict=True))
    most, most_calls = ({image: one[k] for one in numbered for image in one[0][0]} for k in (1, 2))
    for image, curve in enumerate(solution.metrics["passes"]):
        assert curve[-1] == pytest.approx(sum(problem.passes for problem in solution.ended[image]))
        if method in ("published", "dmplug"):  # whose steps are all taken
            assert curve[-1] == most[image]
        assert curve[-1] <= most[image]
        assert solution.metrics["calls"][image][-1] <= most_calls[image]


@pytest.mark.parametrize("method", ["dmilo", "dmilo-pgd"])
def test_images_of_different_plans_are_a_batch_as_others(method, masked):
    """Their groups are solved one after the other, and each is as if it came alone."""
    physics_of, y = masked
    model = METHODS[method](num_samples=2)
    together = model.solve(y, physics_of(slice(0, 3)))
    assert [images for images, _ in together.plan.groups] == [(0,), (2,), (1,)]  # those of told noise first
    assert len({plan.stages for _, plan in together.plan.groups}) == 3
    for n in range(3):
        alone = model.solve(y[n : n + 1], physics_of(slice(n, n + 1)))
        # float64 rounding, amplified by the steps
        torch.testing.assert_close(together.images[n], alone.images[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.samples[n], alone.samples[0], rtol=0, atol=1e-6)
        assert together.ended[n] == alone.ended[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_has_all_that_a_call_returns(method, masked):
    physics_of, y = masked
    physics, model = physics_of(slice(0, 3)), METHODS[method](num_samples=3)
    images, metrics = model(y, physics, compute_metrics=True)
    solution = model.solve(y, physics, compute_metrics=True)
    assert torch.equal(solution.images, images)
    assert solution.samples.shape == (3, 3, *IMAGE)
    torch.testing.assert_close(solution.samples.mean(1), images, rtol=0, atol=1e-12)
    assert solution.metrics == metrics
    assert not solution.parameters
    assert not model.solve(y, physics).metrics


def test_a_solution_has_the_parameters_of_its_images():
    x = 0.5 + 0.2 * torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0)).double()
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1).double())}
    schedule = Levels((0.01,), skip=False, mean=False)
    model = DMILO(prior_that_believes(), unknown=unknown, schedule=schedule, max_passes=20, num_samples=2)
    images, found = model(0.7 * x, Gain(), init=x, return_unknown=True)
    solution = model.solve(0.7 * x, Gain(), init=x)
    assert torch.equal(solution.images, images)
    assert torch.equal(solution.parameters["gain"], found["gain"])
    for n in range(2):  # the images are those of a sample
        assert any(torch.equal(solution.images[n], sample) for sample in solution.samples[n])


def test_a_solution_tells_how_its_problems_ended():
    """What does not depend on the latent is solved at once; two steps are too few for what does."""
    y, physics = torch.rand(2, *IMAGE).double(), dinv.physics.Denoising(GaussianNoise(0.1))
    schedule = Levels((1.0, 0.3), skip=False)
    at_once = toy_prior(AffineNet(0.0, 0.0), prediction_type="sample")
    solved = DMILO(at_once, schedule=schedule, solver=LBFGS(steps=20)).solve(y, physics)
    cut_off = DMILO(toy_prior(ConvNet()), schedule=schedule, solver=LBFGS(steps=2, tolerance=0.0)).solve(y, physics)
    for problems in solved.ended:
        assert [problem.converged for problem in problems] == [True, True]
        assert all(0 < problem.passes < 20 for problem in problems)
        assert [problem.sigma for problem in problems] == pytest.approx([1.0, 0.3], rel=0.02)
    for problems in cut_off.ended:
        assert [(problem.converged, problem.passes) for problem in problems] == [(False, 2), (False, 2)]
