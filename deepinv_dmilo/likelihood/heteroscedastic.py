"""Noise whose standard deviation differs between measurements: from its noise model, or estimated from its draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import GaussianNoise, Physics, UniformGaussianNoise, UniformNoise, ZeroNoise
from torch import Tensor

from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.measurements import Measurements, operators_of_parts, parts, take, working_dtype
from deepinv_dmilo.likelihood.noise import DRAWS, SEED, draws, find_noise_tensors
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory
from deepinv_dmilo.utils.rows import column

# All ours. Draws for the standard deviation of each measurement; standard errors at which they count as different.
DRAWS_OF_EACH, CERTAIN = 64, 5.0
# Floor of a standard deviation relative to the mean of its part. It is lower for measurements that are SMALL_CHANGE
# times less sensitive to the image than the others, in proportion. Without the floor, noise that differs 150-fold
# within an operator costs up to 1.6 dB at 15 passes (Gaussian images of a 1/f spectrum; trials).
LEAST_OF_MEAN, SMALL_CHANGE = 0.1, 4.0
HOMOSCEDASTIC = (UniformGaussianNoise, UniformNoise)

#: standard deviation of the noise of each (real) measurement, (1, ...) or (B, ...) for each part of y
Stds = tuple[Tensor, ...]


def given_stds(physics: Physics, y: Measurements, noise_level: float | None) -> Stds | None:
    """Those of Gaussian noise with given parameters; None for other noise, noise of 0, and homoscedastic noise."""
    if noise_level is not None:
        return _unless_equal([_of_real(torch.tensor(noise_level), t) for t in parts(y)])
    noises = [getattr(member, "noise_model", None) for member in operators_of_parts(physics, y)]
    sigmas = [noise.sigma.detach() for noise in noises if noise is not None and type(noise) is GaussianNoise]
    if not len(sigmas) == len(noises) == len(parts(y)) or not all((sigma > 0).any() for sigma in sigmas):
        return None
    pairs = list(zip(sigmas, parts(y), strict=True))
    stds = [_of_real(sigma, t) for sigma, t in pairs]
    return tuple(stds) if any(is_elementwise(sigma, t) for sigma, t in pairs) else _unless_equal(stds)


def simulated_stds(forward: ForwardModel) -> Stds | None:
    r"""
    Those of noise of any kind, from draws at a mid-grey image; None where the draws show no significant difference.

    The draws are split into halves, whose sampling errors are independent: the covariance of the log variances of the
    halves estimates the variance of the true log variances, whatever the distribution of the noise. Its ratio to the
    variance over all draws is the factor by which log variances are shrunk towards their mean.
    """
    members = operators_of_parts(forward.physics, forward.probe.measured[0])
    kinds = [type(getattr(member, "noise_model", None)) for member in members]
    is_single = all(member is members[0] for member in members)
    if set(kinds) == {GaussianNoise} or ZeroNoise in kinds or (is_single and kinds[0] in HOMOSCEDASTIC):
        return None
    masks = forward.observed_parts
    mask = _flat(masks)
    try:
        one, two = (_log(v, forward) for v in _variances(forward, DRAWS))
        error = (_covariance(one, one, mask) * _covariance(two, two, mask) / mask.sum(1).clamp(min=1)).sqrt()
        differ = _covariance(one, two, mask) > CERTAIN * error
        if not differ.any():
            return None
        variances = _variances(forward, DRAWS_OF_EACH)
    except SHAPE_ERRORS as error:  # simulated_variance warns of it
        raise_out_of_memory(error)
        return None
    one, two, both = (_log(v, forward) for v in (*variances, (variances[0] + variances[1]) / 2))
    shrinkage = (_covariance(one, two, mask) / _covariance(both, both, mask).clamp(min=1e-12)).clamp(0, 1) * differ
    mean = _mean(both, mask)[:, None]
    return tuple(_split(torch.exp((mean + shrinkage[:, None] * (both - mean)) / 2), masks))


def relative(stds: Stds, forward: ForwardModel) -> Stds:
    """Standard deviations over their root mean square among the observed measurements, floored, (B, ...) each."""
    masks = forward.observed_parts
    rms = mean_square(stds, forward).sqrt()[:, None]
    ratios = torch.where(_flat(masks) & (rms > 0), _flat(_expanded(stds, masks)) / rms, 1)
    squares = _split(ratios.square(), masks)
    pairs = zip(squares, least_variances(squares, forward, forward.images), strict=True)
    return tuple(torch.maximum(t, least).sqrt() for t, least in pairs)


def least_variances(variances: Sequence[Tensor], forward: ForwardModel, rows: Tensor) -> list[Tensor]:
    """
    The floors of the variances of some rows, (n, ...) for each part.

    They are relative to the mean of the part, since parts may have different units; for a part without noise, to the
    mean of all.
    """
    rows = rows % forward.batch
    masks = [mask[rows].flatten(1) for mask in forward.observed_parts]
    tiny = torch.finfo(forward.like.dtype).tiny
    overall = _mean(_flat(variances), torch.cat(masks, 1)).clamp(min=tiny)
    floors = []
    for t, mask, of_part in zip(variances, masks, forward.squared_changes, strict=True):
        change, mean = of_part[rows].flatten(1), _mean(t.flatten(1), mask)
        mean = torch.where(mean > 0, mean, overall)
        share = change / _mean(change, mask).clamp(min=tiny)[:, None]
        share = torch.where((share > 0) & (share < 1 / SMALL_CHANGE**2), share, 1)
        floors.append((LEAST_OF_MEAN**2 * mean[:, None] * share).view(t.shape))
    return floors


def mean_square(stds: Stds, forward: ForwardModel) -> Tensor:
    """The mean variance of the observed measurements of an image, (B,)."""
    masks = forward.observed_parts
    return _mean(_flat(_expanded(stds, masks)).square(), _flat(masks))


def is_elementwise(sigma: Tensor, y: Tensor) -> bool:
    """Whether a standard deviation is that of each measurement: as many dimensions as y, (1, ...) or (B, ...)."""
    fits = all(a in (1, b) for a, b in zip(sigma.shape, y.shape, strict=False))
    return 1 < sigma.ndim == y.ndim and fits


def _of_real(sigma: Tensor, y: Tensor) -> Tensor:
    """The standard deviation of the real numbers of y; deepinv's is that of complex ones."""
    stds = sigma if is_elementwise(sigma, y) else column(sigma, y)
    return stds.to(y.device, working_dtype(y)) / (2**0.5 if y.is_complex() else 1)


def _unless_equal(stds: list[Tensor]) -> Stds | None:
    least = torch.stack(torch.broadcast_tensors(*(t.flatten(1).amin(1) for t in stds))).amin(0)
    most = torch.stack(torch.broadcast_tensors(*(t.flatten(1).amax(1) for t in stds))).amax(0)
    return tuple(stds) if (least < most).any() else None


def _variances(forward: ForwardModel, number: int) -> list[Tensor]:
    """The variances of all measurements at a mid-grey image, (B, M), from each half of the draws."""
    find_noise_tensors(forward)
    rows, grey = forward.images, torch.full_like(forward.like, 0.5)
    clean = forward.units.physical(forward(grey, rows), rows)
    groups = []
    for some in rows.split(1 if forward.noise_is_split else len(rows)):  # an image has the draws it has alone
        here, halves = take(clean, some), [torch.zeros(()), torch.zeros(())]
        for k, (noisy, noiseless) in enumerate(draws(grey[some], here, some, forward, number, SEED + 1)):
            noise = forward.units.normalized(noisy - noiseless, some)
            halves[k % 2] = halves[k % 2] + _flat([t.abs().square() for t in parts(noise)]) / (number // 2)
        groups.append(halves)
    return [torch.cat(half) for half in zip(*groups, strict=True)]


def _expanded(stds: Stds, masks: Sequence[Tensor]) -> list[Tensor]:
    return [t.expand(m.shape) for t, m in zip(stds, masks, strict=True)]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """The parts as one matrix of M measurements for each image, (B, M)."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def _split(flat: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """The inverse, (B, ...) for each part."""
    pieces = flat.split([m[0].numel() for m in masks], 1)
    return [t.view(m.shape) for t, m in zip(pieces, masks, strict=True)]


def _mean(t: Tensor, mask: Tensor) -> Tensor:
    """The mean over the observed measurements, (B,)."""
    return (t * mask).sum(1) / mask.sum(1).clamp(min=1)


def _covariance(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    return _mean((a - _mean(a, mask)[:, None]) * (b - _mean(b, mask)[:, None]), mask)


def _log(variances: Tensor, forward: ForwardModel) -> Tensor:
    """The logarithms of variances, (B, M), with the floors."""
    floors = least_variances(_split(variances, forward.observed_parts), forward, forward.images)
    return torch.maximum(variances, _flat(floors)).log()
