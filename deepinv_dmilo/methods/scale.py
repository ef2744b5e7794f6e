"""Whether measurements, their noise and the images found for them are of one scale: refused, or told."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, energy, parts
from deepinv_dmilo.likelihood.observation import Observation
from deepinv_dmilo.utils.warning import warn

# All ours, of root mean squares. Measurements are not those of images in [0, 1] where they are so many times as large
# as of black, white and random pixels, and so many times as large as these and their noise together; and hardly where
# they are so many times smaller than of white, and than of an image so many times darker.
TOO_FAR, TOO_FAR_WITH_NOISE = 30.0, 2.0
# What an image leaves unexplained so many times the noise, and such a part of y, is no fit.
MISFIT, MISFIT_OF_ALL, NO_FIT_OF_ALL = 2.5, 0.05, 0.5


def check_scale(observation: Observation) -> None:
    """
    Refuse measurements far larger than those of images in [0, 1] and than their noise; warn of far smaller ones.

    :raises ValueError: they are.
    """
    operator, rows = observation.operator, observation.images.rows
    black, white = (_flat(observation, value) for value in (0.0, 1.0))
    if operator.unknowns is None:
        _warn_if_too_small(observation, white)
    usual, given = (
        torch.stack([energy(black), energy(white), operator.usual_energy]).amax(0),
        operator.reached_energy(observation.y, rows),
    )
    if (given > TOO_FAR**2 * usual).any():
        noise = observation.noise_of_images(torch.ones_like(operator.like)) * operator.reached
        usual = usual + noise
        ratio = (given / usual.clamp(min=torch.finfo(usual.dtype).tiny)).sqrt().max().item()
        if ratio > TOO_FAR_WITH_NOISE:
            raise ValueError(
                f"y is {ratio:.3g} times as large as measurements of images in [0, 1]; pass y / 255, say, photon "
                "counts times their gain, or a physics of the scale of y"
            )


def _flat(observation: Observation, value: float) -> Measurements:
    """Measurements of images all of whose pixels are of a value."""
    return observation.operator(torch.full_like(observation.operator.like, value), observation.images.rows)


def _warn_if_too_small(observation: Observation, white: Measurements) -> None:
    """Warn where a part of y is far less than of white, of all images but black ones; at its largest and on average."""
    operator, rows = observation.operator, observation.images.rows
    dark = white / TOO_FAR if operator.is_linear else _flat(observation, 1 / TOO_FAR)
    found = zip(*(operator.only_reached(t, rows) for t in (observation.y, white, dark)), strict=True)
    for number, (y, of_white, of_dark) in enumerate(found):
        least = [torch.minimum(size(of_white) / TOO_FAR, size(of_dark)) for size in (_largest, _rms)]
        small = (_largest(y) < least[0]) & (_rms(y) < least[1])
        if (small | (_largest(y) == 0)).all() and small.any() and (y != 0).any():
            as_made = [parts(operator.units.as_made(t, rows))[number].abs() for t in (observation.y, white)]
            brightest, most = (t.max().item() for t in as_made)
            warn(
                f"y is {brightest:.3g} at most, and of a white image {most:.3g}; check that y was not scaled twice, "
                "and that a kernel adds to one"
            )
            return


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(1)


def _rms(t: Tensor) -> Tensor:
    return t.square().mean(1).sqrt()


def warn_if_noise_is_all(observation: Observation, variance: Tensor) -> None:
    """Warn where noise that was told, of a variance (B,), 0 where not, has four times the energy of y."""
    operator, given = observation.operator, _given(observation)
    odd = (variance * operator.reached > 4 * given) & (given > 0)
    if odd.any():
        std = operator.units.scale * variance[odd].max().sqrt().item()
        whose = ", of the noise model (0.1 in a plain Denoising())," if observation.noise_level is None else ""
        warn(
            f"noise of {std:.3g}{whose} is more than all that y measures; give the standard deviation in the units of "
            f"y, of 8-bit levels {std:.3g} / 255"
        )


def warn_if_unexplained(observation: Observation, images: Tensor) -> None:
    """
    Warn where B images leave much more of y than its noise: another physics made it, or passes were too few.

    Of what they reach, and of no less than an image that is almost black would measure.
    """
    operator = observation.operator
    rest = operator.reached_energy(observation.images.residual(images), observation.images.rows)
    odd = rest > MISFIT_OF_ALL**2 * _given(observation)
    if odd.any():
        total = torch.maximum(_given(observation), energy(_flat(observation, 1 / TOO_FAR)))
        noise = observation.noise_of_images(images) * operator.reached
        odd = (rest > NO_FIT_OF_ALL**2 * total) | ((rest > MISFIT_OF_ALL**2 * total) & (noise > 0))
        odd &= rest > MISFIT**2 * noise
    if odd.any():
        share = (rest / total)[odd].sqrt().mean().item()
        warn(
            f"{int(odd.sum())} of {len(images)} images leave {share:.0%} of y unexplained, and its noise is less; "
            "check that physics(x) of images x in [0, 1] is like y, in scale and at the edges (a camera's blur has "
            'padding="valid"), or give more passes'
        )


def _given(observation: Observation) -> Tensor:
    """The energy of y where the image reaches, (B,)."""
    return observation.operator.reached_energy(observation.y, observation.images.rows)
