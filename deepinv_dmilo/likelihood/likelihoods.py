"""p(y | x): negative log-likelihoods of images; ``observe`` chooses one for a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from deepinv.utils import TensorList
from torch import Tensor

from deepinv_dmilo.likelihood.densities import Density
from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.heteroscedastic import least_variances
from deepinv_dmilo.likelihood.measurements import Measurements, energy, like_parts, mean_energy, parts, take
from deepinv_dmilo.likelihood.noise import simulated_variance
from deepinv_dmilo.utils.rows import column

Source: TypeAlias = Literal["given", "simulated", "estimated"]
_Likelihood = TypeVar("_Likelihood", bound="Likelihood")


@dataclass(frozen=True)
class Likelihood:
    """
    The negative log-likelihood of n images, up to a constant; subclasses implement it.

    :param ForwardModel forward: A, and the units of its measurements.
    :param y: the measurements of the rows, (n, ...), in these units.
    :param torch.Tensor rows: their numbers among the S * B reconstructions, (n,).
    """

    #: whether the noise is Gaussian, with known or estimated variances
    is_gaussian: ClassVar[bool] = False
    #: where a Gaussian noise level comes from: the caller or the noise model, draws of it, or the network
    source: ClassVar[Source | None] = None
    #: whether the noise level is defined, as posterior means and samples require
    has_noise: ClassVar[bool] = True
    #: whether a sparse deviation may be added to the images
    allows_deviation: ClassVar[bool] = True
    #: whether some measurements are outliers, independent of the image
    has_outliers: ClassVar[bool] = False

    forward: ForwardModel
    y: Measurements
    rows: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The values of images in [0, 1], (n, C, H, W) -> (n,), differentiable."""
        raise NotImplementedError

    def select(self: _Likelihood, rows: Tensor) -> _Likelihood:
        """The likelihood of some of the rows."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: take(v, rows) for k, v in own.items() if isinstance(v, Tensor | TensorList)}
        return replace(self, **chosen)

    def residual(self, x: Tensor) -> Measurements:
        """A(x) - y of images in [0, 1], (n, C, H, W)."""
        return self.forward(x, self.rows) - self.y

    def energy(self, x: Tensor) -> Tensor:
        """``||A(x) - y||^2``, (n,)."""
        return energy(self.residual(x))

    def residual_variance(self, x: Tensor) -> Tensor:
        """Mean square of A(x) - y over the observed (real) measurements, (n,)."""
        return self.forward.observed_energy(self.residual(x), self.rows) / self.observed

    def rms(self, x: Tensor) -> Tensor:
        """Root mean square of A(x) - y in the units of the physics, (n,)."""
        units = self.forward.units  # the scale last: squares of a small unit underflow
        return units.scale * mean_energy(replace(units, scale=1.0).physical(self.residual(x), self.rows)).sqrt()

    def of_images(self, t: Tensor) -> Tensor:
        """A quantity of each image, (B,), for the rows, (n,)."""
        return t[self.rows % self.forward.batch]

    @property
    def observed(self) -> Tensor:
        """Number of real measurements that depend on the image, (n,)."""
        return self.of_images(self.forward.observed)

    @property
    def squared_norm(self) -> Tensor:
        """``||A||^2``, (n,)."""
        return self.of_images(self.forward.squared_norm)

    @property
    def variance_bound(self) -> Tensor:
        """An upper bound of the noise variance, (n,): the mean square of the observed y; infinite where that is 0."""
        power = self.forward.observed_energy(self.y, self.rows) / self.observed
        return torch.where(power > 0, power, torch.inf)

    def mean_variance(self, x: Tensor) -> Tensor:
        """The mean noise variance of a (real) measurement at images x, (n,); 0 where the physics has no noise."""
        return simulated_variance(x, self.rows, self.forward)

    def largest_variance(self, x: Tensor) -> Tensor:
        """The noise variance of the noisiest measurement, (n,); the mean one, or that of the residual, if unknown."""
        simulated = self.mean_variance(x)
        if (simulated > 0).all():
            return simulated
        return torch.where(simulated > 0, simulated, self.residual_variance(x))

    def gaussian(self, variance: Measurements) -> Gaussian:
        """The Gaussian likelihood of the same y with a variance (n,), or one for each measurement, (n, ...)."""
        return Gaussian(self.forward, self.y, self.rows, variance)

    def std(self, x: Tensor) -> Measurements:
        """
        The standard deviation of the noise of each measurement at images x, (n, ...).

        :raises TypeError: the noise level is not defined.
        """
        raise TypeError(f"a likelihood of {type(self).__name__} does not define a noise level")

    def gaussian_at(self, x: Tensor) -> Gaussian:
        """The Gaussian likelihood with the variances of the noise at images x."""
        return self.gaussian(self.mean_variance(x))

    def tangent_at(self, x: Tensor) -> Likelihood:
        """A Gaussian likelihood of the same gradient at images x, where a noise model has one; else this one."""
        return self

    def simulated_at(self: _Likelihood, x: Tensor) -> _Likelihood:
        """This likelihood with its noise simulated at images x; unchanged unless it is simulated."""
        return self

    def at(self: _Likelihood, x: Tensor) -> _Likelihood:
        """This likelihood at the current images x: noise simulated again, an estimate capped by the residual."""
        return self.simulated_at(x)

    def at_least(self: _Likelihood, noise: float) -> _Likelihood:
        """This likelihood with an estimated noise level of at least ``noise``, as that of an image in [0, 1]."""
        return self

    def perturbed(self: _Likelihood, x: Tensor, draw: Callable[[Measurements], Measurements]) -> _Likelihood:
        """
        The likelihood of y plus fresh noise of the standard deviation at images x.

        :param draw: draws standard normal noise like the measurements it is given.
        """
        std = parts(self.std(x))
        noisy = [t + s * e for t, s, e in zip(parts(self.y), std, parts(draw(self.y)), strict=True)]
        return replace(self, y=like_parts(self.y, noisy))

    def of_clean(self: _Likelihood, x: Tensor) -> _Likelihood:
        """The likelihood of the noiseless measurements A(x) in place of y."""
        return replace(self, y=self.forward(x, self.rows))


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """``||A(x) - y||^2 / (2 variance)``."""

    is_gaussian = True
    source: ClassVar[Source | None] = "given"
    variance: Measurements  # of a real measurement: (n,), or of each of them, (n, ...)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._is_elementwise:
            positive = self.variance.clamp(min=torch.finfo(self.variance.dtype).tiny ** 0.5)  # after an exact fit
            return self.energy(x) / (2 * positive)
        pairs = zip(parts(self.residual(x)), parts(self.variance), strict=True)
        return torch.stack([(r.abs().square() / (2 * v)).flatten(1).sum(1) for r, v in pairs]).sum(0)

    def mean_variance(self, x: Tensor) -> Tensor:
        return self.variance

    def largest_variance(self, x: Tensor) -> Tensor:
        return self.variance

    def gaussian_at(self, x: Tensor) -> Gaussian:
        return self

    def std(self, x: Tensor) -> Measurements:
        if self._is_elementwise:
            return like_parts(self.y, [v.sqrt() for v in parts(self.variance)])
        return like_parts(self.y, [column(self.variance.sqrt(), t) for t in parts(self.y)])

    @property
    def _is_elementwise(self) -> bool:
        return isinstance(self.variance, TensorList) or self.variance.ndim > 1


@dataclass(frozen=True)
class SimulatedGaussian(Gaussian):
    """Gaussian noise whose variance is simulated from the physics at the current image."""

    source = "simulated"

    def simulated_at(self, x: Tensor) -> SimulatedGaussian:
        variance = simulated_variance(x, self.rows, self.forward)
        return replace(self, variance=torch.where(variance > 0, variance, self.variance))


@dataclass(frozen=True)
class EstimatedGaussian(Gaussian):
    """Gaussian noise of an estimated variance, which can only fall: a better image leaves a smaller residual."""

    source = "estimated"

    def at(self, x: Tensor) -> EstimatedGaussian:
        return replace(self, variance=torch.minimum(self.residual_variance(x), self.variance))

    def at_least(self, noise: float) -> EstimatedGaussian:
        return replace(self, variance=torch.maximum(self.variance, noise**2 * self.squared_norm))


@dataclass(frozen=True)
class NonGaussian(Likelihood):
    """The likelihood of a noise model that is not Gaussian, by the density of each measurement."""

    allows_deviation = False
    densities: tuple[Density, ...]  # of the parts of y

    def __call__(self, x: Tensor) -> Tensor:
        physical = self.forward.units.physical
        measured, y = (parts(physical(t, self.rows)) for t in (self.forward(x, self.rows), self.y))
        terms = [one(a, t, self.rows) for one, a, t in zip(self.densities, measured, y, strict=True)]
        return torch.stack([term.flatten(1).sum(1) for term in terms]).sum(0)


@dataclass(frozen=True)
class OutlierNoise(NonGaussian):
    """The same of noise with outliers, which has no noise level."""

    has_noise = False
    has_outliers = True


@dataclass(frozen=True)
class NonGaussianNoise(NonGaussian):
    """The same of noise with a standard deviation, which may depend on the image."""

    def std(self, x: Tensor) -> Measurements:
        units = self.forward.units
        measured = units.physical(self.forward(x, self.rows), self.rows)
        stds: Any = [one.std(t, self.rows) for one, t in zip(self.densities, parts(measured), strict=True)]
        return units.normalized(like_parts(measured, stds), self.rows)

    def mean_variance(self, x: Tensor) -> Tensor:
        return self.forward.observed_energy(self.std(x), self.rows) / self.observed

    def largest_variance(self, x: Tensor) -> Tensor:
        return torch.stack([t.flatten(1).amax(1) for t in parts(self.std(x))]).amax(0).square()

    def tangent_at(self, x: Tensor) -> Likelihood:
        return self.gaussian_at(x) if all(one.is_natural for one in self.densities) else self

    def gaussian_at(self, x: Tensor) -> Gaussian:
        squares = [t.square() for t in parts(self.std(x))]
        least = least_variances(squares, self.forward, self.rows)
        floored = [torch.maximum(t, floor) for t, floor in zip(squares, least, strict=True)]
        return self.gaussian(like_parts(self.y, floored))


@dataclass(frozen=True)
class Squares(Likelihood):
    """``weight |A(x) - y|^2`` in the units of the physics, without a noise level."""

    has_noise = False
    weight: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * energy(self.forward.units.physical(self.residual(x), self.rows))
