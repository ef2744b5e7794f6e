"""What the noise model of a physics says of a measurement, where that is not Gaussian noise of one size."""

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
from deepinv_dmilo.likelihood.measurements import Measurements, like_parts, operators, parts

LEAST_PHOTONS = 0.1  # of a measurement that the logarithm of a Poisson likelihood takes: ours
# All ours.
LEAST_VARIANCE, MANY_PHOTONS = 0.03, 1000.0  # of the variance of counts, and photons where all count alike
LEAST_SIGNAL = 1e-3  # of A(x), that speckle multiplies
OUTLIER_SCALE = 0.1  # of the residuals' absolute values where some are outliers: the best of 0.1, 0.15, 0.2
ROUND = 1e-2  # of the scale of Laplace noise, where the absolute value is rounded off


#: the density of each noise model, by its class: one that subclasses name takes the place of the one before
DENSITIES: dict[type[NoiseModel], type[Density]] = {}


@dataclass(frozen=True)
class Density:
    """
    The negative log-likelihood of each measurement; subclasses write it, and the standard deviation of the noise.

    ``class Cauchy(Density, of=CauchyNoise, names=("scale",))`` is from then on the likelihood of a physics with such a
    noise model, the parameters of which are its attributes of these names.

    :param tuple[torch.Tensor] parameters: of the noise model; one number, or one for each image, (B, ...).
    """

    names: ClassVar[tuple[str, ...]] = ()
    parameters: tuple[Tensor, ...]

    def __init_subclass__(cls, *, of: type[NoiseModel] | None = None, names: tuple[str, ...] = ()) -> None:
        cls.names = names
        if of is not None:
            DENSITIES[of] = cls

    @classmethod
    def of_noise(cls, noise: NoiseModel) -> Density | None:
        """That of a noise model; None: that of Gaussian noise must do."""
        return cls(tuple(getattr(noise, name).detach() for name in cls.names))

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """
        The terms that depend on A(x), 0 where they are least.

        :param torch.Tensor measured: A(x) of n images, (n, ...), as is y.
        :param torch.Tensor rows: (n,) which of the S * B rows they are.
        """
        raise NotImplementedError

    def std(self, measured: Tensor, rows: Tensor) -> Tensor | None:
        """Standard deviation of the noise of each measurement, (n, ...); None: it says little, there are outliers."""
        raise NotImplementedError

    def of_rows(self, rows: Tensor, like: Tensor) -> list[Tensor]:
        """The parameters of some rows, each with the dimensions of ``like``."""
        ones = [1] * (like.ndim - 1)
        return [t.to(like).view(-1, *ones)[rows % t.numel()] for t in self.parameters]


class Normal(Density):
    """Noise of a size of its own, of one of several operators: sigma."""

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        (sigma,) = self.of_rows(rows, measured)
        return ((measured - y) / sigma).square() / 2

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        (sigma,) = self.of_rows(rows, measured)
        return sigma.expand_as(measured)


class Poisson(Density, of=PoissonNoise, names=("gain",)):
    r"""
    Photon counts, with Gaussian noise of standard deviation :math:`\sigma` on top: gain :math:`\gamma`, :math:`\sigma`.

    :math:`y / \gamma + (\sigma / \gamma)^2` has about the Poisson distribution of the rate
    :math:`A(x) / \gamma + (\sigma / \gamma)^2`: the first three moments agree. To the Gaussian noise is added what
    keeps dark measurements from outweighing all others, the more the more photons there are.
    """

    @classmethod
    def of_noise(cls, noise: NoiseModel) -> Poisson | None:
        gain = noise.gain.detach()
        if not getattr(noise, "normalize", True) or (gain <= 0).any():
            return None  # counts, of another size than A(x), or no photons are counted
        return cls((gain, noise.sigma.detach() if "sigma" in cls.names else torch.zeros_like(gain)))

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        gain, sigma = self.of_rows(rows, measured)
        counts = (y / gain).clamp(min=0).flatten(1)
        mean = counts.sum(1) / (counts > 0).sum(1).clamp(min=1)
        least = mean * (LEAST_VARIANCE + mean / MANY_PHOTONS).clamp(max=1)
        extra = (sigma / gain).square() + least.view(-1, *[1] * (y.ndim - 1))
        return _poisson(y / gain + extra, (measured - y) / gain)

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        gain, sigma = self.of_rows(rows, measured)
        return (gain * measured.clamp(min=0) + sigma.square()).sqrt()


class PoissonGaussian(Poisson, of=PoissonGaussianNoise, names=("gain", "sigma")):
    """The same, where the noise model has Gaussian noise on top."""


class LogPoisson(Density, of=LogPoissonNoise, names=("N0", "mu")):
    """Counts of a beam that A(x) attenuates, as deepinv's ``LogPoissonNoise``: N0 and mu."""

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        most, mu = self.of_rows(rows, measured)
        counts = most * torch.exp(-mu * y)
        return _poisson(counts, most * torch.exp(-mu * measured) - counts)

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        most, mu = self.of_rows(rows, measured)
        return torch.exp(mu * measured / 2) / (mu * most.sqrt())


class Gamma(Density, of=GammaNoise, names=("l",)):
    """Speckle: l."""

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        (looks,) = self.of_rows(rows, measured)
        ratio = y.clamp(min=LEAST_SIGNAL) / measured.clamp(min=LEAST_SIGNAL)
        return looks * (ratio - ratio.log() - 1)

    def std(self, measured: Tensor, rows: Tensor) -> Tensor:
        (looks,) = self.of_rows(rows, measured)
        return measured.clamp(min=LEAST_SIGNAL) / looks.sqrt()


class Laplace(Density, of=LaplaceNoise, names=("b",)):
    """Noise of heavy tails: b."""

    def __call__(self, measured: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        (b,) = self.of_rows(rows, measured)
        r = (measured - y) / b
        return (r.square() + ROUND**2).sqrt() - ROUND

    def std(self, measured: Tensor, rows: Tensor) -> Tensor | None:
        (b,) = self.of_rows(rows, measured)
        return (2**0.5 * b).expand_as(measured)


class Outliers(Laplace, of=SaltPepperNoise):
    """Salt and pepper, dead pixels: measurements in [0, 1] of which some say nothing; convex, so that none is lost."""

    @classmethod
    def of_noise(cls, noise: NoiseModel) -> Outliers:
        return cls((torch.tensor([OUTLIER_SCALE]),))

    def std(self, measured: Tensor, rows: Tensor) -> None:
        return None


def densities_of(physics: Physics, y: Measurements) -> tuple[Density, ...] | None:
    """The likelihoods of the parts of y; None: that of Gaussian noise of one size will do, or must."""
    members = [member for member in operators(physics) if not hasattr(member, "physics_list")]
    if len(members) == 1:
        one = density_of(physics, y)
        return None if one is None else (one,) * len(parts(y))
    if len(members) != len(parts(y)):
        return None
    found = [density_of(m, t) or _normal_of(m, t) for m, t in zip(members, parts(y), strict=True)]
    known = tuple(one for one in found if one is not None)
    if len(known) < len(found):
        return None
    return None if all(isinstance(one, Normal) for one in known) else known


def density_of(physics: Physics, y: Measurements) -> Density | None:
    """The likelihood of the noise model of one operator; None: that of Gaussian noise will do, or must."""
    noise, batch = getattr(physics, "noise_model", None), len(parts(y)[0])
    kind = DENSITIES.get(type(noise))  # type: ignore[arg-type]
    if kind is None or any(t.is_complex() for t in parts(y)):
        return None
    found = kind.of_noise(noise)  # type: ignore[arg-type]
    for name, parameter in zip(kind.names, () if found is None else found.parameters, strict=False):
        if parameter.numel() not in (1, batch):
            raise rows_error([f"members.0.noise_model.{name}"], parameter.numel(), batch)
    return found


def _normal_of(physics: Physics, y: Measurements) -> Normal | None:
    """Gaussian noise of a size that is told, for all images or each."""
    noise = getattr(physics, "noise_model", None)
    sigma = getattr(noise, "sigma", None) if type(noise) is GaussianNoise else None
    if sigma is None or sigma.numel() not in (1, len(parts(y)[0])) or not (sigma > 0).all() or parts(y)[0].is_complex():
        return None
    return Normal((sigma.detach(),))


def noise_std(densities: tuple[Density, ...], measured: Measurements, rows: Tensor) -> Measurements | None:
    """The standard deviation of the noise of each measurement, (n, ...); None where there are outliers."""
    stds = [one.std(t, rows) for one, t in zip(densities, parts(measured), strict=True)]
    tensors = [t for t in stds if t is not None]
    return like_parts(measured, tensors) if len(tensors) == len(stds) else None


def _poisson(counts: Tensor, more: Tensor) -> Tensor:
    """
    ``rate - counts log(rate)`` of a rate so much above the counts, less its minimum.

    Below a tenth of a photon the logarithm is a parabola. The difference is given: many counts leave it no digits.
    """
    rate, held = counts + more, counts.clamp(min=0)
    more = torch.where(counts < 0, rate, more)
    some, bright = held.clamp(min=1e-6), rate.clamp(min=LEAST_PHOTONS)
    below = (rate - bright) / LEAST_PHOTONS
    parabola = bright.log() - some.log() + below - below.square() / 2
    relative = torch.where(rate > LEAST_PHOTONS, torch.log1p((more / some).clamp(min=-0.999999)), parabola)
    return more - held * relative
