"""Whether a picture has the blur that a blind search found, from its spectrum alone."""

from __future__ import annotations

import torch
from torch import Tensor

# All ours; measured in docs/lab-book/blind.md.
BLOCK = 64  # pixels of the side of a block, at most, unless twice the blur is more
LEAST_CYCLES = 2  # cycles of a block below which its window shows
SLOPES = torch.linspace(1.6, 2.8, 7)  # exponents of the power of sharp pictures over frequency
NOISE_POWERS = torch.logspace(-3, 4, 57)  # power of noise over that of the picture at a cycle per pixel
POINT = 4  # pixels that a point between pixels has weight on


def why_no_blur(y: Tensor, kernel: Tensor) -> str:
    """
    Why a picture, (1, C, H, W), does not seem to have a blur that was found, (1, 1, h, w); empty if it does.

    A search with a prior ends in some kernel for a sharp picture, too, and the result is worse than the picture.
    """
    if 1 / kernel.square().sum() <= POINT:
        return "the kernel found is almost a point"
    if not log_likelihood_ratio(y, kernel) > 0:
        return "the picture's spectrum is as probable without it"
    return ""


def log_likelihood_ratio(y: Tensor, kernel: Tensor) -> float:
    r"""
    The log-likelihood ratio of a blur and none by the spectrum of a picture, in nats per frequency.

    The power of a sharp picture is taken as :math:`S(f) = a f^{-b}`, that of a blurred one as
    :math:`|K(f)|^2 S(f) + n`; a, b and n are fitted, with the blur and without it. The prior is no judge of that:
    blurred images are the more probable ones.

    :param torch.Tensor y: a picture, (1, C, H, W).
    :param torch.Tensor kernel: the blur, (1, 1, h, w), no larger than the picture.
    """
    y, kernel = y.cpu().float(), kernel.cpu().float()
    height, width = (min(max(BLOCK, 2 * k), side) for k, side in zip(kernel.shape[2:], y.shape[2:], strict=True))
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    f = (rows.square() + columns.square()).sqrt()
    kept = f >= LEAST_CYCLES / min(height, width)
    power, f, whole = _power(y, height, width)[kept], f[kept], torch.ones_like(f[kept])
    response = torch.fft.rfft2(kernel[0, 0], s=(height, width)).abs().square()[kept]
    return _misfit(power, f, whole) - _misfit(power, f, response)


def _power(y: Tensor, height: int, width: int) -> Tensor:
    """The mean periodogram of windowed blocks that overlap by half, (h, w // 2 + 1)."""
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    blocks = y[0].unfold(1, height, (height + 1) // 2).unfold(2, width, (width + 1) // 2)
    mean = (blocks * window).sum((-2, -1), keepdim=True) / window.sum()
    return torch.fft.rfft2((blocks - mean) * window).abs().square().mean((0, 1, 2))


def _misfit(power: Tensor, f: Tensor, response: Tensor) -> float:
    """The negative log-likelihood of a power under the best of the spectra, per frequency."""
    spectra = response * f ** -SLOPES[:, None, None] + NOISE_POWERS[:, None]
    return ((power / spectra).mean(-1).log() + spectra.log().mean(-1)).min().item()
