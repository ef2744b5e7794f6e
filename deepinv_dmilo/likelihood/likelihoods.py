"""p(y | x): negative log-likelihoods of images, one family; ``observe`` chooses that of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from deepinv.utils import TensorList
from torch import Tensor

from deepinv_dmilo.likelihood.densities import Density, noise_std
from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.heteroscedastic import least_variances
from deepinv_dmilo.likelihood.measurements import Measurements, energy, like_parts, mean_energy, parts, take
from deepinv_dmilo.likelihood.noise import simulated_variance

#: where a noise level comes from: the caller or the noise model; draws of the noise model; the network
Source: TypeAlias = Literal["told", "simulated", "estimated"]
_Likelihood = TypeVar("_Likelihood", bound="Likelihood")


@dataclass(frozen=True)
class Likelihood:
    """
    The negative log-likelihood of n images, up to a constant; subclasses write it.

    :param ForwardModel forward: A, and the units of its measurements.
    :param y: the measurements of the rows, in these units, (n, ...).
    :param torch.Tensor rows: which of the S * B reconstructions they are, (n,).
    """

    #: whether the noise is Gaussian, of known or estimated variances
    is_gaussian: ClassVar[bool] = False
    #: whether p(y | x) says how large the noise is, so that posterior means and samples have a meaning
    has_noise: ClassVar[bool] = True

    #: whether some measurements say nothing at all
    has_outliers: ClassVar[bool] = False

    forward: ForwardModel
    y: Measurements
    rows: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The values of images in [0, 1], (n, C, H, W) -> (n,), differentiable."""
        raise NotImplementedError

    def select(self: _Likelihood, rows: Tensor) -> _Likelihood:
        """The same for some of the rows."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: take(v, rows) for k, v in own.items() if isinstance(v, Tensor | TensorList)}
        return replace(self, **chosen)

    def residual(self, x: Tensor) -> Measurements:
        """A(x) - y of images in [0, 1], (n, C, H, W)."""
        return self.forward(x, self.rows) - self.y

    def energy(self, x: Tensor) -> Tensor:
        """``||A(x) - y||^2``, (n,)."""
        return energy(self.residual(x))

    def energy_as_made(self, x: Tensor) -> Tensor:
        """``||A(x) - y||^2`` of measurements as the physics has them, (n,)."""
        return energy(self.forward.units.as_made(self.residual(x), self.rows))

    def residual_variance(self, x: Tensor) -> Tensor:
        """Mean square of A(x) - y in a (real) measurement that the image changes, (n,)."""
        return self.forward.observed_energy(self.residual(x), self.rows) / self.observed

    def rms(self, x: Tensor) -> Tensor:
        """Root mean square of A(x) - y, as the physics has it, (n,); at a perfect fit the noise level."""
        units = self.forward.units  # the scale last: the squares of a small unit are none
        return units.scale * mean_energy(replace(units, scale=1.0).as_made(self.residual(x), self.rows)).sqrt()

    def of_images(self, t: Tensor) -> Tensor:
        """What is known of each image, (B,), for the rows, (n,)."""
        return t[self.rows % self.forward.batch]

    @property
    def observed(self) -> Tensor:
        """Number of real measurements that change with the image, (n,)."""
        return self.of_images(self.forward.observed)

    @property
    def squared_norm(self) -> Tensor:
        """``||A||^2``, (n,)."""
        return self.of_images(self.forward.squared_norm)

    @property
    def most_noise(self) -> Tensor:
        """Mean square of a measurement, of which noise is a part, (n,); infinite where that is 0."""
        given = self.forward.observed_energy(self.y, self.rows) / self.observed
        return torch.where(given > 0, given, torch.inf)

    def mean_variance(self, x: Tensor) -> Tensor:
        """The variance of the noise of a (real) measurement at images x, (n,); 0 where the physics has none."""
        return simulated_variance(x, self.rows, self.forward)

    def largest_variance(self, x: Tensor) -> Tensor:
        """That of the noisiest measurement, (n,); where it is not known, of all."""
        simulated = self.mean_variance(x)
        if (simulated > 0).all():
            return simulated
        return torch.where(simulated > 0, simulated, self.residual_variance(x))

    def gaussian(self, variance: Measurements) -> Gaussian:
        """Gaussian noise of a variance, (n,), or of one for each measurement, (n, ...), on the same measurements."""
        return Gaussian(self.forward, self.y, self.rows, variance)

    def std(self, x: Tensor) -> Measurements | None:
        """The standard deviation of the noise of each measurement at images x, (n, ...); None: it is not known."""
        return None

    def gaussian_at(self, x: Tensor) -> Gaussian:
        """The Gaussian likelihood whose variances are those of the noise at images x."""
        return self.gaussian(self.mean_variance(x))

    def perturbed(self: _Likelihood, x: Tensor, draw: Callable[[Measurements], Measurements]) -> _Likelihood:
        """
        The same of y with as much noise on top as it has at images x.

        :param draw: makes standard normal noise like measurements.
        """
        std = self.std(x)
        if std is None:
            raise TypeError(f"a likelihood of {type(self).__name__} does not say how large the noise is")
        noisy = [t + s * e for t, s, e in zip(parts(self.y), parts(std), parts(draw(self.y)), strict=True)]
        return replace(self, y=like_parts(self.y, noisy))

    def of_measurements_of(self: _Likelihood, x: Tensor) -> _Likelihood:
        """The likelihood of what is measured of images x without noise, in place of y."""
        return replace(self, y=self.forward(x, self.rows))


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """``||A(x) - y||^2 / (2 variance)``."""

    is_gaussian = True
    variance: Measurements  # of a real measurement: (n,), or of each of them, (n, ...)
    source: Source = "told"

    def __call__(self, x: Tensor) -> Tensor:
        if not self._is_of_each:
            return self.energy(x) / (2 * self._positive(self.variance))
        pairs = zip(parts(self.residual(x)), parts(self.variance), strict=True)
        return torch.stack([(r.abs().square() / (2 * v)).flatten(1).sum(1) for r, v in pairs]).sum(0)

    def mean_variance(self, x: Tensor) -> Tensor:
        return self.variance

    def largest_variance(self, x: Tensor) -> Tensor:
        return self.variance

    def gaussian_at(self, x: Tensor) -> Gaussian:
        return self

    def simulated_at(self, x: Tensor) -> Gaussian:
        """With the variance that the physics' own noise has at images x, if any, unless it was told or estimated."""
        if self.source != "simulated":
            return self
        variance = simulated_variance(x, self.rows, self.forward)
        return replace(self, variance=torch.where(variance > 0, variance, self.variance))

    def std(self, x: Tensor) -> Measurements:
        if self._is_of_each:
            return like_parts(self.y, [v.sqrt() for v in parts(self.variance)])
        return like_parts(self.y, [self.variance.sqrt().view(-1, *[1] * (t.ndim - 1)) for t in parts(self.y)])

    @property
    def _is_of_each(self) -> bool:
        return isinstance(self.variance, TensorList) or self.variance.ndim > 1

    @staticmethod
    def _positive(variance: Tensor) -> Tensor:
        """Of measurements that are explained to the last digit."""
        return variance.clamp(min=torch.finfo(variance.dtype).tiny ** 0.5)


@dataclass(frozen=True)
class NoiseModel(Likelihood):
    """That of the physics' noise model, where it is not Gaussian."""

    densities: tuple[Density, ...] = ()  # of the parts of y

    def __call__(self, x: Tensor) -> Tensor:
        as_made = self.forward.units.as_made
        measured, y = (parts(as_made(t, self.rows)) for t in (self.forward(x, self.rows), self.y))
        terms = [one(a, t, self.rows) for one, a, t in zip(self.densities, measured, y, strict=True)]
        return torch.stack([term.flatten(1).sum(1) for term in terms]).sum(0)

    @property
    def has_outliers(self) -> bool:  # type: ignore[override]
        """Whether some measurements say nothing at all."""
        return any(one.std(t, self.rows) is None for one, t in zip(self.densities, parts(self.y), strict=True))

    @property
    def has_noise(self) -> bool:  # type: ignore[override]
        return not self.has_outliers

    def std(self, x: Tensor) -> Measurements | None:
        if self.has_outliers:
            return None
        units = self.forward.units
        std = noise_std(self.densities, units.as_made(self.forward(x, self.rows), self.rows), self.rows)
        return None if std is None else units.counted(std, self.rows)

    def mean_variance(self, x: Tensor) -> Tensor:
        std = self.std(x)
        if std is None:
            return super().mean_variance(x)
        return self.forward.observed_energy(std, self.rows) / self.observed

    def largest_variance(self, x: Tensor) -> Tensor:
        std = self.std(x)
        if std is None:
            return super().largest_variance(x)
        return torch.stack([t.flatten(1).amax(1) for t in parts(std)]).amax(0).square()

    def gaussian_at(self, x: Tensor) -> Gaussian:
        std = self.std(x)
        if std is None:
            return super().gaussian_at(x)
        squares = [t.square() for t in parts(std)]
        least = least_variances(squares, self.forward, self.rows)
        floored = [torch.maximum(t, floor) for t, floor in zip(squares, least, strict=True)]
        return self.gaussian(like_parts(self.y, floored))


@dataclass(frozen=True)
class HalfSquares(Likelihood):
    """``||A(x) - y||^2 / 2`` of measurements as the physics has them: what published step sizes are for."""

    has_noise = False

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy_as_made(x) / 2


@dataclass(frozen=True)
class MeanSquares(Likelihood):
    r"""
    The paper's misfit, :math:`4 \, \mathrm{mean} |A(x) - y|^2`; the factor gives its value for images in [-1, 1].

    Of measurements as the physics has them; it knows no noise.
    """

    has_noise = False

    def __call__(self, x: Tensor) -> Tensor:
        return 4 / sum(t[0].numel() for t in parts(self.y)) * self.energy_as_made(x)
