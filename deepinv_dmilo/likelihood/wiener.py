"""The LMMSE estimate of images with a 1/f spectrum (Wiener), and its error, for any A: nothing of the network."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.measurements import energy, parts
from deepinv_dmilo.likelihood.noise import same_noise
from deepinv_dmilo.optim.cg import conjugate_gradients

# All ours.
SPREAD = 0.3  # standard deviation of a pixel of the images that are assumed
STEPS = 15  # of conjugate gradients, twice; with fewer, more seems to be left open
LEAST_NOISE = 1e-3  # standard deviation that measurements are taken to have, at least, over what a pixel is worth
PROBE = 1e-2  # root mean square of the change of an image that a nonlinear A is probed with
GREY = 0.5  # image where a nonlinear A is linearised too
LOWEST = 0.75  # periods on the longer side, from which octaves of frequencies are counted
WINDOW = 0.25  # standard deviation of the neighbourhood that an energy is local to, in wavelengths
WHITE_IMAGES = 8  # of white noise, whose mean energy others are relative to


def worst_lmmse_error(likelihood: Gaussian, x: Tensor) -> Tensor:
    r"""
    The amplitude of what the measurements leave open, where and at the spatial frequencies where it is largest, (n,).

    A random image whose amplitudes fall off with the frequency, as those of natural images do
    :footcite:p:`field1987relations`, is measured with noise and estimated from that by regularised least squares; A is
    linearised at x. What the estimate misses is looked at octave by octave, where it is: in each, its amplitude
    relative to white noise of standard deviation 1, so that noise of the returned standard deviation hides all that is
    left open, be it of the whole image or of a scratch.

    Few steps of conjugate gradients miss more than many, so of two ways to take them the one that misses less counts.
    The same holds of two images where A is not linear: x, and mid-grey, since a camera that clips sees no change of
    what is black. No network is asked; A some thirty times for each place, and its adjoint as often. Every image has
    the same random numbers.

    :param Gaussian likelihood: of n images; its forward model and variance are used, not y.
    :param torch.Tensor x: images in [0, 1] near the solution, (n, C, H, W).
    """
    places = [x] if likelihood.forward.is_linear else [x, torch.full_like(x, GREY)]
    errors = torch.cat([error for place in places for error in _errors(likelihood, place)])
    # No number where A has no slope that is one: then the other place counts.
    return _largest_amplitude(errors).nan_to_num(torch.inf).view(-1, len(x)).amin(0)


def mean_lmmse_error(likelihood: Gaussian, x: Tensor) -> Tensor:
    """
    The root mean square of all that the measurements leave open of an image, in a pixel, (n,), by the same estimate.

    :param Gaussian likelihood: of n images by a linear A; its forward model and variance are used, not y.
    :param torch.Tensor x: images in [0, 1], (n, C, H, W).
    """
    errors = torch.stack(_errors(likelihood, x))
    return errors.square().flatten(2).mean(2).sqrt().amin(0)


def least_squares(likelihood: Gaussian, x: Tensor) -> Tensor:
    """
    The images around x that go with the measurements, (n, C, H, W), by the same regularised least squares.

    What the measurements leave open is filled from what is around it, as smoothly as natural images are.

    :param Gaussian likelihood: measurements of n images by a linear A, and the variance of their noise.
    :param torch.Tensor x: what is expected before any measurement, (n, C, H, W).
    """
    squares = _LeastSquares(likelihood, x)
    rest = [-r for r in parts(likelihood.residual(x))]
    right = squares.right(rest)
    solutions = torch.stack(squares.solutions(rest))
    values = torch.stack([_dot(v, squares.normal(v) - 2 * right) for v in solutions])
    return x + solutions[values.argmin(0), torch.arange(len(x), device=x.device)]


def _errors(likelihood: Gaussian, x: Tensor) -> list[Tensor]:
    """What two estimates of a random image miss where A is linearised at x, (n, C, H, W) each."""
    squares = _LeastSquares(likelihood, x)
    image = _filtered(same_noise(x, torch.ones_like(x[:, 0, 0, 0]), seed=0), squares.spectrum.sqrt())
    noise = parts(same_noise(likelihood.y, squares.std))
    noisy = [t + n for t, n in zip(squares.tangent(image), noise, strict=True)]
    return [found - image for found in squares.solutions(noisy)]


class _LeastSquares:
    """Changes v of images x with the least ``|A v - r|^2 / variance + |v|^2 / spectrum``; A is linearised at x."""

    def __init__(self, likelihood: Gaussian, x: Tensor) -> None:
        self.spectrum, self.tangent = _spectrum(x), _Tangent(likelihood, x)
        least = LEAST_NOISE * likelihood.squared_norm.sqrt()
        self.std = torch.maximum(likelihood.variance.sqrt(), least)
        self.probe = same_noise(x, torch.ones_like(x[:, 0, 0, 0]), seed=1)  # white
        # What a pixel is worth in measurements, on average, over the variance of one.
        precision = _energy(self.tangent(self.probe)) / energy(self.probe) / self.std.square()
        # The inverse of ``normal`` where A is about a multiple of the identity, and where A is nothing.
        self.inverses = 1 / (_as(precision, x) + 1 / self.spectrum), self.spectrum

    def normal(self, v: Tensor) -> Tensor:
        """The normal forward, symmetric and positive."""
        return self.right(self.tangent(v)) + _filtered(v, 1 / self.spectrum)

    def right(self, r: list[Tensor]) -> Tensor:
        """The right-hand side of the normal equations."""
        return self.tangent.adjoint(r) / _as(self.std.square(), self.probe)

    def solutions(self, r: list[Tensor]) -> list[Tensor]:
        """About the minimisers, found in two ways, (n, C, H, W) each."""
        return [
            conjugate_gradients(self.normal, self.right(r), lambda v, i=inverse: _filtered(v, i), steps=STEPS)  # type: ignore[misc]
            for inverse in self.inverses
        ]


class _Tangent:
    """The derivative of A at images, and its adjoint; A itself where it is linear."""

    def __init__(self, likelihood: Gaussian, x: Tensor) -> None:
        self.forward, self.rows = likelihood.forward, likelihood.rows
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            self.measured = parts(self.forward(self.x, self.rows))

    def __call__(self, v: Tensor) -> list[Tensor]:
        """Images (n, C, H, W) to changes of their measurements."""
        size = (
            torch.ones_like(v[:, 0, 0, 0]) if self.forward.is_linear else PROBE / v.square().flatten(1).mean(1).sqrt()
        )
        moved = parts(self.forward(self.x.detach() + _as(size, v) * v, self.rows))
        return [(b - a.detach()) / _as(size, b) for a, b in zip(self.measured, moved, strict=True)]

    def adjoint(self, r: list[Tensor]) -> Tensor:
        """Changes of measurements to images."""
        return torch.autograd.grad(self.measured, self.x, r, retain_graph=True)[0]


def _spectrum(x: Tensor) -> Tensor:
    """Expected power at each spatial frequency, (H, W), of images with amplitudes like 1 / frequency."""
    power = 1 / (_frequency(x).square() + 1)
    return SPREAD**2 * power / power.mean()


def _frequency(x: Tensor) -> Tensor:
    """Spatial frequencies, (H, W), in periods on the longer side."""
    axes = (torch.fft.fftfreq(size, device=x.device, dtype=x.dtype).square() for size in x.shape[2:])
    rows, columns = axes
    return max(x.shape[2:]) * (rows[:, None] + columns).sqrt()


def _filtered(v: Tensor, gain: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(v) * gain).real


def _largest_amplitude(error: Tensor) -> Tensor:
    """Amplitude of errors relative to white noise in the octave where it is largest, (n,)."""
    frequency, one = _frequency(error), torch.ones_like(error[:1, 0, 0, 0])
    white = torch.cat([same_noise(error[:1], one, seed=2 + k) for k in range(WHITE_IMAGES)])
    octave = (frequency / LOWEST).log2().floor().clamp(min=0)  # the first one: below twice that
    amplitudes = []
    for k in range(int(octave.max()) + 1):
        window = torch.exp(-2 * (torch.pi * WINDOW * frequency / (1.5 * LOWEST * 2**k)).square())
        here, usual = (_where_it_is(_filtered(v, octave == k), window) for v in (error, white))
        amplitudes.append((here / usual.mean()).sqrt())
    return torch.stack(amplitudes).amax(0)


def _where_it_is(v: Tensor, window: Tensor) -> Tensor:
    """The mean of the local energy of images, by where it is, (n,): of what fills a tenth of an image, tenfold."""
    power = _filtered(v.square().mean(1, keepdim=True), window).clamp(min=0)
    return energy(power) / power.flatten(1).sum(1).clamp(min=torch.finfo(v.dtype).tiny)


def _energy(r: list[Tensor]) -> Tensor:
    return torch.stack([t.abs().square().flatten(1).sum(1) for t in r]).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _as(t: Tensor, like: Tensor) -> Tensor:
    """(n,) to the dimensions of ``like``."""
    return t.view(-1, *[1] * (like.ndim - 1))
