"""The kernel of an unknown blur by the marginal likelihood and the prior of kernels."""

import pytest
import torch
from deepinv.optim import L1
from deepinv.physics import Blur, BlurFFT, GaussianNoise
from toys import AffineNet, ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, BlurKernel, DiffusionPrior, Simplex
from deepinv_dmilo.likelihood.wiener import smooth_spectrum
from deepinv_dmilo.optim import lbfgs
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
    model = DMILO(toy_prior(ConvNet(3)), unknown={"filter": BlurKernel(guess)})
    with model._at_work() as at_work:
        physics = Blur(guess, padding="circular", noise_model=GaussianNoise(noise)).double()
        (posterior,) = at_work._posteriors(y, physics, None)
    likelihood, flat = posterior.likelihood, torch.zeros(1, 1, 36, 36).double()
    spectrum = torch.full((1, 3, 64, 33), 0.02**2).double() / likelihood.forward.units.scale**2
    at = likelihood, posterior.nuisance, x, likelihood.variance, spectrum, None
    return KernelPosterior(*at, flat, flat + 1e9), posterior.nuisance


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
    """From which a search alone goes to one with an error of 0.4."""
    x = held_out_images("photos")[13:14, :, 96:160, 96:160]
    true = gaussian_kernel(1.5, 17)
    physics = Blur(true, padding="circular", noise_model=GaussianNoise(0.005))
    torch.manual_seed(0)
    model = method(DiffusionPrior.from_pretrained("photos"), unknown={"filter": BlurKernel(true)}, max_calls=200)
    _, found = model(physics(x), physics, return_unknown=True)
    assert (found["filter"] - true).norm() < 0.25 * true.norm()


def stages(physics, guess, shape=(1, 3, 48, 48), **settings):
    model = DMILO(toy_prior(ConvNet(3)), unknown={"filter": BlurKernel(guess)}, **settings)
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


def test_rows_do_not_change_each_other(monkeypatch):
    """The objective of each row, and its noise from a generator, are those of the whole batch."""
    found, solve = [], lbfgs.minimize

    def minimize(objective, start, **settings):
        if not isinstance(objective, KernelPosterior):
            return solve(objective, start, **settings)
        found.append((objective, start, objective(start)))
        return start, objective(start), torch.ones(len(start))

    monkeypatch.setattr("deepinv_dmilo.posterior.blur.lbfgs.minimize", minimize)
    guess, prior = gaussian_kernel(1.5, 8).double(), toy_prior(AffineNet(0.9, 0.0))
    physics = Blur(guess, padding="valid", noise_model=GaussianNoise(0.02)).double()
    y = physics(held_out_images("digits")[:2, :, 4:].double())
    for part in (None, 1):
        rng = torch.Generator().manual_seed(0)
        DMILO(prior, unknown={"filter": BlurKernel(guess)}, max_calls=150, micro_batch=part, rng=rng)(y, physics)
    objective, start, values = found[0]
    torch.testing.assert_close(objective.select(torch.tensor([1]))(start[1:]), values[1:])
    assert len(found) == 30  # 10 of both rows, 20 of one each
    torch.testing.assert_close(torch.cat([found[10][2], found[11][2]]), values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("padding", ["valid", "circular", "reflect"])
def test_an_even_kernel_of_each_image_is_found_at_every_padding(padding):
    guess = gaussian_kernel(1.5, 8).repeat(2, 1, 1, 1)
    physics = Blur(guess, padding=padding, noise_model=GaussianNoise(0.02))
    y = physics(held_out_images("digits")[:2])
    model = DMILO(DiffusionPrior.from_pretrained("digits"), unknown={"filter": BlurKernel(guess)}, max_calls=150)
    x_hat, found = model(y, physics, return_unknown=True)
    torch.testing.assert_close(found["filter"].sum((1, 2, 3)), torch.ones(2))
    assert (physics.A(x_hat, filter=found["filter"]) - y).square().mean().sqrt() < 0.03


def test_a_simplex_has_the_search_alone():
    kernel = gaussian_kernel(2.0, 9)
    physics = Blur(kernel, padding="valid", noise_model=GaussianNoise(0.01))
    model = DMILO(toy_prior(ConvNet(3)), unknown={"filter": Simplex(kernel)}, max_calls=200)
    ((_, plan),) = model.plan(torch.rand(1, 3, 40, 40), physics).groups
    assert not any(stage.fixed for stage in plan.stages)


def test_the_default_guess_is_of_the_size_of_the_prior():
    assert BlurKernel().start.shape == (1, 1, 33, 33)
    torch.testing.assert_close(BlurKernel().start, gaussian_kernel(2.0, 33), rtol=0, atol=1e-4)


class Clipped(Blur):
    def A(self, x, **kwargs):
        return super().A(x, **kwargs).clamp(max=0.6)


@pytest.mark.parametrize(
    ("kernel", "make", "settings", "message"),
    [
        (gaussian_kernel(2.0, 9), Blur, {"max_calls": 140}, "type max_calls=150 times"),
        (gaussian_kernel(2.0, 35), Blur, {}, "at most 33 x 33"),
        (gaussian_kernel(2.0, 9), Clipped, {}, "for a Clipped"),
        (gaussian_kernel(2.0, 9), Blur, {"data_fidelity": L1()}, "needs noise of one standard deviation"),
    ],
    ids=["budget", "size", "physics", "noise"],
)
def test_what_it_is_not_for_is_told(kernel, make, settings, message):
    physics = make(kernel, padding="circular", noise_model=GaussianNoise(0.01))
    model = DMILO(toy_prior(ConvNet(3)), unknown={"filter": BlurKernel(kernel)}, **settings)
    with pytest.raises(ValueError, match=message):
        model.plan(torch.rand(1, 3, 48, 48), physics)
