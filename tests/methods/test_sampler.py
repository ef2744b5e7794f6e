"""Samples of the posterior: against closed forms, for any operator, noise and prior, alone or in a batch."""

import deepinv as dinv
import pytest
import torch
from toys import GaussianImages, MixtureImages

from deepinv_dmilo import DMILO, DiffusionPrior, DMILOSampler, Slicewise
from deepinv_dmilo.benchmarks.closed_form import covariances
from deepinv_dmilo.schedules.annealing import CALLS_OF_A_LEVEL
from deepinv_dmilo.tools.tasks import make_physics
from deepinv_dmilo.utils.draws import inverse_gaussian

SIZE = (12, 16)
TASKS = ("denoising", "deblurring", "inpainting", "super-resolution", "compressed-sensing")


def calls(levels, num_samples):
    """The calls of so many levels."""
    return CALLS_OF_A_LEVEL * levels * num_samples


def gaussian(noise):
    return dinv.physics.GaussianNoise(noise, rng=torch.Generator().manual_seed(0))


def masked(noise, n=1):
    """Random pixels of the left half, others for each image."""
    mask = (torch.rand(n, 1, *SIZE, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    mask[..., SIZE[1] // 2 :] = 0
    return dinv.physics.Inpainting((1, *SIZE), mask=mask, noise_model=noise).double()


@pytest.mark.parametrize("noise", [0.01, 0.05])
@pytest.mark.parametrize("task", TASKS)
def test_mean_spread_and_intervals_are_those_of_the_posterior(task, noise):
    """Of Gaussian images, whose posterior is known; 64 samples tell a mean variance of hundreds of pixels to 2 %."""
    images, num_samples = GaussianImages(SIZE), 64
    physics = make_physics(task, (1, *SIZE), noise=noise).double()
    y = physics(images.draw(1))  # of pixels from 0.23 to 0.84: few samples are clamped
    mean, covariance = images.posterior(y, physics, noise)
    variance = covariance.diag().view(1, 1, *SIZE)
    prior = DiffusionPrior.from_denoiser(images, max_noise=40.0)
    model = DMILOSampler(prior, num_samples=num_samples, max_calls=calls(15, num_samples))
    levels = tuple((1 + sign * p) / 2 for p in (0.5, 0.8, 0.95) for sign in (-1, 1))
    found, std, quantiles = model(y, physics, return_std=True, quantiles=levels)
    assert 0.9 < std.square().mean() / variance.mean() < 1.1
    assert (found - mean).square().mean() < 1.5 / num_samples * variance.mean()
    below = torch.distributions.Normal(mean, variance.sqrt()).cdf(quantiles[0]).flatten(1).mean(1)
    torch.testing.assert_close(below[1::2] - below[::2], torch.tensor([0.5, 0.8, 0.95]).double(), rtol=0, atol=0.03)


@pytest.mark.parametrize("noise", [dinv.physics.PoissonNoise(1.0), dinv.physics.GammaNoise(1.0)])
def test_the_spread_is_the_error_of_the_mean_with_half_a_photon_a_pixel(noise):
    """And with one look at speckle: normal noise on top of y would be cut off at 0."""
    images, num_samples = GaussianImages(SIZE), 8
    x, physics = images.draw(32), dinv.physics.Denoising(noise).double()
    model = DMILOSampler(
        DiffusionPrior.from_denoiser(images, max_noise=40.0),
        num_samples=num_samples,
        max_calls=calls(15, num_samples),
        rng=torch.Generator().manual_seed(0),
    )
    mean, std = model(physics(x), physics, return_std=True)
    assert 0.85 < (mean - x).square().mean() / ((1 + 1 / num_samples) * std.square().mean()) < 1.2


def four_modes():
    """Images around one of four pictures that are nearly alike in the left half."""
    images = GaussianImages((8, 12))
    window = torch.ones(1, 8, 12).double()
    window[..., :6] = 0.2
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    return MixtureImages(0.5 + 1.2 * window * (images.draw(4) - 0.5), images.power * (0.05 / 0.12) ** 2, weights)


def test_as_many_samples_are_in_each_mode_as_is_probable():
    """The mean error was 0.064 of 30 problems with 32 samples, 0.04 of it of their number; DMILO finds one mode."""
    mixture, num_samples, noise = four_modes(), 32, 0.1
    mask = torch.zeros(1, 1, 8, 12).double()
    mask[..., :6] = 1
    physics = dinv.physics.Inpainting((1, 8, 12), mask=mask, noise_model=gaussian(noise)).double()
    y = physics(mixture.draw(10))
    exact = mixture.weights_measured(y, physics, noise)
    assert 0.5 < exact.amax(1).mean() < 0.9  # more than one is open
    prior = DiffusionPrior.from_denoiser(mixture, max_noise=40.0)
    rng = torch.Generator().manual_seed(2)  # of a seed all images share their noise, and the errors
    samples = DMILOSampler(prior, num_samples=num_samples, rng=rng).solve(y, physics).samples
    modes = mixture.weights_given(samples.flatten(0, 1))
    assert modes.amax(1).mean() > 0.99  # no sample lies between them
    found = modes.view(10, num_samples, 4).mean(1)
    assert (found - exact).abs().mean() < 0.1
    chosen = mixture.weights_given(DMILO(prior)(y, physics)).argmax(1)
    clear = exact.amax(1) > 0.6
    assert torch.equal(chosen[clear], exact.argmax(1)[clear])


def test_the_truth_has_any_rank_among_the_samples():
    """Simulation-based calibration (Talts et al. 2018): the ranks of draws of the prior among samples are uniform."""
    images, num_samples, problems = GaussianImages((6, 8)), 15, 128
    x = images.draw(problems)
    physics = dinv.physics.Inpainting((1, 6, 8), mask=(torch.arange(48) % 3 > 0).double().view(1, 1, 6, 8))
    physics.noise_model = gaussian(0.05)
    physics = physics.double()
    prior, rng = DiffusionPrior.from_denoiser(images, max_noise=40.0), torch.Generator().manual_seed(3)
    model = DMILOSampler(prior, num_samples=num_samples, rng=rng, max_calls=calls(12, num_samples))
    samples = model.solve(physics(x), physics).samples
    directions = torch.randn(4, 48, generator=torch.Generator().manual_seed(1)).double()
    ranks = (samples.flatten(2) @ directions.T < (x.flatten(1) @ directions.T)[:, None]).sum(1).flatten()
    counts, expected = ranks.bincount(minlength=num_samples + 1), len(ranks) / (num_samples + 1)
    chi2 = ((counts - expected).square() / expected).sum()
    assert torch.special.gammaincc(torch.tensor(num_samples / 2).double(), chi2.double() / 2) > 0.01


# Volumes of slices that are alike


class MeanOfTwo(dinv.physics.LinearPhysics):
    """The means of neighbouring slices, one less than there are."""

    def A(self, x, **kwargs):
        return (x[:, :, 1:] + x[:, :, :-1]) / 2

    def A_adjoint(self, y, **kwargs):
        return torch.nn.functional.pad(y, (0, 0, 0, 0, 1, 1)).unfold(2, 2, 1).mean(-1)


def gibbs_samples(images, y, physics, noise, size, difference, sweeps=500, chains=8):
    """Samples of volumes of independent Gaussian slices with a total variation along the axis, by dense matrices."""
    rng, count = torch.Generator().manual_seed(0), torch.Size(size).numel()
    units = torch.eye(count).double().view(count, 1, *size)
    each = torch.linalg.inv(covariances(images.power, dinv.physics.Denoising(), 0.0)[0])
    of_prior, a = torch.block_diag(*[each] * size[0]), physics.A(units).flatten(1).T
    d = units.diff(dim=2).flatten(1).T / difference
    precision = of_prior + a.T @ a / noise**2
    right = of_prior.sum(1) / 2 + a.T @ y.flatten() / noise**2
    x, found = torch.full((chains, count), 0.5).double(), []
    for sweep in range(sweeps):
        change = x @ d.T
        normal = torch.randn(2, *change.shape, generator=rng).double()
        weights = inverse_gaussian((1 + change.square()).rsqrt(), *normal)
        root = torch.linalg.cholesky(precision + d.T @ (weights[:, :, None] * d))
        white = torch.randn(chains, count, 1, generator=rng).double()
        x = torch.cholesky_solve(right.expand(chains, -1)[..., None], root)
        x = (x + torch.linalg.solve_triangular(root.mT, white, upper=True))[..., 0]
        found += [x] if sweep >= sweeps // 5 else []
    return torch.cat(found).view(-1, *size)


@pytest.mark.parametrize("make", [dinv.physics.Denoising, MeanOfTwo])
@pytest.mark.parametrize("difference", [0.02, 0.05])
def test_samples_of_slices_that_are_alike_are_those_of_long_chains(difference, make):
    """And nearer to the truth, with less spread, than those of independent slices."""
    images, size, noise, num_samples = GaussianImages((4, 6)), (3, 4, 6), 0.05, 64
    x = torch.stack([0.9 * images.draw(2)[:1] + 0.1 * images.draw(2)[1:] * k for k in range(3)], 2)
    physics = make(noise_model=gaussian(noise)).double()
    y = physics(x)
    exact = gibbs_samples(images, y, physics, noise, size, difference)
    prior = DiffusionPrior.from_denoiser(images, max_noise=40.0)
    tied, free = (
        DMILOSampler(one, num_samples=num_samples).solve(y, physics).samples[0, :, 0]
        for one in (Slicewise(prior, slice_difference=difference), Slicewise(prior))
    )
    for own, other in ((tied, exact), (tied.diff(dim=1), exact.diff(dim=1))):
        variance = other.var(0).mean()
        assert 0.85 < own.var(0).mean() / variance < 1.2
        assert (own.mean(0) - other.mean(0)).square().mean() < 2 / num_samples * variance
    assert tied.std(0).mean() < 0.9 * free.std(0).mean()
    errors = [(one.mean(0) - x[0, 0]).square().mean() for one in (tied, free)]
    assert errors[0] < 0.9 * errors[1]
