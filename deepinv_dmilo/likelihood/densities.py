"""Negative log-likelihoods of single measurements for the noise models of deepinv that are not Gaussian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from deepinv.physics import (
    GammaNoise,
    GaussianNoise,
    LaplaceNoise,
    LogPoissonNoise,
    NoiseModel,
    Physics,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltPepperNoise,
)
from torch import Tensor

from deepinv_dmilo.likelihood.batches import rows_error
from deepinv_dmilo.likelihood.measurements import Measurements, operators_of_parts, parts
from deepinv_dmilo.utils.rows import column

# All ours.
LEAST_PHOTONS = 0.1  # rate below which the logarithm of the Poisson likelihood is replaced by a parabola
LEAST_VARIANCE, MANY_PHOTONS = 0.03, 1000.0  # floor of the variance relative to that of the mean count; see Poisson
LEAST_SIGNAL = 1e-3  # of A(x), in the speckle likelihood
OUTLIER_SCALE = 0.1  # of absolute residuals with outliers: the best of 0.1, 0.15, 0.2
ROUND = 1e-2  # smoothing of the absolute value, relative to the scale of Laplace noise

#: the density of each noise model, by its class; a later subclass of Density replaces an earlier one
DENSITIES: dict[type[NoiseModel], type[Density]] = {}


@dataclass(frozen=True)
class Density:
    """
    The negative log-likelihood of each measurement, and the standard deviation of its noise.

    ``class Cauchy(Density, of=CauchyNoise, names=("scale",))`` registers the likelihood of a noise model, of this class
    exactly, not of its subclasses; its parameters are the attributes of the noise model with these names.

    :param tuple[torch.Tensor] parameters: of the noise model: one number, or one for each image, (B, ...).
    """

    names: ClassVar[tuple[str, ...]] = ()
    #: whether the gradient with respect to A(x) is (A(x) - y) / variance at A(x): a natural exponential family
    is_natural: ClassVar[bool] = False
    parameters: tuple[Tensor, ...]

    def __init_subclass__(cls, *, of: type[NoiseModel] | None = None, names: tuple[str, ...] = ()) -> None:
        cls.names = names
        if of is not None:
            DENSITIES[of] = cls

    @classmethod
    def of_noise(cls, noise: NoiseModel) -> Density | None:
        """The density of a noise model; None: none is known for its parameters, and Gaussian noise is assumed."""
        return cls(tuple(torch.as_tensor(getattr(noise, name)).detach() for name in cls.names))

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """
        The terms that depend on A(x), minus their minimum, (n, ...).

        :param torch.Tensor measured: A(x), in the units of the physics, (n, ...), as y.
        :param torch.Tensor rows: their numbers among the S * B reconstructions, (n,).
        """
        raise NotImplementedError

    def std(self, measured: Tensor, rows: Tensor) -> Tensor | None:
        """Standard deviation of the noise of each measurement, (n, ...); None: not defined, because of outliers."""
        raise NotImplementedError

    def of_rows(self, rows: Tensor, like: Tensor) -> list[Tensor]:
        """The parameters of some rows, with the dimensions of ``like``."""
        return [column(t.to(like), like)[rows % t.numel()] for t in self.parameters]


class Normal(Density):
    """Gaussian noise of one of several operators: sigma."""

    is_natural = True

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        (sigma,) = self.of_rows(rows, measured)
        return ((measured - y) / sigma).square() / 2

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        (sigma,) = self.of_rows(rows, measured)
        return sigma.expand_as(measured)


class Poisson(Density, of=PoissonNoise, names=("gain",)):
    r"""
    Photon counts of gain :math:`\gamma`, plus Gaussian noise of standard deviation :math:`\sigma`.

    :math:`y / \gamma + (\sigma / \gamma)^2` approximately has the Poisson distribution of rate
    :math:`A(x) / \gamma + (\sigma / \gamma)^2`: the first three moments agree. A floor is added to the Gaussian
    variance, so that dark measurements do not outweigh all others; it grows with the mean count.
    """

    is_natural = True

    @classmethod
    def of_noise(cls, noise: NoiseModel) -> Poisson | None:
        gain = noise.gain.detach()
        if not getattr(noise, "normalize", True) or (gain <= 0).any():
            return None  # unnormalized counts, or no noise
        return cls((gain, noise.sigma.detach() if "sigma" in cls.names else torch.zeros_like(gain)))

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        gain, sigma = self.of_rows(rows, measured)
        counts = (y / gain).clamp(min=0).flatten(1)
        mean = counts.sum(1) / (counts > 0).sum(1).clamp(min=1)
        least = mean * (LEAST_VARIANCE + mean / MANY_PHOTONS).clamp(max=1)
        extra = (sigma / gain).square() + column(least, y)
        return _poisson(y / gain + extra, (measured - y) / gain)

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        gain, sigma = self.of_rows(rows, measured)
        return (gain * measured.clamp(min=0) + sigma.square()).sqrt()


class PoissonGaussian(Poisson, of=PoissonGaussianNoise, names=("gain", "sigma")):
    """The same, with the sigma of the noise model."""


class LogPoisson(Density, of=LogPoissonNoise, names=("N0", "mu")):
    """Log counts of a beam that is attenuated by A(x), as in tomography: N0 and mu."""

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        most, mu = self.of_rows(rows, measured)
        counts = most * torch.exp(-mu * y)
        return _poisson(counts, most * torch.exp(-mu * measured) - counts)

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        most, mu = self.of_rows(rows, measured)
        return torch.exp(mu * measured / 2) / (mu * most.sqrt())


class Gamma(Density, of=GammaNoise, names=("l",)):
    """Multiplicative speckle: number of looks l."""

    is_natural = True

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        (looks,) = self.of_rows(rows, measured)
        ratio = y.clamp(min=LEAST_SIGNAL) / measured.clamp(min=LEAST_SIGNAL)
        return looks * (ratio - ratio.log() - 1)

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        (looks,) = self.of_rows(rows, measured)
        return measured.clamp(min=LEAST_SIGNAL) / looks.sqrt()


class Laplace(Density, of=LaplaceNoise, names=("b",)):
    """Laplace noise: scale b."""

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        (b,) = self.of_rows(rows, measured)
        r = (measured - y) / b
        return (r.square() + ROUND**2).sqrt() - ROUND

    def std(self, measured: Tensor, rows: Tensor) -> Tensor | None:
        (b,) = self.of_rows(rows, measured)
        return (2**0.5 * b).expand_as(measured)


class Outliers(Laplace, of=SaltPepperNoise):
    """Salt and pepper, dead pixels: measurements in [0, 1] with outliers; convex."""

    @classmethod
    def of_noise(cls, noise: NoiseModel) -> Outliers:
        return cls((torch.tensor([OUTLIER_SCALE]),))

    def std(self, measured: Tensor, rows: Tensor) -> None:
        return None


def densities_of(physics: Physics, y: Measurements) -> tuple[Density, ...] | None:
    """The densities of the parts of y; None: Gaussian noise for all of them, or no density known for one."""
    members = operators_of_parts(physics, y)
    if len(members) != len(parts(y)):
        return None
    found = [density_of(m, t) or _normal_of(m, t) for m, t in zip(members, parts(y), strict=True)]
    known = tuple(one for one in found if one is not None)
    return None if len(known) < len(found) or all(isinstance(one, Normal) for one in known) else known


def density_of(physics: Physics, y: Measurements) -> Density | None:
    """The density of the noise model of one operator; None: Gaussian noise, or no density known."""
    noise, batch = getattr(physics, "noise_model", None), len(parts(y)[0])
    kind = DENSITIES.get(type(noise))  # type: ignore[arg-type]
    if kind is None or any(t.is_complex() for t in parts(y)):
        return None
    found = kind.of_noise(noise)  # type: ignore[arg-type]
    for name, parameter in zip(kind.names, () if found is None else found.parameters, strict=False):
        if parameter.numel() not in (1, batch):
            raise rows_error([f"members.0.noise_model.{name}"], parameter.numel(), batch)
    return found


def _normal_of(physics: Physics, y: Tensor) -> Normal | None:
    """Gaussian noise of a given sigma, one for all images or for each."""
    noise = getattr(physics, "noise_model", None)
    sigma = getattr(noise, "sigma", None) if type(noise) is GaussianNoise else None
    if sigma is None or sigma.numel() not in (1, len(y)) or not (sigma > 0).all() or y.is_complex():
        return None
    return Normal((sigma.detach(),))


def has_outliers(densities: tuple[Density, ...], y: Measurements) -> bool:
    """Whether the standard deviation of the noise is not defined for a part of y."""
    row = torch.zeros(1, dtype=torch.long, device=parts(y)[0].device)
    return any(one.std(t[:1], row) is None for one, t in zip(densities, parts(y), strict=True))


def _poisson(counts: Tensor, more: Tensor) -> Tensor:
    """
    ``rate - counts log(rate)`` minus its minimum, for ``rate = counts + more``.

    The difference is an argument because it cancels at high counts. Below LEAST_PHOTONS the logarithm is a parabola.
    """
    rate, clamped = counts + more, counts.clamp(min=0)
    more = torch.where(counts < 0, rate, more)
    positive, bright = clamped.clamp(min=1e-6), rate.clamp(min=LEAST_PHOTONS)
    below = (rate - bright) / LEAST_PHOTONS
    parabola = bright.log() - positive.log() + below - below.square() / 2
    relative = torch.where(rate > LEAST_PHOTONS, torch.log1p((more / positive).clamp(min=-0.999999)), parabola)
    return more - clamped * relative
