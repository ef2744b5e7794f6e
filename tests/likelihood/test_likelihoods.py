"""The likelihoods as functions of images: their values by hand, and measurements with more noise."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import (
    Denoising,
    GammaNoise,
    GaussianNoise,
    LaplaceNoise,
    LogPoissonNoise,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltPepperNoise,
)
from deepinv.utils import TensorList
from toys import observe

from deepinv_dmilo.likelihood.measurements import like_parts, parts

IMAGE = (3, 12, 20)


def fourier():
    return dinv.physics.LinearPhysics(
        A=lambda x, **_: torch.fft.fft2(x, norm="ortho"), A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho").real
    )


PHYSICS = {
    "pixels": lambda: dinv.physics.Blur(torch.ones(1, 1, 3, 5).double() / 15, padding="circular"),
    "complex": fourier,
    "stack": lambda: dinv.physics.StackedLinearPhysics([Denoising(), fourier()]),
}


def measured(name):
    """A Gaussian likelihood of two samples of three images, and images."""
    physics = PHYSICS[name]()
    likelihood = observe(physics.A(torch.rand(3, *IMAGE).double()), physics, 2, noise_level=0.1)
    return likelihood, torch.rand(6, *IMAGE).double()


def sizes(y):
    """A positive number for each measurement."""
    return like_parts(y, [0.1 + torch.rand(t.shape).double() for t in parts(y)])


@pytest.mark.parametrize("name", PHYSICS)
def test_a_variance_for_each_measurement_weighs_its_square(name):
    likelihood, x = measured(name)
    variance = sizes(likelihood.y)
    expected = torch.zeros(6).double()
    for r, v in zip(parts(likelihood.residual(x)), parts(variance), strict=True):
        expected += torch.stack([(one.abs() ** 2 / (2 * of_one)).sum() for one, of_one in zip(r, v, strict=True)])
    gaussian = likelihood.gaussian(variance)
    torch.testing.assert_close(gaussian(x), expected)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(gaussian.select(rows)(x[rows]), expected[rows])


@pytest.mark.parametrize("name", PHYSICS)
def test_variances_that_are_all_one_are_that_one(name):
    likelihood, x = measured(name)
    variance = like_parts(likelihood.y, [torch.full(t.shape, 0.3).double() for t in parts(likelihood.y)])
    expected = likelihood.gaussian(torch.full((6,), 0.3).double())
    torch.testing.assert_close(likelihood.gaussian(variance)(x), expected(x))
    torch.testing.assert_close(expected(x), likelihood.energy(x) / 0.6)


@pytest.mark.parametrize("name", PHYSICS)
def test_as_much_noise_on_top_as_there_is(name):
    """Of one size for each row, and of one for each measurement; the draws are those of the caller."""
    likelihood, x = measured(name)
    noise, variance = sizes(likelihood.y), sizes(likelihood.y)
    of_rows = torch.linspace(0.1, 0.6, 6).double()
    for one in (likelihood.gaussian(of_rows), likelihood.gaussian(variance)):
        noisier = one.perturbed(x, lambda y: noise)
        for k, (t, e, v) in enumerate(zip(parts(likelihood.y), parts(noise), parts(variance), strict=True)):
            std = (v if one.variance is variance else of_rows.view(-1, *[1] * (t.ndim - 1))).sqrt()
            torch.testing.assert_close(parts(noisier.y)[k], t + std * e)
        assert noisier.variance is one.variance


def test_noise_on_top_is_that_of_the_image_where_it_depends_on_it():
    y, x = torch.rand(2, *IMAGE).double(), torch.rand(2, *IMAGE).double()
    one = torch.ones_like(y)
    photons = observe(y, Denoising(PoissonNoise(0.04)).double())
    counted = photons.forward.units.scale * (photons.perturbed(x, lambda _: one).y - photons.y)
    torch.testing.assert_close(counted, (0.04 * x).sqrt(), rtol=1e-6, atol=0)  # float32 parameters
    laplace = observe(y, Denoising(LaplaceNoise(0.1)).double())
    counted = laplace.forward.units.scale * (laplace.perturbed(x, lambda _: one).y - laplace.y)
    torch.testing.assert_close(counted, torch.full_like(y, 2**0.5 * 0.1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("noise", "rtol"),
    [(GammaNoise(3.0), 1e-6), (PoissonNoise(0.04), 0.1), (PoissonGaussianNoise(0.04, 0.1), 0.1)],  # of the floors
)
def test_the_tangent_is_gaussian_and_of_the_same_gradient(noise, rtol):
    y, x = (0.3 + 0.6 * torch.rand(2, *IMAGE).double() for _ in range(2))
    likelihood = observe(y, Denoising(noise).double())
    tangent = likelihood.tangent_at(x)
    assert tangent.is_gaussian
    slopes = [torch.autograd.functional.vjp(one, x, torch.ones(2).double())[1] for one in (likelihood, tangent)]
    torch.testing.assert_close(*slopes, rtol=rtol, atol=0)


@pytest.mark.parametrize("noise", [LaplaceNoise(0.1), LogPoissonNoise(100.0, 1.0), GaussianNoise(0.1)])
def test_other_noise_is_its_own_tangent(noise):
    likelihood = observe(torch.rand(2, *IMAGE).double(), Denoising(noise).double())
    assert likelihood.tangent_at(torch.rand(2, *IMAGE).double()) is likelihood


def test_a_likelihood_that_knows_no_noise_has_none_on_top():
    y = torch.rand(2, *IMAGE)
    fidelity = {"data_fidelity": dinv.optim.L2(sigma=0.1)}
    for noise, settings in ((SaltPepperNoise(0.1, 0.1), {}), (GaussianNoise(0.1), fidelity)):
        likelihood = observe(y, Denoising(noise), **settings)
        assert not likelihood.has_noise
        with pytest.raises(TypeError, match="does not define a noise level"):
            likelihood.perturbed(y, torch.ones_like)


def test_a_stack_keeps_its_structure():
    likelihood, x = measured("stack")
    noisier = likelihood.perturbed(x, lambda y: like_parts(y, [torch.zeros_like(t) for t in parts(y)]))
    assert isinstance(noisier.y, TensorList)
    torch.testing.assert_close(noisier(x), likelihood(x))
