"""Noise of unlike size in the measurements of an image: told by its noise model, or seen in its draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import GaussianNoise, Physics, UniformGaussianNoise, UniformNoise, ZeroNoise
from torch import Tensor

from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.measurements import Measurements, operators, parts, take, working_dtype
from deepinv_dmilo.likelihood.noise import DRAWS, SEED, draws, settle
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory

# All ours. Draws that show how noisy each measurement is; in standard errors, what shows that they differ at all.
DRAWS_OF_EACH, CERTAIN = 64, 5.0
# That the noise of a measurement is taken to be of the mean one of its part, at least, where they are weighed; in
# proportion less where the measurement changes with the image so many times less than the others do. Without it, noise
# that differs 150 times within an operator costs up to 1.6 dB at 15 passes (Gaussian images of a 1/f spectrum; trials).
LEAST_OF_MEAN, SMALL_CHANGE = 0.1, 4.0
OF_ONE_SIZE = (UniformGaussianNoise, UniformNoise)

#: the standard deviation of the noise in each (real) measurement, (1, ...) or (B, ...) for each part of y
Sizes = tuple[Tensor, ...]


def told_sizes(physics: Physics, y: Measurements) -> Sizes | None:
    """Those of Gaussian noise; None where it is of another kind, is 0, or told to be of one size in an image."""
    members = noisy_members(physics)
    members = members * len(parts(y)) if len(members) == 1 else members
    if len(members) != len(parts(y)):
        return None
    noises = [getattr(member, "noise_model", None) for member in members]
    sigmas = [noise.sigma.detach() for noise in noises if noise is not None and type(noise) is GaussianNoise]
    if len(sigmas) < len(members) or not all((sigma > 0).any() for sigma in sigmas):
        return None
    pairs = list(zip(sigmas, parts(y), strict=True))
    sizes = [_of_real(sigma, t) for sigma, t in pairs]
    return tuple(sizes) if any(is_one_of_each(sigma, t) for sigma, t in pairs) else _unlike(sizes)


def sizes_of_level(noise_level: float, y: Measurements) -> Sizes | None:
    """Those of noise of one level, of which each of the two numbers of a complex measurement has half the variance."""
    return _unlike([_of_real(torch.tensor(noise_level), t) for t in parts(y)])


def drawn_sizes(forward: ForwardModel) -> Sizes | None:
    r"""
    Those of noise of any kind, by drawing it at mid-grey; None where draws do not show that it is of unlike size.

    Two halves of the draws have only the sizes in common: the covariance of their logarithms is the variance of these,
    whatever the distribution is, and its part of the variance of all draws' is how far a logarithm is kept from the
    mean of all.
    """
    kinds = [type(getattr(member, "noise_model", None)) for member in noisy_members(forward.physics)]
    told = all(kind is GaussianNoise for kind in kinds) or ZeroNoise in kinds  # noise of 0 is noise that nobody told
    if told or (len(kinds) == 1 and kinds[0] in OF_ONE_SIZE):
        return None
    masks = forward.observed_parts
    mask = _numbers(masks)
    try:
        one, two = (_logarithms(v, forward) for v in _variances(forward, DRAWS))
        error = (_covariance(one, one, mask) * _covariance(two, two, mask) / mask.sum(1).clamp(min=1)).sqrt()
        differ = _covariance(one, two, mask) > CERTAIN * error
        if not differ.any():
            return None
        variances = _variances(forward, DRAWS_OF_EACH)
    except SHAPE_ERRORS as error:  # told where the noise is asked for
        raise_out_of_memory(error)
        return None
    one, two = (_logarithms(v, forward) for v in variances)
    both = _logarithms((variances[0] + variances[1]) / 2, forward)
    kept = (_covariance(one, two, mask) / _covariance(both, both, mask).clamp(min=1e-12)).clamp(0, 1) * differ
    middle = _mean(both, mask)[:, None]
    return tuple(_parts(torch.exp((middle + kept[:, None] * (both - middle)) / 2), masks))


def relative(sizes: Sizes, forward: ForwardModel) -> Sizes:
    """Sizes of noise over their root mean square among the measurements that an image reaches, (B, ...) each."""
    masks, rows = forward.observed_parts, torch.arange(forward.batch, device=forward.like.device)
    mean = mean_square(sizes, forward).sqrt()[:, None]
    numbers = _numbers([t.expand(m.shape) for t, m in zip(sizes, masks, strict=True)])
    ratios = torch.where(_numbers(masks) & (mean > 0), numbers / mean, 1)
    squares = _parts(ratios.square(), masks)
    pairs = zip(squares, least_variances(squares, forward, rows), strict=True)
    return tuple(torch.maximum(t, least).sqrt() for t, least in pairs)


def least_variances(squares: Sequence[Tensor], forward: ForwardModel, rows: Tensor) -> list[Tensor]:
    """
    The least variance that a measurement is taken to have, of the variances of some rows, (n, ...) for each part.

    Of the mean in its part, so that parts may have units of their own; of a part without noise, of the mean of all.
    """
    rows = rows % forward.batch
    masks = [mask[rows].flatten(1) for mask in forward.observed_parts]
    tiny = torch.finfo(forward.like.dtype).tiny
    overall = _mean(_numbers(squares), torch.cat(masks, 1)).clamp(min=tiny)
    found = []
    for t, mask, of_part in zip(squares, masks, forward.squared_changes, strict=True):
        change, mean = of_part[rows].flatten(1), _mean(t.flatten(1), mask)
        mean = torch.where(mean > 0, mean, overall)
        share = change / _mean(change, mask).clamp(min=tiny)[:, None]
        share = torch.where((share > 0) & (share < 1 / SMALL_CHANGE**2), share, 1)
        found.append((LEAST_OF_MEAN**2 * mean[:, None] * share).view(t.shape))
    return found


def mean_square(sizes: Sizes, forward: ForwardModel) -> Tensor:
    """The mean square of sizes of noise among the measurements that an image reaches, (B,)."""
    masks = forward.observed_parts
    expanded = [t.expand(m.shape) for t, m in zip(sizes, masks, strict=True)]
    return _mean(_numbers(expanded).square(), _numbers(masks))


def noisy_members(physics: Physics) -> list[Physics]:
    """The physics, or those that it stacks."""
    return [member for member in operators(physics) if not hasattr(member, "physics_list")]


def is_one_of_each(sigma: Tensor, y: Tensor) -> bool:
    """Whether a standard deviation is that of each measurement: of as many dimensions as y, (1, ...) or (B, ...)."""
    fits = all(a in (1, b) for a, b in zip(sigma.shape, y.shape, strict=False))
    return 1 < sigma.ndim == y.ndim and fits


def _of_real(sigma: Tensor, y: Tensor) -> Tensor:
    """A standard deviation as deepinv has it, as that of the real numbers of y."""
    sizes = sigma if is_one_of_each(sigma, y) else sigma.view(-1, *[1] * (y.ndim - 1))
    return sizes.to(y.device, working_dtype(y)) / (2**0.5 if y.is_complex() else 1)


def _unlike(sizes: list[Tensor]) -> Sizes | None:
    """The sizes, if those of an image are not all the same."""
    least = torch.stack(torch.broadcast_tensors(*(t.flatten(1).amin(1) for t in sizes))).amin(0)
    most = torch.stack(torch.broadcast_tensors(*(t.flatten(1).amax(1) for t in sizes))).amax(0)
    return tuple(sizes) if (least < most).any() else None


def _variances(forward: ForwardModel, number: int) -> list[Tensor]:
    """The mean square of the noise of each measurement at mid-grey, (B, M), over each of two halves of the draws."""
    settle(forward)
    rows = torch.arange(forward.batch, device=forward.like.device)
    grey, counted = torch.full_like(forward.like, 0.5), forward.units.counted
    clean = forward.units.as_made(forward(grey, rows), rows)
    groups = []
    for some in rows.split(1 if forward.noise_is_split else len(rows)):  # an image has the draws that it has alone
        here, halves = take(clean, some), [torch.zeros(()), torch.zeros(())]
        for k, (noisy, of_noisy) in enumerate(draws(grey[some], here, some, forward, number, SEED + 1)):
            squares = [t.abs().square() for t in parts(counted(noisy - of_noisy, some))]
            halves[k % 2] = halves[k % 2] + _numbers(squares) / (number // 2)
        groups.append(halves)
    return [torch.cat(half) for half in zip(*groups, strict=True)]


def _numbers(tensors: Sequence[Tensor]) -> Tensor:
    """The measurements of each image, (B, M)."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def _parts(numbers: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """Of the measurements of each image, (B, M), those of each part, (B, ...)."""
    pieces = numbers.split([m[0].numel() for m in masks], 1)
    return [t.view(m.shape) for t, m in zip(pieces, masks, strict=True)]


def _mean(t: Tensor, mask: Tensor) -> Tensor:
    """The mean of what is reached, (B,)."""
    return (t * mask).sum(1) / mask.sum(1).clamp(min=1)


def _covariance(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    return _mean((a - _mean(a, mask)[:, None]) * (b - _mean(b, mask)[:, None]), mask)


def _logarithms(variances: Tensor, forward: ForwardModel) -> Tensor:
    """Of variances, (B, M), that are no less than those that ``relative`` takes."""
    rows = torch.arange(forward.batch, device=variances.device)
    least = least_variances(_parts(variances, forward.observed_parts), forward, rows)
    return torch.maximum(variances, _numbers(least)).log()
