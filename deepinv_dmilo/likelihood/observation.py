"""The measurements, as a batch of several reconstructions of each image sees them: data terms and noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from deepinv.optim import DataFidelity
from torch import Tensor

from deepinv_dmilo.likelihood.batches import check_noise
from deepinv_dmilo.likelihood.blind import JointFit
from deepinv_dmilo.likelihood.data import Data, FidelityFit, Fit, SquaresAsMade, SquaresFit
from deepinv_dmilo.likelihood.forward import Operator
from deepinv_dmilo.likelihood.heteroscedastic import (
    Sizes,
    drawn_sizes,
    least_variances,
    mean_square,
    relative,
    sizes_of_level,
    told_sizes,
)
from deepinv_dmilo.likelihood.likelihoods import LikelihoodFit, Outliers, likelihoods_of, noise_std
from deepinv_dmilo.likelihood.measurements import Measurements, like_parts, parts, real, take, working_dtype
from deepinv_dmilo.likelihood.noise import same_noise, simulated_variance
from deepinv_dmilo.likelihood.units import Units
from deepinv_dmilo.optim.descent import Values


class Observation:
    """
    Measurements of B images, of each of which S reconstructions are made, and what is known of them.

    Reconstructions have S * B rows: those of the first sample of all images, then those of the second, and so on.

    :param y: measurements of the B images.
    :param Operator operator: their physics.
    :param int num_samples: S.
    :param float noise_level: standard deviation of the noise as deepinv's noise models take it (that of a complex
        measurement's real and imaginary part together); None: that of the physics' noise model.
    :param deepinv.optim.DataFidelity data_fidelity: the negative log-likelihood; None: that of the noise model, or of
        Gaussian noise of ``noise_level``.
    """

    def __init__(
        self,
        y: Measurements,
        operator: Operator,
        num_samples: int = 1,
        noise_level: float | None = None,
        data_fidelity: DataFidelity | None = None,
    ) -> None:
        self.operator, self.num_samples = operator, num_samples
        self.noise_level, self.data_fidelity = noise_level, data_fidelity
        operator.count_in(Units.of_size(operator.largest))
        given = noise_level is not None or data_fidelity is not None
        if not given:
            check_noise(y, operator)
        #: of the parts of y, where the noise of the physics is not about Gaussian noise
        self.noise_likelihoods = None if given else likelihoods_of(operator.physics, y)
        #: of the noise in each measurement, as the physics has it, where that is told and not of one size
        self.noise_sizes: Sizes | None = None
        self._weigh(y)
        rows = torch.arange(num_samples * operator.batch, device=parts(y)[0].device)
        #: in the operator's units
        self.y = operator.units.counted(y, rows[: operator.batch])
        #: y for every row, and for the first reconstruction of each image
        self.data = Data(take(self.y, rows % operator.batch), operator, rows)
        self.images = self.data.select(rows[: operator.batch])
        self._noise: tuple[Tensor, Tensor] | None = None  # the images where it was asked for last, and the answer

    def _weigh(self, y: Measurements) -> None:
        """Where Gaussian noise is of unlike size in the measurements of an image, count each in units of its own."""
        if not self.is_gaussian:
            return
        physics, level = self.operator.physics, self.noise_level
        self.noise_sizes = told_sizes(physics, y) if level is None else sizes_of_level(level, y)
        sizes = self.noise_sizes or (drawn_sizes(self.operator) if level is None else None)
        if sizes is not None:
            self.operator.count_in(replace(self.operator.units, relative=relative(sizes, self.operator)))

    @property
    def size(self) -> int:
        """Number of measurements of an image."""
        return sum(t[0].numel() for t in parts(self.y))

    @property
    def reaches_all(self) -> Tensor:
        """Whether all measurements of an image change with it, (B,): none is masked."""
        return self.operator.reached == sum(real(t).shape[1] for t in parts(self.y))

    def mean(self, t: Tensor) -> Tensor:
        """The mean of S * B rows over the samples of each image, B rows."""
        return t.view(self.num_samples, -1, *t.shape[1:]).mean(0)

    def noise_variance(self, x: Tensor) -> Tensor:
        """
        The variance of the noise in a (real) measurement at S * B images, (S * B,); 0 where it is not known.

        That of ``noise_level`` where given; else that of the physics' own noise, drawn at the mean over the samples.
        """
        if self._noise is None or self._noise[0] is not x:
            self._noise = (x, self.noise_of_images(self.mean(x)).repeat(self.num_samples))
        return self._noise[1]

    def noise_of_images(self, images: Tensor) -> Tensor:
        """The same at one image for each of y, (B,)."""
        operator, units, rows = self.operator, self.operator.units, self.images.rows
        if self.noise_sizes is not None:
            return mean_square(self.noise_sizes, operator) / units.scale**2
        if self.noise_level is not None:
            halves = 2 if parts(self.y)[0].is_complex() else 1
            return torch.full_like(images[:, 0, 0, 0], (self.noise_level / units.scale) ** 2 / halves)
        clean = operator(images, rows)
        std = self._noise_std(clean, rows)
        if std is not None:
            return operator.reached_energy(std, rows) / operator.reached
        return simulated_variance(images, units.as_made(clean, rows), operator)

    def variance(self, x: Tensor) -> Tensor:
        """How far a measurement may be from A(x), (S * B,): the noise where known, else what x leaves unexplained."""
        noise = self.noise_variance(x)
        if (noise > 0).all():
            return noise
        return torch.where(noise > 0, noise, self.rest(x))

    def rest(self, x: Tensor) -> Tensor:
        """The mean square of what S * B images leave unexplained of a measurement that they reach, (S * B,)."""
        energies = self.operator.reached_energy(self.data.residual(x), self.data.rows)
        return energies / self.operator.reached.repeat(self.num_samples)

    @property
    def most_noise(self) -> Tensor:
        """The mean square of a measurement that an image reaches, (S * B,), of which noise is a part; infinite if 0."""
        given = self.operator.reached_energy(self.y, self.images.rows) / self.operator.reached
        return torch.where(given > 0, given, torch.inf).repeat(self.num_samples)

    @property
    def is_gaussian(self) -> bool:
        """Whether the data term is that of Gaussian noise of one size."""
        return self.data_fidelity is None and self.noise_likelihoods is None

    def likelihood(self, variance: Tensor | None, *, held: bool = False) -> Fit:
        """
        The negative log-likelihood of images, up to a constant; of squares where it is one, of a variance.

        Of unknown parameters that of the best ones for every image, or, held, of those found so far, as they are.
        """
        fit = self._likelihood(variance)
        return fit if held else self._joint(fit)

    def _joint(self, fit: Fit) -> Fit:
        """Of unknown parameters of the physics, the best for every image."""
        unknowns = self.operator.unknowns
        return fit if unknowns is None else JointFit(fit, unknowns, self.data.rows)

    def _likelihood(self, variance: Tensor | None = None) -> Fit:
        if self.data_fidelity is not None:
            return FidelityFit(self.data, self.data_fidelity)
        if self.noise_likelihoods is not None:
            return LikelihoodFit(self.data, self.noise_likelihoods)
        if variance is None:
            raise TypeError("squares need a variance")
        smallest = torch.finfo(variance.dtype).tiny ** 0.5  # of measurements that are explained to the last digit
        return SquaresFit(self.data, 1 / (2 * variance.clamp(min=smallest)))

    def misfit(self, *, as_made: bool = False) -> Values:
        """
        What gradient steps descend half of: ``||A(x) - y||^2``, or twice the negative log-likelihood.

        :param bool as_made: of measurements as the physics has them, which steps of a size that was given are for.
        """
        if self.is_gaussian:
            return self.data.energy_as_made if as_made else self.data.energy
        fit = self._likelihood()
        return lambda moved: 2 * fit(moved)

    @property
    def has_outliers(self) -> bool:
        """Whether some measurements say nothing at all."""
        return any(isinstance(one, Outliers) for one in self.noise_likelihoods or ())

    def largest_variance(self, x: Tensor) -> Tensor:
        """The variance of the noisiest measurement at S * B images, (S * B,); where it is not known, of all."""
        std = self._std(x)
        if std is None:
            return self.variance(x)
        return torch.stack([t.flatten(1).amax(1) for t in parts(std)]).amax(0).square()

    def squares(self, x: Tensor, variance: Tensor, *, fresh_noise: bool = False) -> Values:
        """
        ``||A(v) - y||^2`` of images v, each measurement weighed by its noise at images x, on the scale of their mean.

        :param torch.Tensor variance: that mean, of the noise at images x, (S * B,).
        :param bool fresh_noise: of y with as much noise on top as it has already.
        """
        std = self._std(x)
        rows = [variance.sqrt().view(-1, *[1] * (y.ndim - 1)) for y in parts(self.y)]
        stds = rows if std is None else parts(std)
        data = self.data
        if fresh_noise:
            unit = parts(same_noise(data.y, torch.ones_like(variance)))
            noisier = [t + s * n for t, s, n in zip(parts(data.y), stds, unit, strict=True)]
            data = replace(data, y=like_parts(data.y, noisier))
        if std is None:
            return data.energy
        least = least_variances([s.square() for s in stds], self.operator, data.rows)
        floors = [torch.maximum(s, t.sqrt()) for s, t in zip(stds, least, strict=True)]

        def weighed(v: Tensor) -> Tensor:
            terms = zip(parts(data.residual(v)), floors, rows, strict=True)
            return torch.stack([(r * m / s).square().flatten(1).sum(1) for r, s, m in terms]).sum(0)

        return weighed

    def _std(self, x: Tensor) -> Measurements | None:
        rows = self.data.rows
        return None if self.noise_likelihoods is None else self._noise_std(self.operator(x, rows), rows)

    def _noise_std(self, measured: Measurements, rows: Tensor) -> Measurements | None:
        """The standard deviation of the noise of each measurement that its model tells; None: it tells none."""
        if self.noise_likelihoods is None:
            return None
        units = self.operator.units
        std = noise_std(self.noise_likelihoods, units.as_made(measured, rows), rows)
        return None if std is None else units.counted(std, rows)

    def mean_squares(self, x: Tensor | None = None) -> Fit:
        r"""
        The paper's misfit, :math:`4 \, \mathrm{mean} |A(x) - t|^2`; the factor gives its value for images in [-1, 1].

        :param torch.Tensor x: images whose measurements are the target t; None: it is y.
        """
        data = self.data if x is None else replace(self.data, y=self.operator(x, self.data.rows))
        weight = torch.full_like(data.rows, 4 / self.size, dtype=working_dtype(self.y))
        return self._joint(SquaresAsMade(data, weight))
