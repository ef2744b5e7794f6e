"""Whether measurements, their noise and the images found for them are of one scale: refused, or told."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements, energy, parts
from deepinv_dmilo.utils.warning import warn

# All ours, of root mean squares. Measurements are not those of images in [0, 1] where they are so many times as large
# as of black, white and random pixels, and so many times as large as these and their noise together; and hardly where
# they are so many times smaller than of white, and than of an image so many times darker.
TOO_FAR, TOO_FAR_WITH_NOISE = 30.0, 2.0
# What an image leaves unexplained so many times the noise, and such a part of y, is no fit.
MISFIT, MISFIT_OF_ALL, NO_FIT_OF_ALL = 2.5, 0.05, 0.5


def check_scale(likelihood: Likelihood) -> None:
    """
    Refuse measurements far larger than those of images in [0, 1] and than their noise; warn of far smaller ones.

    :raises ValueError: they are.
    """
    likelihood = _of_first_samples(likelihood)
    black, white = (_flat(likelihood, value) for value in (0.0, 1.0))
    if likelihood.forward.nuisance is None:
        _warn_if_too_small(likelihood, white)
    usual = torch.stack([energy(black), energy(white), likelihood.of_images(likelihood.forward.usual_energy)]).amax(0)
    given = _given(likelihood)
    if (given > TOO_FAR**2 * usual).any():
        usual = usual + likelihood.mean_variance(_image(likelihood, 1.0)) * likelihood.observed
        ratio = (given / usual.clamp(min=torch.finfo(usual.dtype).tiny)).sqrt().max().item()
        if ratio > TOO_FAR_WITH_NOISE:
            raise ValueError(
                f"y is {ratio:.3g} times as large as measurements of images in [0, 1]; pass y / 255, say, photon "
                "counts times their gain, or a physics of the scale of y"
            )
    _warn_if_noise_is_all(likelihood)


def _of_first_samples(likelihood: Likelihood) -> Likelihood:
    return likelihood.select((likelihood.rows < likelihood.forward.batch).nonzero()[:, 0])


def _image(likelihood: Likelihood, value: float) -> Tensor:
    """Images all of whose pixels are of a value."""
    like = likelihood.forward.like
    return like.new_full((len(likelihood.rows), *like.shape[1:]), value)


def _flat(likelihood: Likelihood, value: float) -> Measurements:
    """Their measurements."""
    return likelihood.forward(_image(likelihood, value), likelihood.rows)


def _warn_if_too_small(likelihood: Likelihood, white: Measurements) -> None:
    """Warn where a part of y is far less than of white, of all images but black ones; at its largest and on average."""
    forward, rows = likelihood.forward, likelihood.rows
    dark = white / TOO_FAR if forward.is_linear else _flat(likelihood, 1 / TOO_FAR)
    found = zip(*(forward.only_observed(t, rows) for t in (likelihood.y, white, dark)), strict=True)
    for number, (y, of_white, of_dark) in enumerate(found):
        least = [torch.minimum(size(of_white) / TOO_FAR, size(of_dark)) for size in (_largest, _rms)]
        small = (_largest(y) < least[0]) & (_rms(y) < least[1])
        if (small | (_largest(y) == 0)).all() and small.any() and (y != 0).any():
            physical = [parts(forward.units.physical(t, rows))[number].abs() for t in (likelihood.y, white)]
            brightest, most = (t.max().item() for t in physical)
            warn(
                f"y is {brightest:.3g} at most, and of a white image {most:.3g}; check that y was not scaled twice, "
                "and that a kernel adds to one"
            )
            return


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(1)


def _rms(t: Tensor) -> Tensor:
    return t.square().mean(1).sqrt()


def _warn_if_noise_is_all(likelihood: Likelihood) -> None:
    """Warn where Gaussian noise that was told has four times the energy of y."""
    if not isinstance(likelihood, Gaussian) or likelihood.source == "estimated":
        return
    given, variance = _given(likelihood), likelihood.variance
    odd = (variance * likelihood.observed > 4 * given) & (given > 0)
    if odd.any():
        std = likelihood.forward.units.scale * variance[odd].max().sqrt().item()
        whose = "" if likelihood.source == "given" else ", of the noise model (0.1 in a plain Denoising()),"
        warn(
            f"noise of {std:.3g}{whose} is more than all that y measures; give the standard deviation in the units of "
            f"y, of 8-bit levels {std:.3g} / 255"
        )


def warn_if_unexplained(found: Iterable[tuple[Likelihood, Tensor]]) -> None:
    """
    Warn where images leave much more of y than its noise: another physics made it, or passes were too few.

    :param found: of all images of a call: likelihoods of some, and these images.
    """
    shares = torch.cat([_unexplained(likelihood, images) for likelihood, images in found])
    odd = shares > 0
    if odd.any():
        warn(
            f"{int(odd.sum())} of {len(shares)} images leave {shares[odd].mean().item():.0%} of y unexplained, and its "
            "noise is less; check that physics(x) of images x in [0, 1] is like y, in scale and at the edges (a "
            'camera\'s blur has padding="valid"), or give more passes'
        )


def _unexplained(likelihood: Likelihood, images: Tensor) -> Tensor:
    """
    The part of y that each image does not explain, (n,); 0 where that may be noise.

    Of what they reach, and of no less than an image that is almost black would measure.
    """
    rest = likelihood.residual_variance(images) * likelihood.observed
    if not (rest > MISFIT_OF_ALL**2 * _given(likelihood)).any():
        return torch.zeros_like(rest)
    total = torch.maximum(_given(likelihood), energy(_flat(likelihood, 1 / TOO_FAR)))
    if isinstance(likelihood, Gaussian):
        likelihood = likelihood.simulated_at(images)
    is_estimated = isinstance(likelihood, Gaussian) and likelihood.source == "estimated"
    noise = torch.zeros_like(rest) if is_estimated else likelihood.mean_variance(images) * likelihood.observed
    odd = (rest > NO_FIT_OF_ALL**2 * total) | ((rest > MISFIT_OF_ALL**2 * total) & (noise > 0))
    odd &= rest > MISFIT**2 * noise
    return torch.where(odd, (rest / total).sqrt(), torch.zeros_like(rest))


def _given(likelihood: Likelihood) -> Tensor:
    """The energy of y where the image reaches, (n,)."""
    return likelihood.forward.observed_energy(likelihood.y, likelihood.rows)
