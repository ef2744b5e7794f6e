"""The kernel of an unknown blur from p(k | z, y): the image marginalised, with the learned prior of kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from deepinv.utils import TensorList
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.wiener import octave_spectrum, smooth_spectrum
from deepinv_dmilo.optim import lbfgs
from deepinv_dmilo.optim.descent import filtered, value_and_gradient
from deepinv_dmilo.posterior.moments import Moments
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.priors.blur_kernels import IMAGE_SIDE, as_images, kernel_prior
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.utils.rows import column, unpack
from deepinv_dmilo.utils.spectra import multiplicity, taper, transfer_function

# All ours: degrees of freedom of Student's t, L-BFGS steps for a kernel and their tolerance, least variance of a
# kernel's image.
FREEDOM, KERNEL_STEPS, TOLERANCE, LEAST_OF_KERNEL = 4.0, 30, 1e-4, 1e-6
# Luminance and two opponent colours, orthonormal: a network's errors in them are nearly independent.
OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
OPPONENT = OPPONENT / OPPONENT.norm(dim=1, keepdim=True)


def estimate_kernel(
    prior: Prior, likelihood: Likelihood, moments: Moments, deviation: Tensor, noise: tuple[Tensor, ...], sigma: float
) -> None:
    r"""
    Replace the kernels of the rows of ``likelihood`` by the most probable ones under p(k | z, y).

    :param Prior prior: p(x) of these rows.
    :param Likelihood likelihood: p(y | x, k) of these rows.
    :param Moments moments: of the clean latents given the noisy ones, z.
    :param torch.Tensor deviation: a draw of the clean latents less their mean, for their spectrum.
    :param tuple noise: standard normal noise of the latent kernels, and for their spectrum, (n, 1, 36, 36) each.
    :param float sigma: noise level of the latent kernels, for kernels' images in [0, 1].
    """
    nuisance, rows = likelihood.forward.nuisance, likelihood.rows
    assert nuisance is not None  # planned for a blur alone
    mean = prior.decode(moments.mean)
    spread = prior.decode(moments.mean + deviation) - mean
    window = _window(likelihood)
    (kernels,) = nuisance.values(rows).values()
    objective = KernelPosterior(
        likelihood,
        nuisance,
        mean,
        likelihood.mean_variance(mean.clamp(0, 1)),
        _error_spectrum(likelihood, spread, window),
        window,
        *_prior_of_kernels(kernels, noise, sigma),
    )
    start = nuisance.packed(rows)
    best, value, _ = lbfgs.minimize(objective, start, steps=KERNEL_STEPS, tolerance=TOLERANCE, unit=start.shape[1] / 2)
    nuisance.keep(rows, torch.where(torch.isfinite(value)[:, None], best, start))


@dataclass(frozen=True)
class KernelPosterior:
    r"""
    :math:`-\log p(k | z, y)` of raw kernels, with the Gaussian p(x | z) marginalised and a Gaussian p(k | z_k).

    With m the mean of p(x | z) and C the spectrum of its covariance, y has the mean k * m and, at each frequency, the
    variance :math:`|K|^2 C + v`, with v that of the noise. A spectrum is not known that well: each frequency has
    Student's t distribution in place of the normal one. The latent kernel gives the mean and the spectrum of the images
    of kernels (:func:`as_images`).
    """

    likelihood: Likelihood
    nuisance: Nuisance
    mean: Tensor  # m, (n, C, H, W)
    noise: Tensor  # v, (n,)
    spectrum: Tensor  # C in the units of y, on half the transform, (n, C, h, w // 2 + 1)
    window: Tensor | None  # of the residual, (h, w); None: y is periodic
    kernel_mean: Tensor  # (n, 1, 36, 36)
    kernel_spectrum: Tensor  # variances, (n, 1, 36, 36)

    def __call__(self, raw: Tensor) -> Tensor:
        """The values of raw kernels, (n, d) -> (n,)."""
        rows = self.likelihood.rows
        with self.nuisance.at(rows, unpack(raw, self.nuisance.raw)):
            residual = self.likelihood.residual(self.mean)
            (kernels,) = self.nuisance.values(rows).values()
        size = residual.shape[-2], residual.shape[-1]
        noise = column(self.noise, residual)
        variance = transfer_function(kernels, size).abs().square() * self.spectrum + noise
        windowed = _opponent(residual if self.window is None else residual * self.window)
        power = torch.fft.rfft2(windowed, norm="ortho").abs().square()
        t = (FREEDOM + 1) / 2 * torch.log1p(power / (FREEDOM * variance)) + variance.log() / 2
        data = (t * multiplicity(size[1], t)).flatten(1).sum(1)
        error = filtered(as_images(kernels) - self.kernel_mean, self.kernel_spectrum.rsqrt())
        return data + error.square().flatten(1).sum(1) / 2

    def gradients(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients."""
        return value_and_gradient(self, raw)

    def select(self, rows: Tensor) -> KernelPosterior:
        """That of some of the rows."""
        own: dict[str, Any] = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor) and k != "window"}
        return replace(self, likelihood=self.likelihood.select(rows), **own)


def noise_of_kernels(posterior: Posterior, index: int) -> tuple[Tensor, Tensor]:
    """Two standard normal noises like images of kernels for a stage, (n, 1, 36, 36) each."""
    rows, batch, shape = posterior.rows, posterior.likelihood.forward.batch, (1, IMAGE_SIDE, IMAGE_SIDE)
    first, second = (posterior.draws("kernel", 2 * index + k, shape, rows // batch, rows) for k in range(2))
    like = posterior.likelihood.forward.like
    return first.to(like), second.to(like)


def _prior_of_kernels(kernels: Tensor, noise: tuple[Tensor, ...], sigma: float) -> tuple[Tensor, Tensor]:
    """The mean and spectrum of images of kernels given latent ones, the current kernels with fresh noise."""
    prior, images = kernel_prior(kernels.device, kernels.dtype), as_images(kernels)
    level, (fresh, white) = prior.level(2 * sigma), noise
    moments = Moments(prior, level.signal * prior.encode(images) + level.noise * fresh, level)
    mean = prior.decode(moments.mean)
    spread = prior.decode(moments.mean + moments.deviation(white)) - mean
    return mean, octave_spectrum(spread).clamp(min=LEAST_OF_KERNEL, max=sigma**2)


def _window(likelihood: Likelihood) -> Tensor | None:
    """A window of mean square 1 for measurements that are not periodic, (h, w)."""
    nuisance, y = likelihood.forward.nuisance, likelihood.y
    assert nuisance is not None
    assert not isinstance(y, TensorList)
    if getattr(nuisance.physics, "padding", "circular") == "circular":
        return None
    window = taper(y.shape[-2], y)[:, None] * taper(y.shape[-1], y)
    return window / window.square().mean().sqrt()


def _error_spectrum(likelihood: Likelihood, spread: Tensor, window: Tensor | None) -> Tensor:
    """The spectrum of images' errors in the units of y, on half the transform, (n, C, h, w // 2 + 1)."""
    y, scale = likelihood.y, likelihood.forward.units.scale
    assert not isinstance(y, TensorList)
    top, left = ((a - b) // 2 for a, b in zip(spread.shape[-2:], y.shape[-2:], strict=True))
    part = _opponent(spread[..., top : top + y.shape[-2], left : left + y.shape[-1]])
    part = part if window is None else part * window
    return smooth_spectrum(part)[..., : y.shape[-1] // 2 + 1] / scale**2


def _opponent(v: Tensor) -> Tensor:
    """Colours as luminance and opponents; other images as they are."""
    return torch.einsum("ij,njhw->nihw", OPPONENT.to(v), v) if v.shape[1] == 3 else v
