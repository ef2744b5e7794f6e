"""The LMMSE (Wiener) estimate of images with a 1/f spectrum, and its error, for any A, without the network."""

from __future__ import annotations

from functools import partial

import torch
from deepinv.utils import TensorList
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.measurements import energy, parts
from deepinv_dmilo.likelihood.noise import same_noise
from deepinv_dmilo.optim.cg import conjugate_gradients
from deepinv_dmilo.optim.descent import filtered
from deepinv_dmilo.utils.rows import column, dot

# All ours.
SPREAD = 0.3  # standard deviation of a pixel under the prior
STEPS = 15  # of conjugate gradients, for each of two preconditioners; with fewer, the error seems larger
LEAST_NOISE = 1e-3  # floor of the noise standard deviation relative to ||A||
PROBE = 1e-2  # root mean square of the finite differences of a nonlinear A
GREY = 0.5  # second image at which a nonlinear A is linearised
LOWEST = 0.75  # cycles on the longer side at which the first octave starts
WINDOW = 0.25  # standard deviation of the window of local energies, in wavelengths
WHITE_IMAGES = 8  # white-noise images for the reference energy


def worst_lmmse_error(likelihood: Gaussian, x: Tensor) -> Tensor:
    r"""
    The LMMSE error, in the location and octave of spatial frequencies where it is largest, (n,).

    A random image with amplitudes that fall off as 1/f, as those of natural images :footcite:p:`field1987relations`, is
    measured with noise and estimated by regularised least squares; A is linearised at x. The local amplitude of the
    error in each octave is relative to white noise of standard deviation 1: white noise of the returned standard
    deviation masks the error everywhere, be it spread over the image or confined to a scratch.

    Truncated conjugate gradients overestimate the error, so the smaller one for two preconditioners counts. For a
    nonlinear A, so does the smaller one for two linearisations, at x and at mid-grey, since a clipping camera is flat
    at black. The cost is some thirty calls of A and of its adjoint for each linearisation. Every image uses the same
    random numbers.

    :param Gaussian likelihood: of n images; its forward model and variance are used, not y.
    :param torch.Tensor x: images in [0, 1] near the solution, (n, C, H, W).
    """
    points = [x] if likelihood.forward.is_linear else [x, torch.full_like(x, GREY)]
    errors = torch.cat([error for point in points for error in _errors(likelihood, point)])
    # NaN where the derivative of A is not finite: the other linearisation counts.
    return _largest_amplitude(errors).nan_to_num(torch.inf).view(-1, len(x)).amin(0)


def mean_lmmse_error(likelihood: Gaussian, x: Tensor) -> Tensor:
    """
    The root mean square LMMSE error of a pixel, (n,), by the same estimate.

    :param Gaussian likelihood: of n images by a linear A; its forward model and variance are used, not y.
    :param torch.Tensor x: images in [0, 1], (n, C, H, W).
    """
    errors = torch.stack(_errors(likelihood, x))
    return errors.square().flatten(2).mean(2).sqrt().amin(0)


def least_squares(likelihood: Gaussian, x: Tensor) -> Tensor:
    """
    The LMMSE estimate of images with prior mean x, (n, C, H, W); it interpolates masked pixels smoothly.

    :param Gaussian likelihood: of n images measured by a linear A.
    :param torch.Tensor x: the prior mean, (n, C, H, W).
    """
    squares = _LeastSquares(likelihood, x)
    residual = [-r for r in parts(likelihood.residual(x))]
    right = squares.right(residual)
    solutions = torch.stack(squares.solutions(right))
    values = torch.stack([dot(v, squares.normal(v) - 2 * right) for v in solutions])
    return x + solutions[values.argmin(0), torch.arange(len(x), device=x.device)]


def conditional_spectrum(x: Tensor, sigma: float) -> Tensor:
    r"""
    The power spectrum of the error of a denoised image, (H, W): :math:`C^{-1} = S^{-1} + \sigma^{-2}`.

    It is the covariance of an image with power spectrum S (amplitudes of 1/f), given the image with white noise. The
    error of a denoiser is not white: noise hides fine details, but hardly the average of a large area.

    :param torch.Tensor x: images, for their size, (n, C, H, W).
    :param float sigma: standard deviation of the noise, for images in [0, 1], above 0; inf: the spectrum S.
    :return: the variance of each frequency of an orthonormal FFT, (H, W).
    """
    return 1 / (1 / _spectrum(x) + 1 / sigma**2)


def octave_spectrum(v: Tensor) -> Tensor:
    """The power spectrum of each of n images, averaged over its channels and each octave, (n, 1, H, W)."""
    power = torch.fft.fft2(v, norm="ortho").abs().square().mean(1, keepdim=True)
    octave = _octave(_frequency(v))
    for k in range(int(octave.max()) + 1):
        power[..., octave == k] = power[..., octave == k].mean(-1, keepdim=True)
    return power


def smooth_spectrum(v: Tensor) -> Tensor:
    """The power spectrum of each channel of n images, (n, C, H, W): means of half octaves, interpolated between."""
    power, frequency = torch.fft.fft2(v, norm="ortho").abs().square(), _frequency(v).clamp(min=0.5).log2().flatten()
    bins = (2 * frequency).floor().long().unique(return_inverse=True)[1]
    count = bins.bincount()
    sums = power.new_zeros(*v.shape[:2], len(count)).index_add_(2, bins, power.flatten(2))
    centres = frequency.new_zeros(len(count)).index_add_(0, bins, frequency) / count
    means = (sums / count).clamp(min=torch.finfo(v.dtype).tiny).log()
    after = torch.searchsorted(centres, frequency).clamp(1, len(centres) - 1)
    share = ((frequency - centres[after - 1]) / (centres[after] - centres[after - 1])).clamp(0, 1)
    return (means[..., after - 1] * (1 - share) + means[..., after] * share).exp().view_as(v)


def _errors(likelihood: Gaussian, x: Tensor) -> list[Tensor]:
    """The errors of two estimates of a random image, with A linearised at x, (n, C, H, W) each."""
    squares = _LeastSquares(likelihood, x)
    image = filtered(_white(x, seed=0), squares.spectrum.sqrt())
    noise = parts(same_noise(likelihood.y, squares.std))
    noisy = [t + n for t, n in zip(squares.tangent(image), noise, strict=True)]
    return [estimate - image for estimate in squares.solutions(squares.right(noisy))]


class _LeastSquares:
    """Minimises ``|A v - r|^2 / variance + |v|^2 / spectrum`` over v, (n, C, H, W), with A linearised at x."""

    def __init__(self, likelihood: Gaussian, x: Tensor) -> None:
        self.spectrum, self.tangent = _spectrum(x), _Tangent(likelihood, x)
        least = LEAST_NOISE * likelihood.squared_norm.sqrt()
        self.std = torch.maximum(likelihood.variance.sqrt(), least)
        probe = _white(x, seed=1)
        precision = energy(TensorList(self.tangent(probe))) / energy(probe) / self.std.square()  # mean of a pixel
        # The inverses of ``normal`` for a multiple of the identity, and for A = 0.
        self.preconditioners = 1 / (column(precision, x) + 1 / self.spectrum), self.spectrum

    def normal(self, v: Tensor) -> Tensor:
        """The matrix of the normal equations, symmetric and positive definite."""
        return self.right(self.tangent(v)) + filtered(v, 1 / self.spectrum)

    def right(self, r: list[Tensor]) -> Tensor:
        """The right-hand side of the normal equations."""
        gradient = self.tangent.adjoint(r)
        return gradient / column(self.std.square(), gradient)

    def solutions(self, right: Tensor) -> list[Tensor]:
        """Approximate solutions of the normal equations for each preconditioner, (n, C, H, W) each."""
        return [
            conjugate_gradients(self.normal, right, partial(filtered, gain=gain), steps=STEPS)
            for gain in self.preconditioners
        ]


class _Tangent:
    """The derivative of A at images x, by finite differences, and its adjoint; a linear A itself."""

    def __init__(self, likelihood: Gaussian, x: Tensor) -> None:
        self.forward, self.rows = likelihood.forward, likelihood.rows
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            self.measured = parts(self.forward(self.x, self.rows))

    def __call__(self, v: Tensor) -> list[Tensor]:
        """Changes of images, (n, C, H, W), to changes of measurements."""
        rms = v.square().flatten(1).mean(1).sqrt()
        size = torch.ones_like(rms) if self.forward.is_linear else PROBE / rms
        moved = parts(self.forward(self.x.detach() + column(size, v) * v, self.rows))
        return [(b - a.detach()) / column(size, b) for a, b in zip(self.measured, moved, strict=True)]

    def adjoint(self, r: list[Tensor]) -> Tensor:
        """Changes of measurements to changes of images."""
        return torch.autograd.grad(self.measured, self.x, r, retain_graph=True)[0]


def _spectrum(x: Tensor) -> Tensor:
    """The power spectrum of the prior, (H, W): amplitudes of about 1 / frequency."""
    power = 1 / (_frequency(x).square() + 1)
    return SPREAD**2 * power / power.mean()


def _frequency(x: Tensor) -> Tensor:
    """Spatial frequencies, (H, W), in cycles on the longer side."""
    rows, columns = (torch.fft.fftfreq(size, device=x.device, dtype=x.dtype).square() for size in x.shape[2:])
    return max(x.shape[2:]) * (rows[:, None] + columns).sqrt()


def _octave(frequency: Tensor) -> Tensor:
    """The number of the octave of each frequency; lower ones belong to the first, 0."""
    return (frequency / LOWEST).log2().floor().clamp(min=0)


def _white(x: Tensor, seed: int) -> Tensor:
    return parts(same_noise(x, torch.ones_like(x[:, 0, 0, 0]), seed=seed))[0]


def _largest_amplitude(error: Tensor) -> Tensor:
    """The largest local amplitude of errors over the octaves, relative to white noise, (n,)."""
    frequency = _frequency(error)
    white = torch.cat([_white(error[:1], seed=2 + k) for k in range(WHITE_IMAGES)])
    octave = _octave(frequency)
    amplitudes = []
    for k in range(int(octave.max()) + 1):
        window = torch.exp(-2 * (torch.pi * WINDOW * frequency / (1.5 * LOWEST * 2**k)).square())
        of_error, of_white = (_weighted_energy(filtered(v, octave == k), window) for v in (error, white))
        amplitudes.append((of_error / of_white.mean()).sqrt())
    return torch.stack(amplitudes).amax(0)


def _weighted_energy(v: Tensor, window: Tensor) -> Tensor:
    """The mean local energy weighted by itself, (n,): ten times the plain mean if it fills a tenth of the image."""
    power = filtered(v.square().mean(1, keepdim=True), window).clamp(min=0)
    return energy(power) / power.flatten(1).sum(1).clamp(min=torch.finfo(v.dtype).tiny)
