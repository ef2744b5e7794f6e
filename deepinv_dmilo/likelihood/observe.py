"""The likelihood of measurements of a physics: chosen once, with its noise level and units."""

from __future__ import annotations

from dataclasses import replace

import torch
from deepinv.optim import DataFidelity
from torch import Tensor

from deepinv_dmilo.likelihood.batches import check_noise
from deepinv_dmilo.likelihood.densities import densities_of, has_outliers
from deepinv_dmilo.likelihood.fidelity import Fidelity, check_fidelity
from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.heteroscedastic import given_stds, mean_square, relative, simulated_stds
from deepinv_dmilo.likelihood.likelihoods import (
    EstimatedGaussian,
    Gaussian,
    Likelihood,
    NonGaussianNoise,
    OutlierNoise,
    SimulatedGaussian,
    Squares,
)
from deepinv_dmilo.likelihood.measurements import Measurements, Units, parts, take
from deepinv_dmilo.likelihood.noise import simulated_at_probe

GUESSED_NOISE = 0.05  # standard deviation of unknown noise, in [0, 1], until it is estimated: ours


def observe(
    y: Measurements,
    forward: ForwardModel,
    *,
    num_samples: int = 1,
    noise_level: float | None = None,
    data_fidelity: DataFidelity | None = None,
) -> list[Likelihood]:
    """
    The likelihood of measurements, for S samples of each image; all images of the first sample come first.

    There are two likelihoods, of some images each, if the noise level of some is known and that of others is not.

    :param y: measurements of B images, in the units of the physics.
    :param ForwardModel forward: the forward model, whose units are set.
    :param int num_samples: S.
    :param float noise_level: standard deviation of Gaussian noise as in deepinv's noise models (of a complex number as
        a whole); None: that of the noise model of the physics.
    :param deepinv.optim.DataFidelity data_fidelity: the negative log-likelihood; None: that of the noise model.
    """
    rows = _scaled_rows(forward, num_samples)
    if data_fidelity is not None:
        fidelity = Fidelity(forward, _normalized(y, forward, rows), rows, data_fidelity)
        check_fidelity(fidelity, torch.full_like(forward.like, 0.5))
        return [fidelity]
    if noise_level is None:
        check_noise(y, forward)
        densities = densities_of(forward.physics, y)
        if densities is not None:
            of_noise = OutlierNoise if has_outliers(densities, y) else NonGaussianNoise
            return [of_noise(forward, _normalized(y, forward, rows), rows, densities)]
    kind, of_images = _gaussian_noise(y, forward, noise_level)  # may change the units
    likelihood = kind(forward, _normalized(y, forward, rows), rows, of_images[rows % forward.batch])
    unknown = likelihood.variance == 0
    guess = EstimatedGaussian(forward, likelihood.y, rows, GUESSED_NOISE**2 * likelihood.squared_norm)
    groups = [(likelihood, ~unknown), (guess, unknown)]
    return [one.select(chosen.nonzero()[:, 0]) for one, chosen in groups if chosen.any()]


def mean_squares(y: Measurements, forward: ForwardModel, *, num_samples: int = 1) -> list[Likelihood]:
    r"""
    The paper's data term :math:`4 \, \mathrm{mean} |A(x) - y|^2`, for S samples of each image.

    The factor gives its value for images in [-1, 1].
    """
    rows = _scaled_rows(forward, num_samples)
    weight = 4 / sum(t[0].numel() for t in parts(y))
    return [Squares(forward, _normalized(y, forward, rows), rows, weight)]


def _scaled_rows(forward: ForwardModel, num_samples: int) -> Tensor:
    """Set units in which measurements are about 1; returns the rows of all samples, (S * B,)."""
    forward.set_units(Units.of_size(forward.probe.largest_change))
    return torch.arange(num_samples * forward.batch, device=forward.like.device)


def _normalized(y: Measurements, forward: ForwardModel, rows: Tensor) -> Measurements:
    return take(forward.units.normalized(y, forward.images), rows % forward.batch)


def _gaussian_noise(y: Measurements, forward: ForwardModel, noise_level: float | None) -> tuple[type[Gaussian], Tensor]:
    """
    The likelihood, and the noise variance of a (real) measurement of each image, (B,), 0 where it is unknown.

    Heteroscedastic noise is whitened: the units become those in which all measurements have this variance.
    """
    given = given_stds(forward.physics, y, noise_level)
    stds = simulated_stds(forward) if given is None and noise_level is None else given
    if stds is not None:
        forward.set_units(replace(forward.units, relative=relative(stds, forward)))
    if given is not None:
        return Gaussian, mean_square(given, forward) / forward.units.scale**2
    if noise_level is not None:
        halves = 2 if parts(y)[0].is_complex() else 1
        return Gaussian, torch.full_like(forward.like[:, 0, 0, 0], (noise_level / forward.units.scale) ** 2 / halves)
    return SimulatedGaussian, simulated_at_probe(forward)
