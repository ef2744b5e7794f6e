"""Small operators in float64, with noise from a seed: nonlinear, complex, of a mask for each image."""

import deepinv as dinv
import torch


class Fourier(dinv.physics.LinearPhysics):
    """Half of the frequencies, of an even number of columns."""

    def A(self, x, **kwargs):
        return torch.fft.fft2(x, norm="ortho")[..., ::2]

    def A_adjoint(self, y, **kwargs):
        full = torch.zeros(*y.shape[:-1], 2 * y.shape[-1], dtype=y.dtype)
        full[..., ::2] = y
        return torch.fft.ifft2(full, norm="ortho").real


def gaussian(noise=0.05):
    return dinv.physics.GaussianNoise(noise, rng=torch.Generator().manual_seed(0))


def photons():
    return dinv.physics.PoissonNoise(0.05, rng=torch.Generator().manual_seed(0))


def masked(shape, images=1, noise=0.05):
    """Four in ten pixels, others for each image."""
    mask = torch.rand(images, 1, *shape[1:], generator=torch.Generator().manual_seed(0)) < 0.4
    mask = mask.expand(-1, shape[0], -1, -1).double()
    return dinv.physics.Inpainting(shape, mask=mask, noise_model=gaussian(noise)).double()


def blur(noise):
    return dinv.physics.Blur(torch.full((1, 1, 5, 5), 1 / 25), padding="circular", noise_model=noise).double()


def nonlinear(shape):
    def A(x, **kwargs):
        return torch.nn.functional.avg_pool2d(x, 4).clamp(min=1e-3) ** 0.8

    physics = dinv.physics.Physics(A=A, noise_model=gaussian())
    physics.img_size = shape
    return physics
