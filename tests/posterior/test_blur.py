"""The kernel of an unknown blur by the marginal likelihood and the prior of kernels."""

import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Downsampling, GaussianNoise
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, Levels, Simplex
from deepinv_dmilo.likelihood.wiener import smooth_spectrum
from deepinv_dmilo.posterior.blur import KernelPosterior
from deepinv_dmilo.priors.blur_kernels import as_images, kernel_prior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.tasks import gaussian_kernel


def test_a_smooth_spectrum_of_white_noise_is_flat_and_a_slope_is_kept():
    white = torch.randn(200, 1, 32, 48, generator=torch.Generator().manual_seed(0)).double()
    assert (
        smooth_spectrum(white).mean(0) - 1
    ).abs().max() < 0.2  # means of logarithms, low where a bin has few frequencies
    rows, columns = torch.meshgrid(torch.fft.fftfreq(32), torch.fft.fftfreq(48), indexing="ij")
    gain = 1 / (rows.square() + columns.square() + 1 / 48**2).sqrt()
    sloped = torch.fft.ifft2(torch.fft.fft2(white) * gain).real
    ratio = (smooth_spectrum(sloped).mean(0) / gain.square())[0, 2:12, 2:12]
    assert ratio.min() > 0.6  # within an octave the slope alone is a factor of four
    assert ratio.max() < 1.7


def test_a_kernel_in_its_image_keeps_its_middle():
    image = as_images(torch.tensor([[[[1.0, 4.0, 1.0]]]]).double())
    assert image.shape == (1, 1, 36, 36)
    torch.testing.assert_close(image[0, 0, 16, 15:18], torch.tensor([0.5, 1.0, 0.5]).double())
    assert image.sum() < 2.1


def test_the_prior_of_kernels_removes_noise_from_kernels():
    """What it is for: its error is below that of the noisy kernels' images, clipped."""
    clean = held_out_images("kernels")[:8]
    prior = kernel_prior(torch.device("cpu"), torch.float32)
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    level = prior.level(0.4)
    found = prior.decode(prior.denoise(level.signal * prior.encode(noisy), level))
    assert (found - clean).norm() < 0.4 * (noisy.clamp(0, 1) - clean).norm()


def objective(true_kernel, noise=0.01):
    """Of exact means of images with errors of a known spectrum, where the prior of kernels says nothing."""
    rng = torch.Generator().manual_seed(0)
    x = held_out_images("photos")[12:13, :, 96:160, 96:160].double()
    error = 0.02 * torch.randn(x.shape, generator=rng).double()
    y = Blur(true_kernel, padding="circular")(x + error)
    y = y + noise * torch.randn(y.shape, generator=rng)
    guess = gaussian_kernel(2.0, 17).double()
    model = DMILO(toy_prior(ConvNet(3)), unknown={"filter": Simplex(guess)})
    with model._at_work() as at_work:
        physics = Blur(guess, padding="circular", noise_model=GaussianNoise(noise)).double()
        (posterior,) = at_work._posteriors(y, physics, None)
    likelihood, flat = posterior.likelihood, torch.zeros(1, 1, 36, 36).double()
    spectrum = torch.full((1, 3, 64, 33), 0.02**2).double() / likelihood.forward.units.scale**2
    return KernelPosterior(likelihood, posterior.nuisance, x, spectrum, flat, flat + 1e9), posterior.nuisance


def raw(kernel):
    return Simplex(kernel.double()).raw().flatten(1)


def test_the_true_kernel_is_more_probable_than_a_point_a_wider_and_a_narrower_one():
    """The image's error is counted, so that a kernel need not explain it away."""
    value, _ = objective(gaussian_kernel(1.5, 17).double())
    of_true = value(raw(gaussian_kernel(1.5, 17)))
    for other in (0.3, 1.2, 1.9):
        assert value(raw(gaussian_kernel(other, 17))) > of_true + 20


def test_the_gradient_is_that_of_the_value():
    value, nuisance = objective(gaussian_kernel(1.5, 17).double())
    start, direction = nuisance.packed(torch.arange(1)), torch.zeros(1, 289).double()
    direction[0, 140:150] = torch.linspace(-1, 1, 10)
    _, gradient = value.gradients(start)
    step = 1e-5
    slope = (value(start + step * direction) - value(start - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(1), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_the_true_kernel_is_not_left(method):
    """A search alone leaves it; its samples are not better than a kernel's error of 0.6 here."""
    x = held_out_images("photos")[13:14, :, 96:160, 96:160]
    true = gaussian_kernel(1.5, 17)
    physics = Blur(true, padding="circular", noise_model=GaussianNoise(0.005))
    torch.manual_seed(0)
    model = method(DiffusionPrior.from_pretrained("photos"), unknown={"filter": Simplex(true)}, max_calls=200)
    _, found = model(physics(x), physics, return_unknown=True)
    assert (found["filter"] - true).norm() < 0.25 * true.norm()


def stages(physics, guess, shape=(1, 3, 48, 48), **settings):
    model = DMILO(toy_prior(ConvNet(3)), unknown={"filter": Simplex(guess)}, **settings)
    y = torch.rand(*physics(torch.rand(shape)).shape, generator=torch.Generator().manual_seed(0))
    plan = model.plan(y, physics)
    ((_, of_image),) = plan.groups
    return plan, [stage.kernel_sigma is not None for stage in of_image.stages]


@pytest.mark.parametrize("make", [lambda k, n: Blur(k, padding="valid", noise_model=n), None], ids=["valid", "fft"])
def test_a_plan_has_a_search_then_the_kernel_then_the_image(make):
    kernel, noise = gaussian_kernel(2.0, 9), GaussianNoise(0.01)
    physics = make(kernel, noise) if make else BlurFFT((3, 48, 48), kernel, noise_model=noise)
    plan, of_kernel = stages(physics, kernel, max_calls=200)
    assert of_kernel == sorted(of_kernel[:-3]) + [False] * 3
    assert 10 <= sum(of_kernel) <= 20
    assert 180 <= plan.calls[0] <= 200
    assert "with the kernel fixed" in str(plan)


def test_other_unknowns_and_small_budgets_have_the_search_alone():
    kernel, noise = gaussian_kernel(2.0, 9), GaussianNoise(0.01)
    small = stages(Blur(kernel, padding="valid", noise_model=noise), kernel, max_calls=140)
    shrunk = Downsampling((3, 48, 48), filter=kernel, factor=2, noise_model=noise)
    wide = gaussian_kernel(4.0, 35)
    for _, of_kernel in (
        small,
        stages(shrunk, kernel, max_calls=200),
        stages(Blur(wide, padding="circular", noise_model=noise), wide, max_calls=200),
    ):
        assert not any(of_kernel)


def test_typed_levels_and_solver_steps_stay_as_they_are():
    kernel = gaussian_kernel(2.0, 9)
    physics = Blur(kernel, padding="valid", noise_model=GaussianNoise(0.01))
    for settings in ({"schedule": Levels((0.3, 0.1)), "max_calls": 200}, {"solver": LBFGS(steps=2)}):
        plan, of_kernel = stages(physics, kernel, **settings)
        assert not any(of_kernel)
        assert "fixed" not in str(plan)
