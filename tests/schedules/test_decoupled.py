"""Decoupled stages: near the posterior mean where that is known, for any operator and prior, without gradients."""

from dataclasses import replace

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import GaussianNoise
from diffusers import DDIMScheduler
from small_operators import Fourier, blur, gaussian, masked, nonlinear, photons
from toys import ConvNet, Gain, GaussianImages, prior_that_believes, tiny_autoencoder, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, Levels, Positive
from deepinv_dmilo.priors.latent import LatentPrior
from deepinv_dmilo.priors.tiled import Tiled
from deepinv_dmilo.schedules.planning import LAST_DECOUPLED, SEVEN, decoupled_sigmas
from deepinv_dmilo.tools.tasks import make_physics

SIZE = (16, 24)
IMAGE = (3, *SIZE)
METHODS = (DMILO, DMILOPGD)
DECOUPLED = Levels(decoupled=True)


class DecoupledAlone(Levels):
    """The decoupled stages, and nothing after them."""

    def plan(self, posterior, budget):
        return [(group, replace(plan, stages=decoupled(plan))) for group, plan in super().plan(posterior, budget)]


def decoupled(plan):
    return tuple(stage for stage in plan.stages if stage.decoupled)


def sigmas(plan):
    return [stage.levels[0].sigma for stage in plan.stages]


@pytest.mark.parametrize("noise", [0.05, 0.2])
@pytest.mark.parametrize("task", ["denoising", "deblurring", "inpainting", "super-resolution"])
def test_they_end_near_the_posterior_mean_where_that_is_known(task, noise):
    """A sample lies between a draw of the posterior, 3 dB below its mean, and the mean; several give the mean."""
    images = GaussianImages(SIZE)
    x, prior = images.draw(4), DiffusionPrior.from_denoiser(images, max_noise=40.0)
    physics = make_physics(task, (1, *SIZE), noise=noise).double()
    y, psnr = physics(x), PSNR()
    best = psnr(images.posterior(y, physics, noise)[0], x).mean()
    model = DMILO(prior, max_calls=600, num_samples=10, schedule=DecoupledAlone(decoupled=True), noise_level=noise)
    grey = torch.full_like(x, 0.5)  # where nothing of the first image is left
    solution = model.solve(y, physics, init=grey)
    assert psnr(solution.images, x).mean() > best - 0.4
    assert psnr(solution.samples[:, 0], x).mean() > best - 1.7
    whole = DMILO(prior, max_calls=60, noise_level=noise, schedule=DECOUPLED)(y, physics, init=grey)
    assert psnr(whole, x).mean() > best - 0.2


def test_their_levels_fall_evenly_from_three_times_the_error():
    """And those after them begin lower than without, where the rest of it is hidden."""
    physics = masked(IMAGE)
    y = physics(torch.rand(1, *IMAGE).double())
    model, plain = (
        DMILO(toy_prior(ConvNet()), max_calls=120, schedule=Levels(decoupled=d), noise_level=0.05)
        for d in (True, False)
    )
    ((_, plan),), ((_, without),) = (m.plan(y, physics).groups for m in (model, plain))
    (facts,) = plan.facts
    coarse = len(decoupled(plan))
    assert coarse == 120 // 3
    assert not decoupled(without)
    levels = [model.prior.level(2 * sigma).sigma for sigma in SEVEN]
    first, fine = sigmas(plan)[0], sigmas(plan)[coarse]
    assert 0.98 * 3 * facts.lmmse_error <= first <= 1.02 * 3 * facts.lmmse_error * 2**0.5
    assert sigmas(plan)[coarse - 1] == pytest.approx(LAST_DECOUPLED, rel=0.05)
    assert fine == min(sigma for sigma in levels if sigma >= 0.75 * facts.lmmse_error)
    assert fine <= sigmas(without)[0] <= first
    ratios = [a / b for a, b in zip(sigmas(plan), sigmas(plan)[1:coarse], strict=False)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.05)
    assert len({stage.index for stage in plan.stages}) == len(plan.stages)  # each has noise of its own


@pytest.mark.parametrize(("first", "count"), [(0.04, 5), (0.05, 3), (5.0, 1), (5.0, 0), (0.17, 20)])
def test_their_levels_never_rise(first, count):
    found = decoupled_sigmas(first, count)
    assert len(found) == count
    assert found == sorted(found, reverse=True)
    assert all(sigma <= first for sigma in found)


@pytest.mark.parametrize(
    ("settings", "noise", "coarse"),
    [
        ({}, 0.05, False),
        ({"schedule": DECOUPLED}, 0.05, True),
        ({"schedule": Levels((0.3,), decoupled=True)}, 0.05, False),  # the last level is all that there is
        ({"schedule": Levels((1.0, 0.04, 0.01), decoupled=True)}, 0.05, True),
        ({"schedule": DECOUPLED, "solver": LBFGS(steps=3)}, 0.05, True),
        ({"schedule": DECOUPLED}, 1e-4, False),  # the error is hidden by the last level
    ],
)
def test_where_they_are_planned(settings, noise, coarse):
    physics = dinv.physics.Denoising(GaussianNoise(noise)) if noise < 0.01 else masked(IMAGE, noise=noise)
    y = physics(torch.rand(1, *IMAGE).double())
    ((_, plan),) = DMILO(toy_prior(ConvNet()), noise_level=noise, **settings).plan(y, physics).groups
    assert bool(decoupled(plan)) is coarse
    falling = sigmas(plan)[: len(decoupled(plan))]
    assert falling == sorted(falling, reverse=True)
    assert plan.stages[-1].steps > 0


def test_they_need_the_error_that_skip_computes():
    with pytest.raises(ValueError, match="decoupled=True needs the LMMSE error, which skip=False leaves out"):
        Levels(skip=False, decoupled=True)


@pytest.mark.parametrize("method", METHODS)
def test_blind_problems_refuse_them(method):
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1))}
    refused = r"blind problems, unknown=\.\.\., have no decoupled stages; type Levels\(decoupled=False\)"
    with pytest.raises(ValueError, match=refused):
        method(toy_prior(ConvNet()), unknown=unknown, schedule=DECOUPLED)
    model = method(toy_prior(ConvNet()), unknown=unknown)
    model.schedule = DECOUPLED
    with pytest.raises(ValueError, match=refused):
        model.check(torch.rand(1, *IMAGE).double(), Gain(sigma=0.3))


PHYSICS = {
    "nonlinear": lambda: nonlinear(IMAGE),
    "complex": lambda: Fourier(noise_model=gaussian(), img_size=IMAGE),
    "mask": lambda: masked(IMAGE),
    "photons": lambda: blur(photons()),
    "several parts": lambda: dinv.physics.stack(blur(gaussian()), masked(IMAGE)),
}


PRIORS = {
    "tiles": lambda: Tiled(toy_prior(ConvNet()), tile=8, overlap=4),
    "denoiser": lambda: DiffusionPrior.from_denoiser(GaussianImages(SIZE), max_noise=40.0),
}
CASES = {
    **{name: (make, None, {}) for name, make in PHYSICS.items()},
    **{name: (PHYSICS["mask"], make, {}) for name, make in PRIORS.items()},
    "data_fidelity": (PHYSICS["mask"], None, {"data_fidelity": dinv.optim.L2(0.05)}),
    "L1": (PHYSICS["mask"], None, {"data_fidelity": dinv.optim.L1()}),
    "noise not told": (PHYSICS["mask"], None, {}),
    "samples": (PHYSICS["mask"], None, {"num_samples": 2}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_any_operator_noise_and_prior_image_by_image_and_in_micro_batches(case, method):
    make, make_prior, settings = CASES[case]
    physics, prior = make(), toy_prior(ConvNet()) if make_prior is None else make_prior()
    x = 0.2 + 0.6 * torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(1)).double()
    y = physics(x)
    if case == "noise not told":
        physics.noise_model = dinv.physics.ZeroNoise()
    schedule = Levels(decoupled=True, mean=False, deviation_threshold=None)
    model = method(prior, max_calls=24 * settings.get("num_samples", 1), schedule=schedule, **settings)
    solution = model.solve(y, physics)
    assert all(len(decoupled(plan)) == 8 for _, plan in solution.plan.groups)
    assert torch.isfinite(solution.images).all()
    assert solution.images.min() >= 0
    assert solution.images.max() <= 1
    part = type(y)([t[1:2] for t in y]) if isinstance(y, dinv.utils.TensorList) else y[1:2]
    torch.testing.assert_close(model(part, physics)[0], solution.images[1], rtol=0, atol=1e-6)
    model.micro_batch = 2
    torch.testing.assert_close(model(y, physics), solution.images, rtol=0, atol=1e-6)


def test_a_latent_prior_has_none():
    """Noise of its latents is not that of pixels: the plan is that of the default."""
    physics = masked(IMAGE)
    y = physics(torch.rand(1, *IMAGE).double())
    inside = DiffusionPrior(tiny_unet(4, 8), DDIMScheduler(), clip_sample=False)
    prior = LatentPrior(inside, tiny_autoencoder()).double()
    asked, default = (DMILO(prior, max_calls=24, schedule=s).plan(y, physics) for s in (DECOUPLED, Levels()))
    assert asked.groups == default.groups


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_samples", [1, 2])
def test_no_gradient_of_the_network_and_one_call_for_each_row(method, num_samples, monkeypatch):
    rows, of_stages = [], []

    class Watched(ConvNet):
        def forward(self, z, t):
            assert not torch.is_grad_enabled()
            rows.append(len(z))
            return super().forward(z, t)

    def denoise(self, *args, plain=DMILO.denoise):
        rows.clear()
        result = plain(self, *args)
        of_stages.append(sum(rows))
        return result

    monkeypatch.setattr(DMILO, "denoise", denoise)
    physics = masked(IMAGE)
    y = physics(torch.rand(3, *IMAGE).double())
    settings = {"num_samples": num_samples, "max_calls": 30 * num_samples, "micro_batch": 2, "noise_level": 0.05}
    model = method(toy_prior(Watched()), schedule=DecoupledAlone(decoupled=True), **settings)
    solution = model.solve(y, physics, compute_metrics=True)
    ((images, plan),) = solution.plan.groups
    assert images == (0, 1, 2)
    assert of_stages == [3 * num_samples] * 10
    assert (plan.passes, plan.calls) == (0, 10)
    assert solution.metrics["calls"] == [[num_samples * (k + 1) for k in range(10)]] * 3
    assert solution.metrics["passes"] == [[0] * 10] * 3
    assert solution.ended == [[], [], []]  # no problem was solved


def test_the_step_on_the_likelihood_is_not_taken_for_what_the_network_believes():
    """A network that believes what it is shown: y is fitted where there is a measurement, and kept elsewhere."""
    physics = masked(IMAGE, noise=0.01)
    x = 0.2 + 0.6 * torch.rand(1, *IMAGE, generator=torch.Generator().manual_seed(1)).double()
    y = physics(x)
    model = DMILO(prior_that_believes(), max_calls=60, schedule=DecoupledAlone(decoupled=True), noise_level=0.01)
    seen = physics.mask[0] > 0
    error = (model(y, physics) - x)[0].square()
    assert error[seen.expand(IMAGE)].mean().sqrt() < 0.03
