"""Every family of networks: against the closed form of Gaussian images, and against diffusers' own steps."""

import json
from itertools import pairwise
from math import exp, inf
from types import SimpleNamespace

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler

from deepinv_dmilo import DMILO, LBFGS, DiffusionPrior, Levels
from deepinv_dmilo.priors.families import family_of
from deepinv_dmilo.priors.prior import Level

SHAPE = (1, 4, 4)


class GaussianImages:
    """Images u in [-1, 1] of a known mean and covariance, and their mean given a noisy one."""

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(16, 16, generator=rng, dtype=torch.float64))[0]
        self.covariance = basis @ torch.diag(torch.linspace(0.02, 0.3, 16, dtype=torch.float64)) @ basis.T
        self.mean = 0.3 * torch.randn(16, generator=rng, dtype=torch.float64)

    def gain(self, a, s):
        """Of the posterior mean: u = mean + gain (z - a mean), for z = a u + s eps."""
        return a * self.covariance @ torch.linalg.inv(a**2 * self.covariance + s**2 * torch.eye(16).double())

    def posterior_mean(self, z, a, s):
        return (self.mean + (z.flatten(1) - a * self.mean) @ self.gain(a, s).T).view_as(z)


GAUSSIAN = GaussianImages()


class Exact(torch.nn.Module):
    """The network of Gaussian images in a family's parametrisation; ``told`` is that written out, by hand."""

    def __init__(self, told):
        super().__init__()
        self.told = told
        self.weight = torch.nn.Parameter(torch.ones(()).double())

    def forward(self, z, t):
        return self.weight * self.told(z, t[0].item())


def noise_preserving(scheduler, kind):
    def told(z, t):
        assert t == int(t)
        abar = float(scheduler.alphas_cumprod[int(t)])
        a, s = abar**0.5, (1 - abar) ** 0.5
        u = GAUSSIAN.posterior_mean(z, a, s)
        eps = (z - a * u) / s
        return {"epsilon": eps, "v_prediction": a * eps - s * u, "sample": u}[kind]

    return told


def score(x, t):
    """Of noisy images in [0, 1], by Tweedie's formula."""
    u = GAUSSIAN.posterior_mean(2 * x - 1, 1, 2 * t)
    return ((u + 1) / 2 - x) / t**2


def edm(sign):
    def told(z, t):
        s = exp(4 * t)
        z = z * (s**2 + 0.25) ** 0.5
        u = GAUSSIAN.posterior_mean(z, 1, s)
        return sign * (u - 0.25 / (s**2 + 0.25) * z) * (s**2 + 0.25) ** 0.5 / (0.5 * s)

    return told


def consistency(z, t):
    s = exp(t / 250)
    z = z * (s**2 + 0.25) ** 0.5
    skip, out = 0.25 / ((s - 0.002) ** 2 + 0.25), (s - 0.002) * 0.5 / (s**2 + 0.25) ** 0.5
    return (GAUSSIAN.posterior_mean(z, 1, s) - skip * z) / out


def velocity(z, t):
    s = t / 1000
    u = GAUSSIAN.posterior_mean(z, 1 - s, s)
    return (z - (1 - s) * u) / s - u


VP = {
    "linear": DDPMScheduler(),
    "scaled linear": DDIMScheduler(beta_schedule="scaled_linear"),
    "cosine": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "DPM-Solver": DPMSolverMultistepScheduler(),
    "UniPC": UniPCMultistepScheduler(),
    "PNDM": PNDMScheduler(),
    "Euler": EulerDiscreteScheduler(),
    "Heun": HeunDiscreteScheduler(),
}
FAMILIES = {f"{name}, epsilon": (s, noise_preserving(s, "epsilon")) for name, s in VP.items()}
for prediction in ("epsilon", "v_prediction", "sample"):
    scheduler = DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=True)  # no signal at the end
    FAMILIES[f"zero terminal, {prediction}"] = (scheduler, noise_preserving(scheduler, prediction))
FAMILIES |= {
    "score": (ScoreSdeVeScheduler(), score),
    "Karras VE": (KarrasVeScheduler(), score),
    "EDM, epsilon": (EDMEulerScheduler(), edm(1)),
    "EDM, v": (EDMDPMSolverMultistepScheduler(prediction_type="v_prediction"), edm(-1)),
    "flow": (FlowMatchEulerDiscreteScheduler(shift=3.0), velocity),
    "flow of UniPC": (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), velocity),
    "consistency": (CMStochasticIterativeScheduler(), consistency),
}


def exact_prior(name):
    scheduler, told = FAMILIES[name]
    return DiffusionPrior(Exact(told), scheduler, clip_sample=False)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sigma", [0.05, 0.3, 2.0])
def test_the_denoiser_of_exact_networks_is_the_posterior_mean(name, sigma):
    prior = exact_prior(name)
    level = prior.level(2 * sigma)
    assert level.sigma == pytest.approx(sigma, rel=0.05)
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(3, *SHAPE, generator=rng).double()
    noisy = x + level.sigma * torch.randn(x.shape, generator=rng).double()
    with torch.no_grad():
        found = prior.denoiser()(noisy, level.sigma)
    expected = (GAUSSIAN.posterior_mean(2 * noisy - 1, 1, 2 * level.sigma) + 1) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_level_of_an_exact_network_is_the_most_probable_latent(name):
    """Of a linear physics: the layer is linear, so that the estimate solves a linear system."""
    prior, sigma = exact_prior(name), 0.1
    mask = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) > 0.4).double()
    physics = dinv.physics.Inpainting(SHAPE, mask=mask, noise_model=GaussianNoise(sigma)).double()
    x0 = torch.full((1, *SHAPE), 0.4).double()
    y = physics.A(0.5 + 0.2 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3)).double())
    (a, s, _), (b, r, _) = prior.level(0.6), prior.levels(1)[-1]
    gain = GAUSSIAN.gain(a, s)  # of the clean latent; then of the layer
    eye = torch.eye(16).double()
    layer, offset = (b - r * a / s) * gain + r / s * eye, (b - r * a / s) * (eye - a * gain) @ GAUSSIAN.mean
    weights = torch.diag(mask.flatten()) / sigma**2
    # minimise |M ((layer z + offset + 1) / 2 - y)|^2 / (2 sigma^2) + |z - a u0|^2 / (2 s^2)
    left = layer.T @ weights @ layer / 4 + eye / s**2
    right = layer.T @ weights @ (y.flatten() - (offset + 1) / 2) / 2 + a * (2 * x0.flatten() - 1) / s**2
    expected = ((layer @ torch.linalg.solve(left, right) + offset + 1) / 2).view_as(x0).clamp(0, 1)
    schedule = Levels((0.3,), mean=False, deviation_threshold=None)
    model = DMILO(prior, schedule=schedule, solver=LBFGS(100, tolerance=0.0), noise_level=sigma)
    torch.testing.assert_close(model(y, physics, init=x0), expected, rtol=0, atol=1e-6)


def output_of(prior, z, level):
    """What a pipeline of diffusers gives its scheduler."""
    t = torch.full((len(z),), level.time, dtype=torch.float64)
    return prior.predict(prior.family.input(z, level), t)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_step_of_a_flow_is_diffusers_own(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    prior = DiffusionPrior(Exact(velocity), scheduler, clip_sample=False)
    scheduler.set_timesteps(4)
    z = torch.randn(2, *SHAPE).double()
    for t, sigma, after in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:], strict=False):
        a, b = prior.family.at(sigma.item()), prior.family.at(after.item())
        assert a.time == pytest.approx(t.item())
        expected = scheduler.step(output_of(prior, z, a), t, z).prev_sample
        z = prior.step(z, a, b)
        torch.testing.assert_close(z, expected, rtol=0, atol=1e-5)


def test_the_levels_of_a_flow_are_shifted_as_diffusers_shifts_them():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    levels = DiffusionPrior(Exact(velocity), scheduler).levels(4)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(torch.tensor([level.noise for level in levels]), scheduler.sigmas)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_of_edm_is_diffusers_own(prediction):
    scheduler = EDMEulerScheduler(prediction_type=prediction)
    prior = DiffusionPrior(Exact(edm(1 if prediction == "epsilon" else -1)), scheduler, clip_sample=False)
    scheduler.set_timesteps(5)
    z = 80 * torch.randn(2, *SHAPE).double()
    for t, sigma, after in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:], strict=False):
        a = Level(1.0, sigma.item(), prior.family.time(sigma.item()))
        torch.testing.assert_close(scheduler.scale_model_input(z, t), prior.family.input(z, a))
        expected = scheduler.step(output_of(prior, z, a), t, z).prev_sample
        z = prior.step(z, a, Level(1.0, after.item()))
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)


def test_a_step_of_the_euler_scheduler_is_that_of_the_latents_that_give_way_to_noise():
    """Its latents are ours divided by their signal."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    prior = DiffusionPrior(Exact(noise_preserving(scheduler, "epsilon")), scheduler, clip_sample=False)
    scheduler.set_timesteps(5)
    steps = [int(t) for t in scheduler.timesteps]
    z = torch.randn(2, *SHAPE).double()
    for t, after in pairwise(steps):
        a, b = prior.family.at(t), prior.family.at(after)
        scheduler.scale_model_input(z, torch.tensor(float(t)))
        expected = scheduler.step(output_of(prior, z, a), torch.tensor(float(t)), z / a.signal).prev_sample
        z = prior.step(z, a, b)
        torch.testing.assert_close(z / b.signal, expected, rtol=1e-4, atol=1e-4)  # float32 sigmas of diffusers


def test_a_step_of_karras_ve_is_diffusers_own():
    scheduler = KarrasVeScheduler()
    prior = DiffusionPrior(Exact(score), scheduler, clip_sample=False)
    z, a, b = 3 * torch.randn(2, *SHAPE).double(), prior.level(3.0), prior.level(1.2)
    output = a.noise / 2 * output_of(prior, z, a)  # as its pipeline does
    expected = scheduler.step(output, a.noise, b.noise, z).prev_sample
    torch.testing.assert_close(prior.step(z, a, b), expected)


def test_the_clean_image_of_a_consistency_model_is_that_of_diffusers():
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    prior = DiffusionPrior(Exact(consistency), scheduler, clip_sample=False)
    scheduler.set_timesteps(1)
    z, a = 80 * torch.randn(2, *SHAPE).double(), prior.levels(1)[0]
    assert a.time == pytest.approx(scheduler.timesteps[0].item())
    torch.testing.assert_close(scheduler.scale_model_input(z, scheduler.timesteps[0]), prior.family.input(z, a))
    expected = scheduler.step(output_of(prior, z, a), scheduler.timesteps[0], z).prev_sample
    torch.testing.assert_close(prior.denoise(z, a), expected)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        SimpleNamespace(alphas_cumprod=[0.9, 0.9, 0.5, 0.5, 0.5, 0.1]),
        SimpleNamespace(alphas_cumprod=[0.5, 0.9, 0.1, 0.9, 0.3, 0.1]),
    ],
)
def test_a_level_is_the_first_of_the_nearest_steps(scheduler):
    """Also of steps of equal noise, halfway between two, and of steps in any order."""
    family = family_of(scheduler)
    ratios = [family.at(t).ratio for t in range(len(family.alphas_cumprod))]
    finite = sorted(r for r in ratios if r < inf)
    middles = [(a + b) / 2 for a, b in pairwise(finite)]
    for ratio in (-1.0, 0.0, 1e-9, *finite, *middles, 1e9):
        nearest = min(range(len(ratios)), key=lambda t: abs(ratios[t] - ratio))
        assert family.level(ratio) == family.at(nearest)


def test_more_noise_than_any_step_has_is_the_noisiest_step():
    """Also where all differences round to it."""
    family = family_of(DDPMScheduler())
    assert [family.level(ratio).time for ratio in (1e3, 1e17, inf)] == [999] * 3


# What a configuration says and the class of diffusers does not read


@pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_an_old_configuration_that_predicts_the_image(kind, tmp_path):
    """As diffusers 0.8 wrote it, and as a later one writes it again."""
    folders = tmp_path / "old", tmp_path / "again"
    kind().save_pretrained(folders[0])
    file = folders[0] / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["prediction_type"]
    file.write_text(json.dumps({**config, "predict_epsilon": False}))
    kind.from_pretrained(folders[0]).save_pretrained(folders[1])
    for folder in folders:
        assert family_of(kind.from_pretrained(folder)).prediction_type == "sample"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"predict_epsilon": True}, "epsilon"),
        ({"predict_epsilon": False, "prediction_type": "v_prediction"}, "v_prediction"),
    ],
)
def test_an_old_configuration_that_says_otherwise(config, kind):
    assert family_of(DDPMScheduler.from_config(config)).prediction_type == kind


@pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler])
def test_a_schedule_without_signal_at_its_end_that_the_class_ignores(kind):
    betas = {"beta_start": 1e-4, "beta_end": 0.02}
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **betas}
    told, known = (family_of(s).alphas_cumprod for s in (kind.from_config(settings), DDIMScheduler(**settings)))
    assert told[-1] == 0
    # diffusers' betas are float32: 1000 roundings of 6e-8
    torch.testing.assert_close(torch.tensor(told), torch.tensor(known), rtol=1e-4, atol=1e-8)
