"""Which likelihood goes with measurements: of images whose noise is told, and of those where nobody did."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, PoissonNoise, ZeroNoise
from toys import AffineNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Levels
from deepinv_dmilo.likelihood.fidelity import Fidelity
from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.likelihood.likelihoods import EstimatedGaussian, Gaussian, NonGaussianNoise, SimulatedGaussian
from deepinv_dmilo.likelihood.observe import GUESSED_NOISE, observe

IMAGE = (3, 12, 20)
SIGMAS = torch.tensor([0.1, 0.0, 0.03, 0.0])


def observed(noise, num_samples=1, **settings):
    """The likelihoods of four images."""
    y = torch.rand(4, *IMAGE).double()
    forward = forward_model(Denoising(noise).double(), tuple(y.shape), y, single=False)
    return y, observe(y, forward, num_samples=num_samples, **settings)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_images_whose_noise_is_not_told_have_a_likelihood_of_their_own(num_samples):
    y, (told, guessed) = observed(GaussianNoise(SIGMAS), num_samples)
    assert (told.source, guessed.source) == ("simulated", "estimated")
    for one, images in ((told, [0, 2]), (guessed, [1, 3])):
        assert one.rows.tolist() == [4 * sample + image for sample in range(num_samples) for image in images]
        assert torch.equal(one.forward.units.scale * one.y, y[images].repeat(num_samples, 1, 1, 1))
    sizes = told.forward.units.scale * told.variance.sqrt()
    expected = SIGMAS[[0, 2]].double().repeat(num_samples)
    torch.testing.assert_close(sizes, expected, rtol=0.05, atol=0)  # of four draws of 720 numbers
    torch.testing.assert_close(guessed.variance, GUESSED_NOISE**2 * guessed.squared_norm)
    assert told.forward is guessed.forward


@pytest.mark.parametrize(
    ("noise", "settings", "kind", "source"),
    [
        (GaussianNoise(SIGMAS + 0.01), {}, SimulatedGaussian, "simulated"),
        (GaussianNoise(torch.linspace(0.1, 0.2, 20).view(1, 1, 1, 20)), {}, Gaussian, "given"),
        (GaussianNoise(SIGMAS), {"noise_level": 0.1}, Gaussian, "given"),
        (ZeroNoise(), {}, EstimatedGaussian, "estimated"),
        (PoissonNoise(0.1), {}, NonGaussianNoise, None),
        (PoissonNoise(0.1), {"noise_level": 0.1}, Gaussian, "given"),
        (GaussianNoise(SIGMAS), {"data_fidelity": dinv.optim.L2(sigma=0.1)}, Fidelity, None),
    ],
)
def test_other_images_go_together(noise, settings, kind, source):
    _, (likelihood,) = observed(noise, **settings)
    assert type(likelihood) is kind
    assert getattr(likelihood, "source", None) == source
    assert likelihood.rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_an_image_is_that_of_the_image_alone(method, num_samples):
    """Whether the noise of the others is told or not; images, samples, metrics and how the levels ended."""
    x = torch.rand(4, *IMAGE).double()
    y = x + torch.tensor([0.1, 0.05, 0.03, 0.2]).view(4, 1, 1, 1) * torch.randn(x.shape).double()
    prior = toy_prior(AffineNet(0.5, 0.0625), prediction_type="sample", clip_sample=False)
    model = method(prior, num_samples=num_samples, max_passes=12 * num_samples, schedule=Levels((1.0, 0.3, 0.1)))
    together = model.solve(y, Denoising(GaussianNoise(SIGMAS)).double(), compute_metrics=True)
    assert sorted(image for images, _ in together.plan.groups for image in images) == [0, 1, 2, 3]
    for k in range(4):
        physics = Denoising(GaussianNoise(SIGMAS[k : k + 1])).double()
        alone = model.solve(y[k : k + 1], physics, compute_metrics=True)
        torch.testing.assert_close(together.images[k], alone.images[0], rtol=0, atol=1e-9)  # rounding
        torch.testing.assert_close(together.samples[k], alone.samples[0], rtol=0, atol=1e-9)
        assert together.metrics["noise"][k] == pytest.approx(alone.metrics["noise"][0])
        assert together.ended[k] == alone.ended[0]
