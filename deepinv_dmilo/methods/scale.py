"""Checks that measurements, their noise and the reconstructed images have the same scale."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements, energy, parts
from deepinv_dmilo.utils.warning import warn

# All ours, ratios of root mean squares. y is too large if it exceeds the measurements of black, white and random images
# by the first factor, and these and their noise together by the second. It is suspiciously small if it is below the
# measurements of white, and of an image darker than white by the first factor, both divided by it.
TOO_FAR, TOO_FAR_WITH_NOISE = 30.0, 2.0
# An image does not explain y if its residual exceeds the noise by the first factor, and the second fraction of y; the
# third, if the noise level is only estimated.
MISFIT, MISFIT_OF_ALL, NO_FIT_OF_ALL = 2.5, 0.05, 0.5


def check_scale(likelihood: Likelihood) -> None:
    """
    Refuse measurements that are much larger than those of images in [0, 1]; warn of much smaller ones.

    :param Likelihood likelihood: with one row for each image.
    :raises ValueError: they are much larger.
    """
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
                f"y is {ratio:.3g} times as large as measurements of images in [0, 1]; pass y / 255 for 8-bit "
                "data, photon counts times the gain, or a physics with the scale of y"
            )
    _warn_if_noise_is_all(likelihood)


def _image(likelihood: Likelihood, value: float) -> Tensor:
    """Constant images, (n, C, H, W)."""
    like = likelihood.forward.like
    return like.new_full((len(likelihood.rows), *like.shape[1:]), value)


def _flat(likelihood: Likelihood, value: float) -> Measurements:
    """The measurements of constant images."""
    return likelihood.forward(_image(likelihood, value), likelihood.rows)


def _warn_if_too_small(likelihood: Likelihood, white: Measurements) -> None:
    """Warn if a part of y is far below that of white, in maximum and root mean square; black images do not count."""
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
                f"y is {brightest:.3g} at most, and {most:.3g} in measurements of a white image; check that y was not "
                "scaled twice, and that the kernel sums to one"
            )
            return


def _largest(t: Tensor) -> Tensor:
    return t.abs().amax(1)


def _rms(t: Tensor) -> Tensor:
    return t.square().mean(1).sqrt()


def _warn_if_noise_is_all(likelihood: Likelihood) -> None:
    """Warn if the given Gaussian noise has more than four times the energy of y."""
    if likelihood.source not in ("given", "simulated"):
        return
    given, variance = _given(likelihood), likelihood.largest_variance(likelihood.forward.like)
    odd = (variance * likelihood.observed > 4 * given) & (given > 0)
    if odd.any():
        std = likelihood.forward.units.scale * variance[odd].max().sqrt().item()
        whose = "" if likelihood.source == "given" else ", of the noise model (0.1 in a plain Denoising()),"
        warn(
            f"noise of {std:.3g}{whose} exceeds y itself; give the standard deviation in the units of y, e.g. "
            f"{std:.3g} / 255 for 8-bit data"
        )


def warn_if_unexplained(found: Iterable[tuple[Likelihood, Tensor]]) -> None:
    """
    Warn if the residual of images is much larger than the noise: the physics is wrong, or the budget too small.

    :param found: for each group of a call, the likelihood and the images.
    """
    shares = torch.cat([_unexplained(likelihood, images) for likelihood, images in found])
    odd = shares > 0
    if odd.any():
        warn(
            f"{int(odd.sum())} of {len(shares)} images leave {shares[odd].mean().item():.0%} of y unexplained, "
            "more than its noise; check that physics(x) of images x in [0, 1] matches y in scale and at the edges "
            '(for the blur of a camera, padding="valid"), or increase max_calls'
        )


def _unexplained(likelihood: Likelihood, images: Tensor) -> Tensor:
    """
    The residual of each image relative to y, (n,); 0 where it may be noise.

    Masked measurements do not count; y counts as at least the measurements of an almost black image.
    """
    residual = likelihood.residual_variance(images) * likelihood.observed
    if not (residual > MISFIT_OF_ALL**2 * _given(likelihood)).any():
        return torch.zeros_like(residual)
    total = torch.maximum(_given(likelihood), energy(_flat(likelihood, 1 / TOO_FAR)))
    likelihood = likelihood.simulated_at(images)
    is_estimated = likelihood.source == "estimated"
    noise = torch.zeros_like(residual) if is_estimated else likelihood.mean_variance(images) * likelihood.observed
    odd = (residual > NO_FIT_OF_ALL**2 * total) | ((residual > MISFIT_OF_ALL**2 * total) & (noise > 0))
    odd &= residual > MISFIT**2 * noise
    return torch.where(odd, (residual / total).sqrt(), torch.zeros_like(residual))


def _given(likelihood: Likelihood) -> Tensor:
    """The energy of y without masked measurements, (n,)."""
    return likelihood.forward.observed_energy(likelihood.y, likelihood.rows)
