"""Small networks with known behaviour, in place of trained ones, and an operator with one parameter."""

import torch
from deepinv.models import Denoiser
from deepinv.physics import GaussianNoise, Physics
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from torch.utils._python_dispatch import TorchDispatchMode

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.benchmarks.closed_form import GaussianImages as GaussianImages
from deepinv_dmilo.benchmarks.closed_form import covariances
from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.likelihood.measurements import working_dtype
from deepinv_dmilo.likelihood.observe import observe as likelihoods_of


class AffineNet(torch.nn.Module):
    """A network that is weight * z + bias, entry by entry."""

    def __init__(self, weight=0.3, bias=0.1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(float(weight)))
        self.bias = torch.nn.Parameter(torch.tensor(float(bias)))

    def forward(self, z, t):
        return self.weight * z + self.bias


class ConvNet(torch.nn.Module):
    """A smooth nonlinear network that sees neighbours and the training step; takes any size and ``channels``."""

    def __init__(self, channels=3, out_channels=None):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Conv2d(channels, 8, 3, padding=1)
        self.dropout = torch.nn.Dropout(0.5)  # wrong results, should the solver forget the evaluation mode
        self.last = torch.nn.Conv2d(8, out_channels or channels, 3, padding=1)

    def forward(self, z, t):
        phase = (t.to(z.dtype) / 1000).view(-1, 1, 1, 1)
        return self.last(self.dropout(torch.tanh(self.first(z) + phase)))


class MixtureImages(Denoiser):
    """Gaussian images around one of some means, with weights: draws, and as a denoiser their mean given a noisy one."""

    def __init__(self, means, power, weights):
        super().__init__()
        for name, value in {"means": means, "power": power, "log_weights": weights.log()}.items():
            self.register_buffer(name, value)

    def weights_given(self, x, sigma=0.0):
        """The probability of each mean given images with white noise, (n, K)."""
        variance = self.power + torch.as_tensor(sigma).view(-1, 1, 1, 1) ** 2
        errors = torch.fft.fft2(x[:, None] - self.means, norm="ortho").abs().square() / variance[:, None]
        return (self.log_weights - errors.flatten(2).sum(2) / 2).softmax(1)

    def weights_measured(self, y, physics, noise):
        """The probability of each mean given linear measurements with white noise, (n, K), by dense matrices."""
        residual = (y[:, None] - physics.A(self.means)).flatten(2)
        whitened = torch.linalg.solve(covariances(self.power, physics, noise)[2], residual.mT).mT
        return (self.log_weights - (residual * whitened).sum(2) / 2).softmax(1)

    def draw(self, n):
        rng = torch.Generator().manual_seed(0)
        modes = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=rng)
        white = torch.randn(n, 1, *self.power.shape, generator=rng).double()
        return self.means[modes] + torch.fft.ifft2(torch.fft.fft2(white) * self.power.sqrt()).real

    def forward(self, x, sigma):
        gain = self.power / (self.power + torch.as_tensor(sigma).view(-1, 1, 1, 1) ** 2)
        mean = torch.einsum("nk,kchw->nchw", self.weights_given(x, sigma), self.means)
        return mean + torch.fft.ifft2(torch.fft.fft2(x - mean) * gain).real


class NoDoubles(TorchDispatchMode):
    """Stands for a device without float64, as Apple's: nothing becomes float64, and nothing of it goes elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            moved = args[0].dtype is torch.float64 and kwargs.get("device", args[0].device) != args[0].device
            if moved or (kwargs.get("dtype") is torch.float64 and args[0].dtype is not torch.float64):
                raise TypeError("the device has no float64")
        return func(*args, **kwargs)


class Gain(Physics):
    """A(x) = gain x, as a user writes it."""

    def __init__(self, gain=1.0, sigma=0.01):
        super().__init__(noise_model=GaussianNoise(sigma, rng=torch.Generator().manual_seed(0)))
        self.register_buffer("gain", torch.full((1, 1, 1, 1), gain).double())

    def A(self, x, gain=None, **kwargs):
        self.update(gain=gain)
        return self.gain * x


def toy_prior(net, *, prediction_type="epsilon", clip_sample=True, dtype=torch.float64):
    return DiffusionPrior(net, DDIMScheduler(prediction_type=prediction_type), clip_sample=clip_sample).to(dtype)


def observe(y, physics, num_samples=1, **settings):
    """The likelihood of a batch of images of the shape that A_adjoint gives, of one kind of noise."""
    shape = tuple(physics.A_adjoint(y).shape)
    like = torch.empty(0, dtype=working_dtype(y))
    forward = forward_model(physics, shape, like, single=shape[0] * num_samples == 1)
    (likelihood,) = likelihoods_of(y, forward, num_samples=num_samples, **settings)
    return likelihood


def posterior_of(model, y, physics):
    """What a call knows before its first image, of images of one kind of noise."""
    (posterior,) = model._posteriors(y, physics, None)
    return posterior


def tiny_unet(channels=1, size=16):
    """A randomly initialised diffusers UNet of 30 thousand parameters."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )


def tiny_autoencoder():
    """Of images of three channels, its latents half as wide and high, with four."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, **kinds)


def prior_that_believes():
    """Of any image, which is then what is shown of it."""

    class Shown(torch.nn.Module):
        def forward(self, z, t):
            abar = DDIMScheduler().alphas_cumprod[t].to(z).view(-1, 1, 1, 1)
            return z / abar.sqrt()

    return toy_prior(Shown(), prediction_type="sample", clip_sample=False)
