"""Pictures, priors, operators and noise of the cases of test_golden.py: toys in float64, the same at each call."""

import deepinv as dinv
import torch
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics, NoiseModel, Physics, PoissonNoise
from diffusers import DDIMScheduler
from toys import tiny_autoencoder, tiny_unet

from deepinv_dmilo import DiffusionPrior, LatentPrior

SHAPE = (3, 12, 20)


def pictures(images=2, shape=SHAPE):
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, shape[0], 3, 5, generator=rng, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")


# Priors


class Wiener(dinv.models.Denoiser):
    """The exact denoiser of smooth random images about mid-grey: one that tells noise from signal."""

    def forward(self, x, sigma, **kwargs):
        frequencies = [torch.fft.fftfreq(size, dtype=x.dtype) for size in x.shape[-2:]]
        squares = frequencies[0][:, None].square() + frequencies[1].square()
        power = 1 / (1 + 300 * squares)
        return 0.5 + torch.fft.ifft2(torch.fft.fft2(x - 0.5) * power / (power + sigma**2)).real


def wiener():
    return DiffusionPrior.from_denoiser(Wiener(), max_noise=40.0).double()


def latent_prior():
    torch.manual_seed(0)
    return LatentPrior(DiffusionPrior(tiny_unet(4, 8), DDIMScheduler(), clip_sample=False), tiny_autoencoder()).double()


# Operators


def noise(sigma=0.05):
    return GaussianNoise(sigma)


def masked(noise_model=None, images=1, kept=0.5):
    mask = (torch.rand(images, *SHAPE, generator=torch.Generator().manual_seed(3)) < kept).double()
    return Inpainting(SHAPE, mask=mask, noise_model=noise_model or noise()).double()


def one_of_three_masked(noise_model=None):
    mask = torch.ones(3, *SHAPE)
    mask[0, :, 2:9, 4:14] = 0
    return Inpainting(SHAPE, mask=mask, noise_model=noise_model or noise(0.01)).double()


def kernel(width=1.0, size=5):
    grid = torch.arange(size).double() - size // 2
    line = (-grid.square() / (2 * width**2)).exp()
    return (torch.outer(line, line) / line.sum() ** 2)[None, None]


def blur(noise_model=None, padding="valid", width=1.0):
    return dinv.physics.Blur(kernel(width), padding=padding, noise_model=noise_model or noise()).double()


def blur_fft(noise_model=None, width=1.0, shape=SHAPE):
    return dinv.physics.BlurFFT(shape, filter=kernel(width), noise_model=noise_model or noise()).double()


def smaller(noise_model=None):
    model = noise_model or noise()
    return dinv.physics.Downsampling(img_size=SHAPE, filter="bicubic", factor=4, noise_model=model).double()


def compressed():
    rng = torch.Generator().manual_seed(0)
    return dinv.physics.CompressedSensing(m=200, img_size=SHAPE, rng=rng, dtype=torch.float64, noise_model=noise())


def phase_retrieval():
    rng = torch.Generator().manual_seed(0)
    return dinv.physics.RandomPhaseRetrieval(m=400, img_size=SHAPE, rng=rng, dtype=torch.complex128)


def mri():
    mask = (torch.rand(1, 1, 12, 20, generator=torch.Generator().manual_seed(3)) < 0.6).double()
    return dinv.physics.MRI(mask=mask, img_size=(2, 12, 20), noise_model=noise()).double()


def fourier(noise_model=None):
    return LinearPhysics(
        A=lambda x: torch.fft.fft2(x, norm="ortho"),
        A_adjoint=lambda y: torch.fft.ifft2(y, norm="ortho").real,
        noise_model=noise_model or noise(),
    )


def stack(first, second):
    return dinv.physics.StackedLinearPhysics([masked(first), Denoising(second).double()])


def tanh(noise_model=None):
    return Physics(A=lambda x: torch.tanh(2 * x - 1), noise_model=noise_model or noise(0.02))


def camera():
    """A blur, what saturates, and a gamma curve."""
    inside = dinv.physics.Blur(kernel(), padding="circular").double()
    return Physics(A=lambda x: (1.1 * inside.A(x)).clamp(1e-3, 1) ** 0.45, noise_model=noise(0.02))


def hiding():
    """What differs between its images is in a list that a function encloses."""
    gains = [0.5, 1.0, 1.5]
    scaled = lambda x: torch.stack([gain * one for gain, one in zip(gains, x, strict=False)])  # noqa: E731
    return LinearPhysics(A=scaled, A_adjoint=scaled, noise_model=noise())


def micro_units():
    return LinearPhysics(A=lambda x: 1e-6 * x, A_adjoint=lambda y: 1e-6 * y, noise_model=noise(5e-8).double())


# Noise

EACH = torch.tensor([0.01, 0.1, 0.4])
SIZES = torch.full((1, *SHAPE), 0.02)
SIZES[..., 10:] = 0.3


class Own(NoiseModel):
    """A noise model of a user's."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x, seed=None, **kwargs):
        return x + self.size * torch.randn_like(x)


NOISES = {
    "each image": lambda: GaussianNoise(EACH[:2]),
    "none": dinv.physics.ZeroNoise,
    "uniform": lambda: dinv.physics.UniformNoise(0.1),
    "own": lambda: Own(0.05),
    "own, each measurement": lambda: Own(SIZES.double()),
    "Poisson": lambda: PoissonNoise(0.02),
    "Poisson and Gaussian": lambda: dinv.physics.PoissonGaussianNoise(0.02, 0.05),
    "Gamma": lambda: dinv.physics.GammaNoise(10.0),
    "Laplace": lambda: dinv.physics.LaplaceNoise(0.05),
    "salt and pepper": lambda: dinv.physics.SaltPepperNoise(0.05, 0.05),
    "log Poisson": lambda: dinv.physics.LogPoissonNoise(500.0, 0.5),
}
UNTOLD = Own(0.04)  # in measurements, of which the physics then tells nothing
