"""Noise of unlike size in the measurements of an image: told, drawn, and what weighing each by its own gains."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, Inpainting, NoiseModel
from deepinv.utils import TensorList
from toys import AffineNet, observe, toy_prior

from deepinv_dmilo import DMILO, DiffusionPrior, DMPlug, Levels

IMAGE = (1, 24, 40)
SIZES = torch.full((1, *IMAGE), 0.02)
SIZES[..., 20:] = 0.4


class Own(NoiseModel):
    """A noise model of a user's: a function of the clean measurements."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x, seed=None, **kwargs):
        return x + self.noise(x)


def of_halves(x):
    return SIZES[: len(x)] * torch.randn_like(x)


def fourier(noise):
    return dinv.physics.LinearPhysics(
        A=lambda x, **_: torch.fft.fft2(x, norm="ortho"),
        A_adjoint=lambda y, **_: torch.fft.ifft2(y, norm="ortho").real,
        noise_model=noise,
    )


def relative(likelihood):
    """Sizes of noise that the measurements are counted in, over their mean."""
    return likelihood.forward.units.relative


@pytest.mark.parametrize("noise", [GaussianNoise(SIZES), Own(of_halves)])
def test_each_measurement_is_counted_in_its_own_noise(noise):
    """Told, to the last digit; of 64 draws, to 2 ** 0.5 / 8 in the variance, 9 % in the size, of each."""
    (found,) = relative(observe(torch.rand(2, *IMAGE), Denoising(noise)))
    expected = (SIZES / SIZES.square().mean().sqrt()).clamp(min=0.1).expand(2, *IMAGE)
    tolerance = 1e-5 if isinstance(noise, GaussianNoise) else 0.4  # more than four times that: of 1920 measurements
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(found.log().mean(), expected.log().mean(), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: 0.1 * torch.randn_like(x),
        lambda x: 0.01 * torch.distributions.Cauchy(0.0, 1.0).sample(x.shape),
        lambda x: (torch.rand_like(x) < 0.02) * torch.randn_like(x),  # a dead pixel here and there
    ],
    ids=["Gaussian", "Cauchy", "outliers"],
)
def test_noise_of_one_size_is_seen_to_be_that(noise):
    for model in (Own(noise), GaussianNoise(0.1), dinv.physics.UniformNoise(0.1)):
        mask = (torch.rand(1, *IMAGE) < 0.5).float()
        for physics in (Denoising(model), Inpainting(IMAGE, mask=mask, noise_model=model)):
            assert relative(observe(torch.rand(1, *IMAGE), physics)) is None


def test_an_image_does_not_depend_on_its_batch():
    """One of two images has noise of one size."""

    def noise(x):
        is_dark = x.mean((1, 2, 3), keepdim=True) < 0.5
        return torch.where(is_dark, SIZES, 0.1) * torch.randn_like(x)

    gain = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    both = relative(observe(torch.rand(2, *IMAGE), PerImage(gain, noise)))[0]
    assert torch.equal(both[1], torch.ones(IMAGE))
    alone = relative(observe(torch.rand(1, *IMAGE), PerImage(gain[:1], noise)))[0]
    torch.testing.assert_close(both[:1], alone)


class PerImage(dinv.physics.LinearPhysics):
    def __init__(self, gain, noise):
        super().__init__(noise_model=Own(noise))
        self.register_buffer("gain", gain)

    def A(self, x, **kwargs):
        return self.gain * x

    def A_adjoint(self, y, **kwargs):
        return self.gain * y


@pytest.mark.parametrize("is_level", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_real_and_complex_measurements_have_the_variance_of_their_numbers(is_level, order):
    """In any order, as ``noise_level`` and as noise models tell it: half for each number of a complex one."""
    noise = dinv.physics.ZeroNoise() if is_level else GaussianNoise(0.05)
    members = [Denoising(noise), fourier(noise)][::order]
    physics = dinv.physics.StackedLinearPhysics(members)
    x = torch.rand(2, *IMAGE)
    likelihood = observe(physics.A(x), physics, noise_level=0.05 if is_level else None)
    scale, variance = likelihood.forward.units.scale, likelihood.mean_variance(x)
    found = [(scale**2 * variance.view(2, 1, 1, 1) * t.square()).flatten() for t in relative(likelihood)][::order]
    for t, expected in zip(found, (0.0025, 0.00125), strict=True):
        torch.testing.assert_close(t, torch.full_like(t, expected))


def errors(y, physics, x, **settings):
    prior = toy_prior(AffineNet(0.5, 0.0625), prediction_type="sample", clip_sample=False)
    model = DMILO(prior, max_passes=20, schedule=Levels((0.3,), deviation_threshold=None), **settings)
    return (model(y, physics) - x).square().mean().sqrt()


def test_what_weighing_each_measurement_gains():
    """As much as a likelihood that the user writes, told or drawn, in one operator or a stack of two."""

    class Weighed(dinv.optim.DataFidelity):
        def fn(self, x, y, physics, *args, **kwargs):
            return ((physics.A(x) - y) / SIZES).square().flatten(1).sum(1) / 2

    x = torch.linspace(0.2, 0.8, 40).expand(1, *IMAGE).double()
    y = x + of_halves(x)
    told, drawn = (errors(y, Denoising(noise).double(), x) for noise in (GaussianNoise(SIZES), Own(of_halves)))
    likelihood = errors(y, Denoising().double(), x, data_fidelity=Weighed())
    averaged = errors(y, Denoising().double(), x, noise_level=SIZES.square().mean().sqrt().item())
    assert told < 0.8 * averaged
    assert told < 1.1 * likelihood
    torch.testing.assert_close(told, drawn, rtol=0.05, atol=0)  # sizes of 64 draws


class Fractal(dinv.models.Denoiser):
    """The exact denoiser of images about mid-grey whose power falls off with the frequency, as that of pictures."""

    def __init__(self, size=32, std=0.12):
        super().__init__()
        frequency = torch.fft.fftfreq(size, dtype=torch.float64)
        power = 1 / (size**2 * (frequency[:, None].square() + frequency.square()) + 1)
        self.register_buffer("power", std**2 * power / power.mean())

    def filtered(self, x, gain):
        return torch.fft.ifft2(torch.fft.fft2(x) * gain).real

    def forward(self, x, sigma, **kwargs):
        return 0.5 + self.filtered(x - 0.5, (self.power / (self.power + sigma**2)).to(x.dtype))

    def posterior_mean(self, y, variance):
        """Of images (n, 1, h, w) and noise of a variance (h, w) for each pixel."""
        unit = torch.eye(variance.numel(), dtype=torch.float64).view(-1, *variance.shape)
        covariance = self.filtered(unit, self.power).flatten(1)
        gain = torch.linalg.solve(covariance + variance.flatten().diag(), covariance)
        return 0.5 + ((y - 0.5).flatten(1) @ gain).view_as(y)


def test_the_exact_posterior_mean_is_almost_reached():
    """Of images that a Gaussian prior draws; to 4 %, where squares that all weigh alike miss it by 32 %."""
    denoiser = Fractal()
    size = torch.where(torch.arange(32) < 16, 0.02, 0.4).expand(32, 32)
    x = 0.5 + denoiser.filtered(torch.randn(6, 1, 32, 32).double(), denoiser.power.sqrt())
    y = x + size * torch.randn(6, 1, 32, 32)
    prior = DiffusionPrior.from_denoiser(denoiser, max_noise=40.0)
    physics = Denoising(Own(lambda clean: size * torch.randn_like(clean)))
    level = size.square().mean().sqrt().item()
    found = {
        "exact": denoiser.posterior_mean(y, size.double().square()),
        "weighed": DMILO(prior)(y.float(), physics),
        "alike": DMILO(prior, noise_level=level)(y.float(), Denoising()),
    }
    error = {name: (image - x).square().mean().sqrt().item() for name, image in found.items()}
    print(error)  # the figures of docs/physics.rst
    assert error["weighed"] < 1.08 * error["exact"]
    assert error["alike"] > 1.15 * error["exact"]


def test_the_published_loops_do_not_weigh():
    """Their mean squares are of measurements as they are."""
    y, prior = torch.rand(1, *IMAGE), toy_prior(AffineNet(0.5, 0.0625), prediction_type="sample", clip_sample=False)
    weighed, plain = (
        DMPlug(prior.float(), steps=3)(y, Denoising(noise)) for noise in (Own(of_halves), GaussianNoise(0.1))
    )
    torch.testing.assert_close(weighed, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, *IMAGE), (2, 1, 1, 1), (2, *IMAGE)])
def test_sizes_that_are_all_one_are_that_one(shape):
    """Though deepinv's noise model, asked for noise of as many dimensions, makes some of another shape."""
    physics = Denoising(GaussianNoise(torch.full(shape, 0.1)))
    x = torch.rand(2, *IMAGE)
    torch.testing.assert_close(observe(x, physics).mean_variance(x), torch.full((2,), 0.01))
    stack = dinv.physics.stack(physics, Denoising(GaussianNoise(0.1)))
    torch.testing.assert_close(observe(TensorList([x, x]), stack).mean_variance(x), torch.full((2,), 0.01))


def test_a_stack_of_gaussian_noises_is_weighed():
    physics = dinv.physics.stack(Denoising(GaussianNoise(0.01)), Denoising(GaussianNoise(0.1)))
    likelihood = observe(TensorList([torch.rand(1, *IMAGE)] * 2), physics)
    first, second = relative(likelihood)
    torch.testing.assert_close(second / first, torch.full_like(first, 10.0))
    assert likelihood.is_gaussian


class Scaled(dinv.physics.LinearPhysics):
    """The image, in units of its own."""

    def __init__(self, unit, noise):
        super().__init__(noise_model=noise, img_size=IMAGE)
        self.unit = unit

    def A(self, x, **kwargs):
        return self.unit * x

    def A_adjoint(self, y, **kwargs):
        return self.unit * y


def gaussian(size):
    return Own(lambda x: size * torch.randn_like(x))


@pytest.mark.parametrize("noise", [GaussianNoise, gaussian])
@pytest.mark.parametrize("unit", [1 / 16, 1 / 255, 255.0])
def test_parts_of_a_stack_may_have_units_of_their_own(noise, unit):
    """Noise of a part, in that unit, counts for as much as in any other."""
    x = torch.rand(2, *IMAGE)

    def told(c):
        physics = dinv.physics.stack(Scaled(c, noise(0.02 * c)), Scaled(1.0, noise(0.3)))
        return [t.mean() for t in relative(observe(TensorList([c * x, x]), physics))]

    (first, second), (one, other) = told(unit), told(1.0)
    # drawn 64 times, logarithms are taken towards their mean, less where they differ more: by 2 % at most
    tolerance = 1e-5 if noise is GaussianNoise else 0.05
    torch.testing.assert_close(first / second, unit * one / other, rtol=tolerance, atol=0)


def test_rows_of_a_measurement_may_have_units_of_their_own():
    """As they have in one unit, told to the last digit where the noise is not far less than the mean."""
    units = torch.where(torch.arange(24) % 2 == 0, 1.0, 0.01).view(1, 1, 24, 1)
    sizes = torch.where(torch.arange(24) % 2 == 0, 0.1, 0.02).view(1, 1, 24, 1).expand(1, *IMAGE)
    x = torch.rand(2, *IMAGE)
    (found,) = relative(observe(units * x, Scaled(units, GaussianNoise(units * sizes))))
    expected = (units * sizes).expand_as(found)
    torch.testing.assert_close(found / found[0, 0, 0, 0], expected / expected[0, 0, 0, 0])


def test_a_stack_of_photon_counts_may_have_units_of_its_own():
    """Its last steps weigh each part by its noise, whatever the units."""
    x, seen = torch.linspace(0.2, 0.8, 40).expand(1, *IMAGE).double(), []
    for unit in (1.0, 1 / 255):
        noise = dinv.physics.PoissonNoise(torch.tensor(0.001 * unit).double())
        physics = dinv.physics.stack(Scaled(unit, noise), Scaled(1.0, GaussianNoise(0.3)).double())
        likelihood = observe(TensorList([unit * (x + 0.02), x + 0.02]), physics)
        seen.append(likelihood.gaussian_at(x)(x))
    torch.testing.assert_close(*seen)


def test_a_part_without_noise_has_a_size_all_the_same():
    physics = dinv.physics.stack(Denoising(Own(torch.zeros_like)), Denoising(gaussian(0.1)))
    first, second = relative(observe(TensorList([torch.rand(1, *IMAGE)] * 2), physics))
    assert 0 < first.max() < 0.2 * second.min()
