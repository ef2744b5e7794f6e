"""How much of an image its measurements leave open, by asking the physics alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from deepinv_dmilo.core.data import Data
from deepinv_dmilo.core.measurements import energy, parts
from deepinv_dmilo.core.noise import same_noise

# All ours.
SPREAD = 0.3  # standard deviation of a pixel of the images that are assumed
STEPS = 15  # of conjugate gradients, twice; with fewer, more seems to be left open
LEAST_NOISE = 1e-3  # standard deviation that measurements are taken to have, at least
PROBE = 1e-2  # root mean square of the change of an image that a nonlinear A is probed with
DONE = 1e-10  # of the squared residual


def left_open(data: Data, x: Tensor, variance: Tensor) -> Tensor:
    r"""
    The amplitude of what the measurements leave open, at the spatial frequencies where it is largest, (n,).

    A random image whose amplitudes fall off with the frequency, as those of natural images do
    :footcite:p:`field1987relations`, is measured with noise and estimated from that by regularised least squares; A is
    linearised at x. What the estimate misses is looked at octave by octave: in each, its root mean square relative to
    white noise of standard deviation 1, so that noise of the returned standard deviation hides all that is left open.

    Few steps of conjugate gradients miss more than many, so of two ways to take them the one that misses less counts.
    No network is asked; A some thirty times, and its adjoint as often. Every image has the same random numbers.

    :param Data data: measurements of n images; only their operator is used.
    :param torch.Tensor x: images in [0, 1] near the solution, (n, C, H, W).
    :param torch.Tensor variance: that of the noise in a (real) measurement, (n,).
    """
    spectrum, tangent = _spectrum(x), _Tangent(data, x)
    std = variance.sqrt().clamp(min=LEAST_NOISE)
    one = torch.ones_like(std)
    image, probe = _filtered(same_noise(x, one, seed=0), spectrum.sqrt()), same_noise(x, one, seed=1)
    noise = parts(same_noise(data.y, std))
    noisy = [t + n for t, n in zip(tangent(image), noise, strict=True)]
    # What a pixel is worth in measurements, on average, over the variance of one.
    precision = _energy(tangent(probe)) / energy(probe) / std.square()

    def normal(v: Tensor) -> Tensor:
        return tangent.adjoint(tangent(v)) / _as(std.square(), v) + _filtered(v, 1 / spectrum)

    right = tangent.adjoint(noisy) / _as(std.square(), x)
    # The first is the inverse of ``normal`` where A is about a multiple of the identity, the second where A is nothing.
    inverses = 1 / (_as(precision, x) + 1 / spectrum), spectrum
    errors = [_conjugate_gradients(normal, right, inverse) - image for inverse in inverses]
    return torch.stack([_largest_amplitude(error) for error in errors]).amin(0)


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], right: Tensor, inverse: Tensor) -> Tensor:
    """What ``normal`` maps to ``right``, about, for each image; ``inverse`` is its inverse at each frequency, about."""
    solution, residual = torch.zeros_like(right), right
    direction = preconditioned = _filtered(residual, inverse)
    size = first = _dot(residual, preconditioned)
    for _ in range(STEPS):
        moving = size > DONE * first
        if not moving.any():
            break
        image = normal(direction)
        length = _as(torch.where(moving, size / _dot(direction, image), 0), right)
        solution, residual = solution + length * direction, residual - length * image
        preconditioned = _filtered(residual, inverse)
        size, before = _dot(residual, preconditioned), size
        direction = preconditioned + _as(torch.where(moving, size / before, 0), right) * direction
    return solution


class _Tangent:
    """The derivative of A at images, and its adjoint; A itself where it is linear."""

    def __init__(self, data: Data, x: Tensor) -> None:
        self.data, self.is_linear = data, isinstance(data.operator.physics, LinearPhysics)
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            self.measured = parts(data.operator(self.x, data.rows))

    def __call__(self, v: Tensor) -> list[Tensor]:
        """Images (n, C, H, W) to changes of their measurements."""
        size = torch.ones_like(v[:, 0, 0, 0]) if self.is_linear else PROBE / v.square().flatten(1).mean(1).sqrt()
        moved = parts(self.data.operator(self.x.detach() + _as(size, v) * v, self.data.rows))
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
    """Root mean square over the frequencies of the octave where it is largest, (n,)."""
    octave = (_frequency(error) / 0.75).log2().floor().clamp(min=0).long().flatten()  # the first one: below 1.5
    power = torch.fft.fft2(error, norm="ortho").abs().square().mean(1).flatten(1)
    sums = power.new_zeros(len(power), int(octave.max()) + 1).index_add(1, octave, power)
    return (sums / torch.bincount(octave).clamp(min=1)).amax(1).sqrt()


def _energy(r: list[Tensor]) -> Tensor:
    return torch.stack([t.abs().square().flatten(1).sum(1) for t in r]).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _as(t: Tensor, like: Tensor) -> Tensor:
    """(n,) to the dimensions of ``like``."""
    return t.view(-1, *[1] * (like.ndim - 1))
