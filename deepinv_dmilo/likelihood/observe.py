"""Which likelihood goes with measurements and a physics: chosen once, with its noise and its units."""

from __future__ import annotations

from dataclasses import replace

import torch
from deepinv.optim import DataFidelity
from torch import Tensor

from deepinv_dmilo.likelihood.batches import check_noise
from deepinv_dmilo.likelihood.densities import densities_of
from deepinv_dmilo.likelihood.fidelity import Fidelity, check_fidelity
from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.heteroscedastic import drawn_sizes, mean_square, relative, sizes_of_level, told_sizes
from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood, MeanSquares, NoiseModel, Source
from deepinv_dmilo.likelihood.measurements import Measurements, parts, take
from deepinv_dmilo.likelihood.noise import simulated_at_probe
from deepinv_dmilo.likelihood.units import Units

GUESSED_NOISE = 0.05  # standard deviation, in [0, 1], of noise that nobody told, until it is estimated: ours


def observe(
    y: Measurements,
    forward: ForwardModel,
    *,
    num_samples: int = 1,
    noise_level: float | None = None,
    data_fidelity: DataFidelity | None = None,
) -> list[Likelihood]:
    """
    The likelihood of measurements, for S reconstructions of each image, those of the first sample first.

    More than one, of some images each, where the noise of some is told and that of others is not.

    :param y: measurements of B images, as the physics has them.
    :param ForwardModel forward: their physics; it counts in units of its own from now on.
    :param int num_samples: S.
    :param float noise_level: standard deviation of Gaussian noise as deepinv's noise models take it (that of a complex
        measurement's real and imaginary part together); None: the noise model of the physics tells.
    :param deepinv.optim.DataFidelity data_fidelity: the negative log-likelihood in place of that of the noise model.
    """
    forward.count_in(Units.of_size(forward.probe.largest))
    rows = torch.arange(num_samples * forward.batch, device=parts(y)[0].device)
    if data_fidelity is not None:
        fidelity = Fidelity(forward, _counted(y, forward, rows), rows, data_fidelity)
        check_fidelity(fidelity, torch.full_like(forward.like, 0.5))
        return [fidelity]
    if noise_level is None:
        check_noise(y, forward)
        densities = densities_of(forward.physics, y)
        if densities is not None:
            return [NoiseModel(forward, _counted(y, forward, rows), rows, densities)]
    variance, source = _gaussian_noise(y, forward, noise_level)
    variance, measured = variance[rows % forward.batch], _counted(y, forward, rows)  # in the units of now
    likelihood = Gaussian(forward, measured, rows, variance, source)
    unknown = variance == 0
    guess = replace(likelihood, variance=GUESSED_NOISE**2 * likelihood.squared_norm, source="estimated")
    groups = [(likelihood, ~unknown), (guess, unknown)]
    return [one.select(chosen.nonzero()[:, 0]) for one, chosen in groups if chosen.any()]


def mean_squares(y: Measurements, forward: ForwardModel, *, num_samples: int = 1) -> list[Likelihood]:
    """The paper's misfit, which asks for no noise, for S reconstructions of each image."""
    forward.count_in(Units.of_size(forward.probe.largest))
    rows = torch.arange(num_samples * forward.batch, device=parts(y)[0].device)
    return [MeanSquares(forward, _counted(y, forward, rows), rows)]


def _counted(y: Measurements, forward: ForwardModel, rows: Tensor) -> Measurements:
    return take(forward.units.counted(y, forward.images), rows % forward.batch)


def _gaussian_noise(y: Measurements, forward: ForwardModel, noise_level: float | None) -> tuple[Tensor, Source]:
    """
    The variance of a (real) measurement of each image, (B,), and who tells; 0 where nobody does.

    Where the noise is of unlike size in the measurements of an image, each is counted in units of its own from now on.
    """
    told = told_sizes(forward.physics, y) if noise_level is None else sizes_of_level(noise_level, y)
    sizes = told or (drawn_sizes(forward) if noise_level is None else None)
    if sizes is not None:
        forward.count_in(replace(forward.units, relative=relative(sizes, forward)))
    if told is not None:
        return mean_square(told, forward) / forward.units.scale**2, "told"
    if noise_level is not None:
        halves = 2 if parts(y)[0].is_complex() else 1
        return torch.full_like(forward.like[:, 0, 0, 0], (noise_level / forward.units.scale) ** 2 / halves), "told"
    return simulated_at_probe(forward), "simulated"
