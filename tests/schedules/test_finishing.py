"""The last step, from the mode to the mean: where the exact mean is known, and how the network is asked."""

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import GaussianNoise, Inpainting
from toys import ConvNet, GaussianImages, toy_prior

from deepinv_dmilo import DMILO, DiffusionPrior, Levels
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.schedules.finishing import rounded_down
from deepinv_dmilo.tools.tasks import make_physics

SIZE = (24, 40)


@pytest.mark.parametrize(
    ("task", "options"),
    [("super-resolution", {"factor": factor}) for factor in (2, 4)]
    + [(task, {}) for task in ("deblurring", "inpainting", "motion-deblurring", "denoising")],
)
def test_strong_noise_costs_no_image_of_a_known_mean(task, options):
    """
    Their mode is their mean: there is little to gain, and where ``||A||`` is small there were 1 to 2 dB to lose.

    A tenth of a decibel is what one level may cost, since it is told of noise of all frequencies.
    """
    images = GaussianImages(SIZE)
    x, prior = images.draw(4), DiffusionPrior.from_denoiser(images, max_noise=40.0)
    physics = make_physics(task, (1, *SIZE), noise=0.3, **options).double()
    y = physics(x)
    mean, mode = (
        PSNR()(DMILO(prior, max_passes=25, schedule=Levels(mean=with_call))(y, physics), x).mean()
        for with_call in (True, False)
    )
    assert mean > mode - 0.1


def test_the_error_that_is_assumed_does_not_depend_on_the_batch():
    """One image of little noise, for which nothing need be asked, and one whose noise is more than is left open."""
    kernels = torch.tensor([1.0, 0.1]).view(2, 1, 1, 1) * torch.full((2, 1, 3, 5), 1 / 15)
    x = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    model = DMILO(toy_prior(ConvNet()), max_passes=10, noise_level=0.09)

    def reconstruct(rows):
        physics = dinv.physics.Blur(kernels[rows].double(), padding="circular")
        return model(physics.A(x[rows]), physics)

    together = reconstruct([0, 1])
    for n in range(2):
        torch.testing.assert_close(reconstruct([n])[0], together[n], rtol=0, atol=1e-9)


def test_denoising_is_what_the_network_makes_of_it():
    """Also where noise takes what is black or white beyond the limits of images: it is not clamped away."""
    prior, x = DiffusionPrior.from_pretrained("digits"), held_out_images("digits")[248:252]
    for sigma in (0.005, 0.05):
        physics = dinv.physics.Denoising(GaussianNoise(sigma, rng=torch.Generator().manual_seed(0)))
        y = physics(x)
        one_call = prior.denoiser()(y, sigma).clamp(0, 1)
        ours = DMILO(prior, max_passes=10)(y, physics)
        assert (PSNR()(ours, x) > PSNR()(one_call, x) - 0.05).all()


def test_images_of_one_mask_end_with_one_call_of_the_network(monkeypatch):
    """Though rounding makes the noise of each another float, and a denoiser knows all levels."""
    calls, denoised = [], Posterior.denoised
    monkeypatch.setattr(Posterior, "denoised", lambda self, z, level: calls.append(len(z)) or denoised(self, z, level))

    class Shrink(dinv.models.Denoiser):
        def forward(self, x, sigma, **kwargs):
            return 0.5 + (x - 0.5) * 0.04 / (0.04 + sigma**2)

    noise = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    physics = Inpainting((3, *SIZE), mask=0.3, rng=torch.Generator().manual_seed(0), noise_model=noise)
    y = torch.cat([physics(torch.rand(1, 3, *SIZE)) for _ in range(16)])
    DMILO(DiffusionPrior.from_denoiser(Shrink(), max_noise=40.0), max_passes=2, schedule=Levels((0.3,)))(y, physics)
    assert calls == [16]


def test_the_network_is_told_hardly_less_noise_than_there_is():
    noise = torch.tensor([1e-4, 0.05, 0.05 * (1 + 1e-6), 0.3, 7.0, 0.0])
    ratios = torch.tensor(rounded_down(noise))[:-1] / noise[:-1]
    assert ratios.max() <= 1 + 1e-5  # of float32
    assert ratios.min() >= 2 ** (-1 / 32) - 1e-5
    assert rounded_down(noise)[1] == rounded_down(noise)[2]
    assert rounded_down(noise)[-1] == 0
