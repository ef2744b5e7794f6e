"""Moments of p(u | z) and a draw of p(u | z, y), against closed forms."""

import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting
from toys import GaussianImages, observe

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.likelihood.wiener import octave_spectrum
from deepinv_dmilo.posterior.moments import Moments, OfLatents, conditional_draw

SIZE = (8, 12)


@pytest.fixture(params=[1.0, 0.2, 0.03])
def moments(request):
    images = GaussianImages(SIZE)
    prior = DiffusionPrior.from_denoiser(images, max_noise=40.0)
    level = prior.level(2 * request.param)
    z = prior.encode(images.draw(2)) + level.noise * torch.randn(2, 1, *SIZE).double()
    return Moments(prior, z, level), prior, z


def posterior_variance(moments):
    """Of each frequency of latents, which are twice as wide as images in [0, 1]."""
    power, sigma = GaussianImages(SIZE).power, moments.level.sigma
    return 4 * power * sigma**2 / (power + sigma**2)


def filtered(v, gain):
    return torch.fft.ifft2(torch.fft.fft2(v) * gain).real


def test_mean_and_covariance_are_those_of_gaussian_images(moments):
    moments, prior, z = moments
    v = torch.randn_like(z)
    torch.testing.assert_close(moments.mean, prior.denoise(z, moments.level))
    torch.testing.assert_close(moments.covariance(v), filtered(v, posterior_variance(moments)))
    assert not moments.mean.requires_grad


def test_the_spread_of_deviations_is_nearly_that_of_the_covariance(moments):
    """The square root of J by two products, 2 J - J^2, errs by 0.13 at most in its square."""
    moments, _, z = moments
    e, exact = torch.randn_like(z), posterior_variance(moments)
    sigma = moments.level.ratio
    gain = exact / sigma**2
    torch.testing.assert_close(moments.deviation(e), filtered(e, sigma * (2 * gain - gain**2)))
    assert ((2 * gain - gain**2).square() - gain).abs().max() < 0.13


def test_a_draw_is_the_minimiser_of_both_misfits(moments):
    """Of f(u) + (u - u0) C^-1 (u - u0) / 2, by dense matrices, to a fifth of its distance from u0, a draw of p(u|z)."""
    moments, prior, z = moments
    mask = (torch.arange(96) % 3 > 0).double().view(1, 1, *SIZE)
    physics = Inpainting((1, *SIZE), mask=mask, noise_model=GaussianNoise(0.05)).double()
    y = physics(GaussianImages(SIZE).draw(2))
    e = torch.randn_like(z)
    start = moments.mean + moments.deviation(e)
    found = conditional_draw(moments, OfLatents(observe(y, physics), prior), moments.deviation(e))
    units = torch.eye(96).double().view(-1, 1, *SIZE)
    covariance = filtered(units, posterior_variance(moments)).flatten(1)
    weight = torch.diag(mask.flatten() / 4) / 0.05**2  # A^T A / variance, of latents
    step = torch.linalg.solve(
        torch.eye(96).double() + covariance @ weight,
        covariance @ weight @ (prior.encode(y) - start).flatten(1).T,
    )
    exact = start + step.T.view_as(z)
    assert (found - exact).norm() < 0.2 * (exact - start).norm()


def test_an_octave_spectrum_has_the_energy_of_each_octave():
    v = torch.randn(3, 2, 16, 24).double()
    spectrum = octave_spectrum(v)
    assert spectrum.shape == (3, 1, 16, 24)
    torch.testing.assert_close(spectrum.sum((1, 2, 3)), v.square().mean(1).sum((1, 2)))
    assert len(spectrum[0].unique()) <= 5  # of frequencies up to 14 cycles
    constant = octave_spectrum(torch.ones_like(v))
    assert constant[0, 0, 0, 0] > 0
    assert constant[..., 8, 12].abs().max() < 1e-12
