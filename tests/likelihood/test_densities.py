"""The likelihoods of noise models: against closed forms, and what they gain."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import (
    GammaNoise,
    GaussianNoise,
    LaplaceNoise,
    LogPoissonNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltPepperNoise,
)
from toys import AffineNet, ConvNet, prior_that_believes, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Levels
from deepinv_dmilo.likelihood.densities import densities_of, density_of

SHAPE = (3, 12, 20)
ROWS = torch.arange(1)


def told(noise, measured, y):
    """The negative log-likelihood of each measurement."""
    return density_of(dinv.physics.Denoising(noise), y)(measured[None], y[None], ROWS)[0]


def least(mean):
    """Variance of counts that is added, of so many on average."""
    return mean * min(1.0, 0.03 + mean / 1000)


def of_counts(rate, counts, extra=0.0):
    return torch.distributions.Poisson(rate + extra, validate_args=False).log_prob(counts + extra)


@pytest.mark.parametrize(
    ("noise", "log_prob"),
    [
        (PoissonNoise(0.1), lambda a, y: of_counts(a / 0.1, y / 0.1, least(3.0))),
        (PoissonGaussianNoise(0.1, 0.2), lambda a, y: of_counts(a / 0.1, y / 0.1, 4.0 + least(3.0))),
        (LogPoissonNoise(100.0, 0.5), lambda a, y: of_counts(100 * torch.exp(-a / 2), 100 * torch.exp(-y / 2))),
        (GammaNoise(4.0), lambda a, y: torch.distributions.Gamma(4.0, 4.0 / a).log_prob(y)),
    ],
)
def test_likelihoods_are_those_of_torch_up_to_a_constant(noise, log_prob):
    a = torch.linspace(0.05, 1, 50).double()
    y = torch.full_like(a, 0.3)
    found, expected = told(noise, a, y), -log_prob(a, y)
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-6, atol=1e-6)  # float32 parameters
    assert found.min() >= 0


@pytest.mark.parametrize(
    "noise", [PoissonNoise(1e-4), PoissonGaussianNoise(1e-4, 0.1), PoissonGaussianNoise(3e-4, 0.02)]
)
def test_many_photons_and_much_noise_keep_their_digits(noise):
    """In float32; by then the distribution is about Gaussian."""
    y = torch.full((50,), 0.3)
    gain, sigma = float(noise.gain), float(getattr(noise, "sigma", 0.0))
    spread = (gain * 0.3 + sigma**2 + gain**2 * least(0.3 / gain)) ** 0.5
    a = y + spread * torch.linspace(-2, 2, 50)
    torch.testing.assert_close(told(noise, a, y), (a - y).square() / (2 * spread**2), rtol=0.2, atol=1e-3)


def test_parameters_of_the_noise_for_other_images_are_told():
    physics = dinv.physics.Denoising(PoissonNoise(torch.full((4,), 0.1)))
    with pytest.raises(ValueError, match=r"gain of the physics has 4 rows, and y 2; type physics\.update"):
        DMILO(prior_about_grey())(torch.rand(2, *SHAPE).double(), physics)


def test_no_gain_is_gaussian_noise():
    assert density_of(dinv.physics.Denoising(PoissonGaussianNoise(0.0, 0.1)), torch.rand(1, *SHAPE)) is None


def test_laplace_noise_is_told_but_for_a_rounded_tip():
    a = torch.linspace(-1, 1, 51).double()
    torch.testing.assert_close(told(LaplaceNoise(0.1), a, torch.zeros_like(a)), a.abs() / 0.1, rtol=0, atol=0.011)


@pytest.mark.parametrize("noise", [PoissonNoise(0.05), PoissonGaussianNoise(0.05, 0.1), GammaNoise(8.0)])
def test_the_standard_deviation_of_a_measurement_is_that_of_draws(noise):
    torch.manual_seed(0)
    a = torch.tensor([0.2, 0.6, 1.0]).repeat(40_000, 1)
    expected = noise(a).std(0)
    std = density_of(dinv.physics.Denoising(noise), a).std(a[:1], ROWS)[0]
    torch.testing.assert_close(std, expected, rtol=0.02, atol=0)  # 1 / sqrt(80,000) is 0.4 %


@pytest.mark.parametrize("noise", [PoissonNoise(0.05), PoissonGaussianNoise(0.05, 0.02), LaplaceNoise(0.05)])
def test_likelihoods_have_gradients_everywhere(noise):
    """Also of dark measurements, and of images that are darker than none."""
    a = torch.linspace(-0.5, 1, 31).double().requires_grad_()
    for y in (0.0, 0.02, 1.0):
        value = told(noise, a, torch.full_like(a, y))
        (gradient,) = torch.autograd.grad(value.sum(), a)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_gaussian_noise_counts_and_complex_measurements_keep_the_squares():
    x = torch.rand(1, 1, 4, 4)
    assert density_of(dinv.physics.Denoising(GaussianNoise(0.1)), x) is None
    assert density_of(dinv.physics.Denoising(PoissonNoise(0.1, normalize=False)), x) is None
    assert density_of(dinv.physics.Denoising(PoissonNoise(0.1)), x.to(torch.complex64)) is None


def prior_about_grey(shrink=0.1):
    return toy_prior(AffineNet(shrink, 0.0), prediction_type="sample")


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("noise", [PoissonNoise(0.1), PoissonGaussianNoise(0.1, 0.05), LaplaceNoise(0.1)])
def test_a_batch_is_its_images_one_by_one(method, noise):
    torch.manual_seed(0)
    physics = dinv.physics.Denoising(noise).double()
    y = physics(torch.rand(3, *SHAPE).double())
    model = method(toy_prior(ConvNet()), schedule=Levels((1.0, 0.2)), max_passes=10)
    whole = model(y, physics)
    assert torch.isfinite(whole).all()
    for k in range(3):
        torch.testing.assert_close(model(y[k : k + 1], physics), whole[k : k + 1], rtol=0, atol=1e-6)


def test_a_gain_for_each_image_stays_with_it():
    gains = torch.tensor([0.02, 0.3])
    torch.manual_seed(0)
    x = torch.full((2, *SHAPE), 0.4).double()
    y = dinv.physics.Denoising(PoissonNoise(gains))(x)
    model = DMILO(toy_prior(ConvNet()), schedule=Levels((1.0, 0.2)), max_passes=10)
    whole = model(y, dinv.physics.Denoising(PoissonNoise(gains)).double())
    alone = model(y[1:], dinv.physics.Denoising(PoissonNoise(gains[1:])).double())
    torch.testing.assert_close(whole[1:], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_dead_pixels_are_left_out(method):
    torch.manual_seed(0)
    x = torch.full((1, *SHAPE), 0.5).double()
    physics = dinv.physics.Denoising(SaltPepperNoise(0.1, 0.0)).double()
    y = physics(x)
    settings = {"schedule": Levels((0.5, 0.1), skip=False), "max_passes": 40}
    own = method(prior_about_grey(), **settings)(y, physics)
    squares = method(prior_about_grey(), noise_level=0.15, **settings)(y, physics)
    dead = y == 0
    assert (own - x)[dead].abs().mean() < 0.5 * (squares - x)[dead].abs().mean()


def test_the_poisson_likelihood_of_deepinv_is_taken_image_by_image():
    """deepinv 0.5's adds one of its terms over the batch."""
    torch.manual_seed(0)
    physics = dinv.physics.Denoising(PoissonNoise(0.1)).double()
    y = physics(torch.rand(3, *SHAPE).double())
    fidelity = dinv.optim.PoissonLikelihood(gain=0.1, bkg=0.1)
    model = DMILO(toy_prior(ConvNet()), data_fidelity=fidelity, schedule=Levels((1.0, 0.2)), max_passes=10)
    whole = model(y, physics)
    torch.testing.assert_close(model(y[1:2], physics), whole[1:2], rtol=0, atol=1e-6)


def test_dark_parts_of_a_picture_of_few_photons_are_trusted_more():
    """The likelihood knows that dark measurements have little noise, where one size for all forgets it."""
    torch.manual_seed(0)
    x = torch.full((1, 1, 32, 32), 0.02).double()
    x[..., 16:] = 0.9
    physics = dinv.physics.Denoising(PoissonNoise(0.1)).double()
    y = physics(x)
    settings = {"schedule": Levels((0.25,), skip=False, mean=False, deviation_threshold=None), "max_passes": 40}
    start = torch.full_like(x, 0.5)  # which the image is held by
    models = [DMILO(prior_that_believes(), **settings, **noise) for noise in ({}, {"noise_level": 0.2})]
    own, squares = ((model(y, physics, init=start) - x)[..., :16].abs().mean() for model in models)
    assert own < 0.5 * squares


def test_operators_of_a_stack_have_noise_of_their_own():
    """What is measured with little noise counts by that, and a second measurement with much noise takes nothing."""
    torch.manual_seed(0)
    x = 0.2 + 0.6 * torch.rand(1, *SHAPE).double()
    members = [dinv.physics.Denoising(GaussianNoise(sigma)).double() for sigma in (0.02, 0.6)]
    both = dinv.physics.StackedLinearPhysics(members)
    y = both(x)
    settings = {"schedule": Levels((0.25,), skip=False, mean=False), "max_passes": 40}
    start = torch.full_like(x, 0.5)
    model = DMILO(prior_that_believes(), **settings)
    stacked, alone = (model(t, physics, init=start) for t, physics in ((y, both), (y[0], members[0])))
    assert (stacked - x).abs().mean() < 1.05 * (alone - x).abs().mean()
    members[1].noise_model = GaussianNoise(0.02)
    assert densities_of(dinv.physics.StackedLinearPhysics(members), y) is None  # of one size
