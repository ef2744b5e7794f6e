"""Samples of any operator, noise and prior: in range, alone as in a batch, of known cost; and what is refused."""

import deepinv as dinv
import pytest
import torch
from deepinv.utils import TensorList
from diffusers import DDIMScheduler
from small_operators import Fourier, blur, gaussian, masked, nonlinear, photons
from toys import ConvNet, GaussianImages, tiny_autoencoder, tiny_unet, toy_prior

from deepinv_dmilo import Channelwise, Complex, DiffusionPrior, DMILOSampler, Greyscale, LatentPrior, Tiled

SIZE = (12, 16)
IMAGE = (3, *SIZE)
HIDDEN = torch.zeros(*SIZE).double()  # the right half
HIDDEN[:, SIZE[1] // 2 :] = 1
SIGMAS = (5.0, 1.0, 0.3, 0.1, 0.03)


def gaussian_prior():
    return DiffusionPrior.from_denoiser(GaussianImages(SIZE), max_noise=40.0)


def sampler(prior, **settings):
    """Of five levels."""
    return DMILOSampler(prior, **{"num_samples": 2, "sigmas": SIGMAS, **settings})


def half(noise, channels=1):
    """The left half alone is measured."""
    mask = (1 - HIDDEN).expand(channels, *SIZE)
    return dinv.physics.Inpainting((channels, *SIZE), mask=mask, noise_model=noise).double()


def pictures(n, channels=1):
    return 0.3 + 0.4 * torch.rand(n, channels, *SIZE, generator=torch.Generator().manual_seed(1)).double()


def check_samples(solution, limits=(0.0, 1.0)):
    assert torch.isfinite(solution.samples).all()
    assert not solution.samples.requires_grad
    assert limits[0] <= solution.samples.min() <= solution.samples.max() <= limits[1]
    torch.testing.assert_close(solution.images, solution.samples.mean(1))


def check_hidden_is_open(solution, factor=1.5):
    """The spread is larger where nothing is measured."""
    std = solution.samples.std(1)
    seen, hidden = ((std.square() * which).sum() / which.sum() for which in (1 - HIDDEN, HIDDEN))
    assert hidden > factor**2 * seen


NOISES = {
    "Gaussian": gaussian,
    "of each image": lambda: dinv.physics.GaussianNoise(torch.tensor([0.02, 0.08]).double()),
    "Poisson": lambda: dinv.physics.PoissonNoise(0.01),
    "Poisson-Gaussian": lambda: dinv.physics.PoissonGaussianNoise(0.005, 0.03),
    "uniform": lambda: dinv.physics.UniformNoise(0.1),
    "Laplace": lambda: dinv.physics.LaplaceNoise(0.03),
}


@pytest.mark.parametrize("noise", NOISES)
def test_any_noise_with_a_standard_deviation(noise):
    physics = half(NOISES[noise]())
    y = physics(GaussianImages(SIZE).draw(2))
    solution = sampler(gaussian_prior(), num_samples=6).solve(y, physics)
    check_samples(solution)
    check_hidden_is_open(solution)


def test_noise_of_each_measurement():
    sizes = (0.01 + 0.19 * HIDDEN).view(1, 1, *SIZE)
    x = GaussianImages(SIZE).draw(2)
    y = x + sizes * torch.randn_like(x)
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(sizes)).double()
    solution = sampler(gaussian_prior(), num_samples=6).solve(y, physics)
    check_samples(solution)
    check_hidden_is_open(solution, 3.0)


def test_noise_that_is_not_told_is_estimated():
    told = half(gaussian())
    untold, y = half(dinv.physics.ZeroNoise()), told(GaussianImages(SIZE).draw(2))
    found, known = (sampler(gaussian_prior(), num_samples=6).solve(y, one) for one in (untold, told))
    check_samples(found)
    assert found.plan.groups[0][1].noise == "estimated"
    assert known.plan.groups[0][1].noise == "simulated"
    assert 0.7 < found.samples.std(1).mean() / known.samples.std(1).mean() < 1.4


def test_more_noise_leaves_more_open():
    """Of measurements of the same images, by the noise that the physics tells; a number in its place has its say."""
    y = GaussianImages(SIZE).draw(1)
    for make in (dinv.physics.GaussianNoise, dinv.physics.PoissonNoise, dinv.physics.UniformNoise):
        little, much = (sampler(gaussian_prior(), num_samples=6).solve(y, half(make(n))) for n in (0.02, 0.1))
        spread = [(one.samples.std(1) * (1 - HIDDEN)).mean() for one in (little, much)]
        assert spread[1] > 1.3 * spread[0]
    told, given = (dinv.physics.Denoising(gaussian(n)) for n in (0.08, 0.01))
    samples = [sampler(gaussian_prior(), noise_level=0.08).solve(y, one).samples for one in (told, given)]
    torch.testing.assert_close(*samples)


def masked_as(physics, images):
    """The physics of some of the images."""
    if isinstance(physics, dinv.physics.Inpainting) and len(physics.mask) > 1:
        mask = physics.mask[images]
        return dinv.physics.Inpainting(IMAGE, mask=mask, noise_model=physics.noise_model).double()
    return physics


PHYSICS = {
    "nonlinear": lambda: nonlinear(IMAGE),
    "complex": lambda: Fourier(noise_model=gaussian(), img_size=IMAGE),
    "mask for each image": lambda: masked(IMAGE, 3),
    "photons": lambda: blur(photons()),
    "several parts": lambda: dinv.physics.stack(blur(gaussian()), half(gaussian(0.1), 3)),
}


@pytest.mark.parametrize("case", PHYSICS)
def test_a_sample_does_not_depend_on_the_batch_nor_on_micro_batches(case):
    physics, prior = PHYSICS[case](), toy_prior(ConvNet())
    y = physics(pictures(3, 3))
    solution = sampler(prior).solve(y, physics)
    check_samples(solution)
    assert solution.samples.std(1).mean() > 1e-3
    alone = masked_as(physics, slice(1, 2))
    part = TensorList([t[1:2] for t in y]) if case == "several parts" else y[1:2]
    # rounding, amplified by the steps
    torch.testing.assert_close(sampler(prior).solve(part, alone).samples[0], solution.samples[1], rtol=0, atol=1e-6)
    for micro_batch in (1, 4) if case == "complex" else (4,):
        found = sampler(prior, micro_batch=micro_batch).solve(y, physics).samples
        torch.testing.assert_close(found, solution.samples, rtol=0, atol=1e-6)


def labelled():
    class Labelled(torch.nn.Module):
        def forward(self, z, t, class_labels):
            return z * class_labels.view(-1, 1, 1, 1)

    labels = {"class_labels": torch.tensor([0.1, 0.6]).double()}
    return DiffusionPrior(Labelled(), DDIMScheduler(), conditioning=labels).double()


PRIORS = {
    "tiles": (lambda: Tiled(toy_prior(ConvNet()), tile=8, overlap=4), 3),
    "greyscale": (lambda: Greyscale(toy_prior(ConvNet())), 1),
    "channelwise": (lambda: Channelwise(toy_prior(ConvNet(1))), 3),
    "conditions": (labelled, 1),
    "network that takes other sizes": (lambda: DiffusionPrior(tiny_unet(3), DDIMScheduler()).double(), 3),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_any_prior(prior):
    make, channels = PRIORS[prior]
    physics = half(gaussian(), channels)
    y = physics(pictures(2, channels))
    solution = sampler(make(), num_samples=4).solve(y, physics)
    check_samples(solution)
    check_hidden_is_open(solution)
    parts = sampler(make(), num_samples=4, micro_batch=3).solve(y, physics).samples
    # of 2e-5 with a network of random weights and groups, which amplifies rounding
    torch.testing.assert_close(parts, solution.samples, rtol=0, atol=1e-4)


def test_latents_of_an_autoencoder():
    physics = half(gaussian(), 3)
    y = physics(pictures(2, 3))
    torch.manual_seed(0)
    inside = DiffusionPrior(tiny_unet(4, 8), DDIMScheduler(), clip_sample=False)
    prior = LatentPrior(inside, tiny_autoencoder()).double()
    solution = sampler(prior).solve(y, physics)
    check_samples(solution)
    assert solution.samples.shape == (2, 2, *IMAGE)
    assert solution.samples.std(1).mean() > 0


def test_complex_images():
    """Of a scanner that measures every second line."""
    mask = (torch.arange(SIZE[0]) % 2 == 0).double().view(1, 1, -1, 1).expand(1, 2, *SIZE)
    physics = dinv.physics.MRI(mask=mask, img_size=(2, *SIZE)).double()
    physics.noise_model = gaussian()
    x = torch.cat([pictures(2), 0.2 - pictures(2)], 1)
    prior = Complex(toy_prior(ConvNet(2)))
    solution = sampler(prior).solve(physics(x), physics)
    check_samples(solution, prior.limits)
    assert solution.samples.shape == (2, 2, 2, *SIZE)
    assert solution.samples.min() < 0


# Random numbers, cost and state


def test_a_seed_gives_the_same_samples_and_a_generator_the_next():
    physics = half(gaussian())
    y = physics(pictures(2))
    seeded, drawn = (sampler(gaussian_prior(), rng=rng) for rng in (3, torch.Generator().manual_seed(3)))
    first = seeded.solve(y, physics).samples
    assert torch.equal(first, seeded.solve(y, physics).samples)
    assert not torch.equal(drawn.solve(y, physics).samples, drawn.solve(y, physics).samples)
    twice = sampler(gaussian_prior(), rng=3, num_samples=4).solve(y, physics).samples
    torch.testing.assert_close(twice[:, :2], first, rtol=0, atol=1e-6)
    assert not torch.equal(twice[:, 2:], first)


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_global_is_changed(grad):
    physics, prior = half(gaussian()), gaussian_prior()
    y = physics(pictures(1))
    state = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        found = sampler(prior)(y, physics)
        assert torch.is_grad_enabled() is grad
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.requires_grad


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_calls_are_those_of_the_plan(micro_batch, monkeypatch):
    """A forward pass and four backward passes of the network for each level and sample."""
    counts = {"forward": 0, "backward": 0}

    def reconstruct(self, posterior, *args, plain=DMILOSampler.reconstruct):
        network = posterior.prior.network
        network.register_forward_hook(lambda _, z, u: counts.update(forward=counts["forward"] + len(u)))
        network.register_full_backward_hook(lambda _, z, u: counts.update(backward=counts["backward"] + len(u[0])))
        return plain(self, posterior, *args)

    monkeypatch.setattr(DMILOSampler, "reconstruct", reconstruct)
    physics = half(gaussian(), 3)
    y = physics(pictures(2, 3))
    model = DMILOSampler(toy_prior(ConvNet()), num_samples=2, max_calls=2 * 5 * 7, micro_batch=micro_batch)
    solution = model.solve(y, physics, compute_metrics=True)
    assert counts == {"forward": 2 * 2 * 7, "backward": 2 * 2 * 7 * 4}
    assert solution.plan.calls == (2 * 5 * 7,)
    assert solution.metrics["calls"] == [[2 * 5 * (k + 1) for k in range(7)]] * 2
    assert "7" in str(solution.plan)


def test_what_a_call_returns():
    physics = half(gaussian())
    y = physics(pictures(2))
    model = sampler(gaussian_prior(), num_samples=4)
    asked = {"return_std": True, "quantiles": (0.2, 0.5, 0.8), "return_samples": True, "compute_metrics": True}
    mean, std, quantiles, samples, metrics = model(y, physics, **asked)
    torch.testing.assert_close(mean, samples.mean(1))
    torch.testing.assert_close(std, samples.std(1))
    ordered = samples.sort(1).values
    torch.testing.assert_close(quantiles[:, 0], ordered[:, 0])  # k / 5 is the k-th of four
    torch.testing.assert_close(quantiles[:, 1], ordered[:, 1:3].mean(1))
    torch.testing.assert_close(quantiles[:, 2], ordered[:, 3])
    assert metrics["residual"][0][-1] > 0
    assert torch.equal(model(y, physics), mean)
