"""The last step, from the mode to the mean, where the exact mean is known: Gaussian images of a 1/f spectrum."""

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import PSNR
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DiffusionPrior, Levels
from deepinv_dmilo.likelihood.wiener import _spectrum
from deepinv_dmilo.tools.tasks import make_physics

SIZE = (24, 40)


class GaussianImages(dinv.models.Denoiser):
    """Of mean 0.5 and standard deviation 0.12: draws of them, and as a denoiser their mean given a noisy one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("power", _spectrum(torch.zeros(1, 1, *SIZE).double()) * (0.12 / 0.3) ** 2)

    def forward(self, x, sigma):
        gain = self.power / (self.power + torch.as_tensor(sigma).view(-1, 1, 1, 1) ** 2)
        return 0.5 + torch.fft.ifft2(torch.fft.fft2(x - 0.5) * gain).real

    def draw(self, n):
        white = torch.randn(n, 1, *SIZE, generator=torch.Generator().manual_seed(0)).double()
        return 0.5 + torch.fft.ifft2(torch.fft.fft2(white) * self.power.sqrt()).real


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
    images = GaussianImages()
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
