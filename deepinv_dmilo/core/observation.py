"""The measurements, as a batch of several reconstructions of each image sees them: data terms and noise."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from deepinv.optim import DataFidelity
from torch import Tensor

from deepinv_dmilo.core.data import Data, FidelityFit, Fit, SquaresFit
from deepinv_dmilo.core.measurements import Measurements, energy, parts, take, working_dtype
from deepinv_dmilo.core.noise import simulated_variance
from deepinv_dmilo.core.operator import Operator


class Observation:
    """
    Measurements of B images, of each of which S reconstructions are made, and what is known of them.

    Reconstructions have S * B rows: those of the first sample of all images, then those of the second, and so on.

    :param y: measurements of the B images.
    :param Operator operator: their physics.
    :param int num_samples: S.
    :param float noise_level: standard deviation of the noise as deepinv's noise models take it (that of a complex
        measurement's real and imaginary part together); None: that of the physics' noise model.
    :param deepinv.optim.DataFidelity data_fidelity: the negative log-likelihood; None: that of Gaussian noise.
    """

    def __init__(
        self,
        y: Measurements,
        operator: Operator,
        num_samples: int = 1,
        noise_level: float | None = None,
        data_fidelity: DataFidelity | None = None,
    ) -> None:
        self.y, self.operator, self.num_samples = y, operator, num_samples
        self.noise_level, self.data_fidelity = noise_level, data_fidelity
        rows = torch.arange(num_samples * operator.batch, device=parts(y)[0].device)
        #: y for every row, and for the first reconstruction of each image
        self.data = Data(take(y, rows % operator.batch), operator, rows)
        self.images = self.data.select(rows[: operator.batch])
        self._noise: tuple[Tensor, Tensor] | None = None  # the images where it was asked for last, and the answer

    @property
    def size(self) -> int:
        """Number of measurements of an image."""
        return sum(t[0].numel() for t in parts(self.y))

    def mean(self, t: Tensor) -> Tensor:
        """The mean of S * B rows over the samples of each image, B rows."""
        return t.view(self.num_samples, -1, *t.shape[1:]).mean(0)

    def noise_variance(self, x: Tensor) -> Tensor:
        """
        The variance of the noise in a (real) measurement at S * B images, (S * B,); 0 where it is not known.

        That of ``noise_level`` where given; else that of the physics' own noise, drawn at the mean over the samples.
        """
        if self._noise is None or self._noise[0] is not x:
            self._noise = (x, self._variance(self.mean(x)).repeat(self.num_samples))
        return self._noise[1]

    def _variance(self, images: Tensor) -> Tensor:
        if self.noise_level is None:
            return simulated_variance(images, self.operator(images, self.images.rows), self.operator)
        halves = 2 if parts(self.y)[0].is_complex() else 1
        return torch.full_like(images[:, 0, 0, 0], self.noise_level**2 / halves)

    def variance(self, x: Tensor) -> Tensor:
        """How far a measurement may be from A(x), (S * B,): the noise where known, else what x leaves unexplained."""
        noise = self.noise_variance(x)
        if (noise > 0).all():
            return noise
        rest = self.operator.reached_energy(self.data.residual(x), self.data.rows)
        rest = rest / self.operator.reached.repeat(self.num_samples)
        return torch.where(noise > 0, noise, rest)

    def likelihood(self, variance: Tensor) -> Fit:
        """The negative log-likelihood of images, up to a constant; ``variance`` (S * B,) of Gaussian noise."""
        if self.data_fidelity is not None:
            return FidelityFit(self.data, self.data_fidelity)
        smallest = torch.finfo(variance.dtype).tiny ** 0.5  # of measurements that are explained to the last digit
        return SquaresFit(self.data, 1 / (2 * variance.clamp(min=smallest)))

    def misfit(self, x: Tensor) -> Tensor:
        """What gradient steps descend half of: ``||A(x) - y||^2``, or twice the data fidelity, (S * B,)."""
        if self.data_fidelity is None:
            return self.data.energy(x)
        return 2 * FidelityFit(self.data, self.data_fidelity)(x)

    def mean_squares(self, x: Tensor | None = None) -> Fit:
        r"""
        The paper's misfit, :math:`4 \, \mathrm{mean} |A(x) - t|^2`; the factor gives its value for images in [-1, 1].

        :param torch.Tensor x: images whose measurements are the target t; None: it is y.
        """
        data = self.data if x is None else replace(self.data, y=self.operator(x, self.data.rows))
        return SquaresFit(data, torch.full_like(data.rows, 4 / self.size, dtype=working_dtype(self.y)))

    def warn_if_unexplained(self, images: Tensor) -> None:
        """Warn where B images leave a quarter of the energy of y, and more than the noise has: no fit at all."""
        rest, total = self.images.energy(images), energy(self.y)
        odd = (rest > total / 4) & (total > 0)
        if odd.any():
            odd &= rest > 4 * self._variance(images) * self.operator.reached
        if odd.any():
            warnings.warn(
                f"{int(odd.sum())} of {len(images)} images leave {(rest / total)[odd].mean().item():.0%} of the energy "
                "of y unexplained; check that y is on the scale of physics(x) for images x in [0, 1], or give more "
                "passes",
                RuntimeWarning,
                stacklevel=5,  # where the model was called
            )
