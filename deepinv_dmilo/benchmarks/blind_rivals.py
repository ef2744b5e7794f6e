"""
Rivals of blind deblurring, written by us from their papers: the kernel is estimated along the diffusion.

They take the prior of the report and the bundled prior of kernels, and periodic blurs with one kernel of at most
33 x 33. Images u are in [-1, 1] inside. The papers were read beside their authors' code, which was not run:
docs/benchmarks.md has what differs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.benchmarks.rivals import Rival
from deepinv_dmilo.likelihood.measurements import energy
from deepinv_dmilo.priors.blur_kernels import IMAGE_SIDE, as_images, as_kernels, kernel_prior, middle
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.utils.spectra import transfer_function

LEAST_NOISE_TOLD = 1e-4  # of images in [-1, 1], in divisions by noise
TINY = 1e-12  # that is added to a kernel, which may be zero everywhere


class BlindRival(Rival):
    """
    What they share: levels of DDPM's kind, a first guess of the kernel, a step of DDPM.

    :param int steps: noise levels, a forward and backward pass each.
    """

    def __init__(self, prior: Prior, shape: tuple[int, ...], noise: float, weight: float, *, steps: int) -> None:
        super().__init__(prior, shape, noise, weight)
        self.steps = steps
        self.kernels: Tensor = torch.empty(0)  # that the last call ended with, (B, 1, h, w)

    def training_levels(self, prior: Prior) -> tuple[Level, ...]:
        """
        So many levels from the noisiest to the last but one, evenly spaced, and the clean image.

        :raises ValueError: whole strides leave out the noisiest ones.
        """
        levels = (*prior.levels(self.steps - 1), Level(1.0, 0.0))
        if levels[0].ratio < min(10.0, prior.levels(1)[0].ratio / 2):
            raise ValueError(f"steps={self.steps}: its levels begin far below the noisiest; type 100, say")
        return levels

    def guess(self, y: Tensor, physics: Physics) -> Tensor:
        """
        The kernel that the physics has, for every image, (B, 1, h, w).

        :raises ValueError: it is not that of a periodic blur, or more than the middle 33 x 33 of it counts.
        """
        kernel = getattr(physics, "filter", None)
        if not isinstance(kernel, Tensor):
            raise ValueError(f"{type(physics).__name__} has no filter: type a blur, such as BlurFFT")
        kernel = middle(kernel[:, :1])
        x = torch.rand(1, *self.shape, generator=torch.Generator().manual_seed(0)).to(y)
        if y.shape[1:] != x.shape[1:] or (physics.A(x) - blurred(x, kernel)).abs().max() > 1e-3:
            raise ValueError(f"{type(physics).__name__}: type a periodic blur with a kernel of 33 x 33, as BlurFFT")
        return (kernel / kernel.sum((-2, -1), keepdim=True)).expand(len(y), -1, -1, -1)


class BlindDPS(BlindRival):
    """
    Parallel diffusions of image and kernel (Chung et al., CVPR 2023).

    At each level the two clean images are predicted, and the gradient of the norm of the residual moves both latents.
    The weight is the step along that gradient, times the signal of the level (authors' code).

    :param int steps: noise levels (paper: 1000).
    """

    of_kernels = 0.2  # step of the latent kernel, relative to the image's (paper: 1; lost 1 dB on tuning pictures)

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        size, kernel_of = self.guess(y, physics).shape[-2:], kernel_prior(y.device, y.dtype)
        levels, levels_of_kernel = self.training_levels(self.prior), self.training_levels(kernel_of)
        z = levels[0].spread * self.pure_noise(y)
        w = levels_of_kernel[0].spread * torch.randn(len(y), 1, IMAGE_SIDE, IMAGE_SIDE, device=y.device)
        for (a, b), (c, d) in zip(pairwise(levels), pairwise(levels_of_kernel), strict=True):
            with torch.enable_grad():
                z, w = z.detach().requires_grad_(), w.detach().requires_grad_()
                u, v = self.prior.denoise(z, a).clamp(-1, 1), kernel_of.denoise(w, c).clamp(-1, 1)
                self.kernels = as_kernels(kernel_of.decode(v), *size)
                residual = 2 * y - 1 - blurred(u, self.kernels)
                of_z, of_w = torch.autograd.grad(energy(residual).sqrt().sum(), (z, w))
            z = ancestral(z, u, a, b) - self.weight * a.signal * of_z
            w = ancestral(w, v, c, d) - self.weight * self.of_kernels * c.signal * of_w
        self.kernels = self.kernels.detach()
        return (z.detach() + 1) / 2


class FastDiffusionEM(BlindRival):
    """
    Fast Diffusion EM (Laroche, Almansa and Coupete, WACV 2024), with the guidance of PiGDM.

    At each level the predicted clean image gives the kernel, by half-quadratic splitting with a denoiser of kernels,
    and that kernel guides the image. The weight is the noise level of the guidance, relative to that of y: it allows
    for errors of the kernel.

    :param int steps: noise levels (authors' code: 100).
    """

    splits = 10  # of an M-step (authors' code)
    # Tried with 50 levels on the tuning pictures, 64 x 64, noise 0.005 (docs/lab-book/blind.md): penalties of 1e5
    # (authors' code) to 1e8; M-steps at all levels, below 10, 3 and 1; eq. D.9; the authors' guidance, a quarter as
    # strong; the variance 1 - alpha_bar. These are the best.
    penalty = 1e7  # of a kernel that sums to one, to the denoised one (authors' code: beta)
    kernel_noise = 0.03  # noise level given to the denoiser, for images of kernels in [0, 1]
    first = 3.0  # noise level below which M-steps begin

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        kernels, levels = self.guess(y, physics), self.training_levels(self.prior)
        z = levels[0].spread * self.pure_noise(y)
        for a, b in pairwise(levels):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                u = self.prior.denoise(z, a).clamp(-1, 1)
                if a.ratio < self.first:
                    kernels = self.likeliest(kernels, (u.detach() + 1) / 2, y)
                drawn = deviation(a, b) ** 2
                variance = drawn / (1 + drawn)  # authors' code
                pull = self.pull(u.detach(), 2 * y - 1, kernels, variance)
                (gradient,) = torch.autograd.grad((pull * u).sum(), z)
            z = ancestral(z, u.detach(), a, b) + a.signal * variance * gradient
        self.kernels = kernels
        return (z.detach() + 1) / 2

    def pull(self, u: Tensor, y: Tensor, kernels: Tensor, variance: float) -> Tensor:
        """The gradient of log p(y | u) with u of a variance, for images in [-1, 1]."""
        transfer = transfer_function(kernels, (u.shape[-2], u.shape[-1]))
        residual = torch.fft.rfft2(y) - transfer * torch.fft.rfft2(u)
        told = max(self.weight * self.noise, LEAST_NOISE_TOLD) ** 2
        weighted = transfer.conj() * residual / (variance * transfer.abs() ** 2 + told)
        return torch.fft.irfft2(weighted, s=u.shape[-2:])

    @torch.no_grad()
    def likeliest(self, kernels: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The M-step: kernels of images x in [0, 1], centred."""
        height, width = kernels.shape[-2:]
        of_x, of_y, size = torch.fft.rfft2(x), torch.fft.rfft2(y), (x.shape[-2], x.shape[-1])
        cross, power = (of_x.conj() * of_y).sum(1, True), of_x.abs().square().sum(1, True)
        alpha = self.penalty * (max(self.noise, LEAST_NOISE_TOLD) / 2) ** 2
        for _ in range(self.splits):
            transfer = (cross + alpha * transfer_function(kernels, size)) / (power + alpha)
            whole = torch.fft.irfft2(transfer, s=size).roll((height // 2, width // 2), (-2, -1))
            kernels = self.denoised(whole[..., :height, :width].clamp(min=0))
        return centred(kernels)

    def denoised(self, kernels: Tensor) -> Tensor:
        """Kernels that sum to one, as the prior of kernels sees them."""
        prior = kernel_prior(kernels.device, kernels.dtype)
        level = prior.level(2 * self.kernel_noise)
        clean = prior.denoise(level.signal * prior.encode(as_images(kernels + TINY)), level)
        return as_kernels(prior.decode(clean).clamp(0, 1), kernels.shape[-2], kernels.shape[-1])


def blurred(x: Tensor, kernels: Tensor) -> Tensor:
    """Images convolved with kernels, with a periodic boundary."""
    size = (x.shape[-2], x.shape[-1])
    return torch.fft.irfft2(transfer_function(kernels, size) * torch.fft.rfft2(x), s=size)


def deviation(a: Level, b: Level) -> float:
    """Standard deviation of the latent at b, given that at a and the clean one."""
    added = a.noise**2 - (a.signal / b.signal * b.noise) ** 2
    return b.noise / a.noise * max(0.0, added) ** 0.5


def ancestral(z: Tensor, u: Tensor, a: Level, b: Level) -> Tensor:
    """A draw of the latent at level b, given z at a and the clean u (DDPM)."""
    kept = a.signal / b.signal * (b.noise / a.noise) ** 2
    return b.signal * u + kept * (z - a.signal * u) + deviation(a, b) * torch.randn_like(z)


def centred(kernels: Tensor) -> Tensor:
    """Kernels moved by whole pixels, so that their centres of mass are nearest to the middle."""
    for dim in (-2, -1):
        side = kernels.shape[dim]
        mass = kernels.sum((1, -1 if dim == -2 else -2)) / kernels.sum((1, -2, -1))[:, None]
        place = torch.arange(side, device=kernels.device)
        away = ((mass * place).sum(1) - side // 2).round().long()
        order = (place + away[:, None]) % side
        order = order[:, None, :, None] if dim == -2 else order[:, None, None, :]
        kernels = kernels.gather(dim, order.expand_as(kernels))
    return kernels
