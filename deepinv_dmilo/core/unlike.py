"""Noise of unlike size in the measurements of an image: told by its noise model, or seen in its draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepinv.physics import GaussianNoise, Physics, UniformGaussianNoise, UniformNoise, ZeroNoise
from torch import Tensor

from deepinv_dmilo.core.measurements import (
    SHAPE_ERRORS,
    Measurements,
    operators,
    parts,
    raise_out_of_memory,
    take,
    working_dtype,
)
from deepinv_dmilo.core.noise import DRAWS, SEED, draws
from deepinv_dmilo.core.operator import Operator

# All ours. Draws that show how noisy each measurement is; in standard errors, what shows that they differ at all.
DRAWS_OF_EACH, CERTAIN = 64, 5.0
LEAST_OF_MEAN = 0.1  # that the noise of a measurement is taken to be of the mean one, where they are weighed
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


def drawn_sizes(operator: Operator) -> Sizes | None:
    r"""
    Those of noise of any kind, by drawing it at mid-grey; None where draws do not show that it is of unlike size.

    Two halves of the draws have only the sizes in common: the covariance of their logarithms is the variance of these,
    whatever the distribution is, and its part of the variance of all draws' is how far a logarithm is kept from the
    mean of all.
    """
    kinds = [type(getattr(member, "noise_model", None)) for member in noisy_members(operator.physics)]
    told = all(kind is GaussianNoise for kind in kinds) or ZeroNoise in kinds  # noise of 0 is noise that nobody told
    if told or (len(kinds) == 1 and kinds[0] in OF_ONE_SIZE):
        return None
    masks = operator.reached_parts
    mask = _numbers(masks)
    try:
        one, two = (_logarithms(v, mask) for v in _variances(operator, DRAWS))
        error = (_covariance(one, one, mask) * _covariance(two, two, mask) / mask.sum(1).clamp(min=1)).sqrt()
        differ = _covariance(one, two, mask) > CERTAIN * error
        if not differ.any():
            return None
        variances = _variances(operator, DRAWS_OF_EACH)
    except SHAPE_ERRORS as error:  # told where the noise is asked for
        raise_out_of_memory(error)
        return None
    one, two = (_logarithms(v, mask) for v in variances)
    both = _logarithms((variances[0] + variances[1]) / 2, mask)
    kept = (_covariance(one, two, mask) / _covariance(both, both, mask).clamp(min=1e-12)).clamp(0, 1) * differ
    middle = _mean(both, mask)[:, None]
    sizes = torch.exp((middle + kept[:, None] * (both - middle)) / 2)
    return tuple(t.view(m.shape) for t, m in zip(sizes.split([m[0].numel() for m in masks], 1), masks, strict=True))


def relative(sizes: Sizes, operator: Operator) -> Sizes:
    """Sizes of noise over their root mean square among the measurements that an image reaches, (B, ...) each."""
    masks = operator.reached_parts
    mean = mean_square(sizes, operator).sqrt().clamp(min=torch.finfo(operator.like.dtype).tiny)
    ratios = [t.expand(m.shape) / mean.view(-1, *[1] * (t.ndim - 1)) for t, m in zip(sizes, masks, strict=True)]
    return tuple(torch.where(m, t, 1).clamp(min=LEAST_OF_MEAN) for t, m in zip(ratios, masks, strict=True))


def mean_square(sizes: Sizes, operator: Operator) -> Tensor:
    """The mean square of sizes of noise among the measurements that an image reaches, (B,)."""
    masks = operator.reached_parts
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


def _variances(operator: Operator, number: int) -> list[Tensor]:
    """The mean square of the noise of each measurement at mid-grey, (B, M), over each of two halves of the draws."""
    rows = torch.arange(operator.batch, device=operator.like.device)
    grey, counted = torch.full_like(operator.like, 0.5), operator.units.counted
    clean = operator.units.as_made(operator(grey, rows), rows)
    groups = []
    for some in rows.split(1 if operator.is_split else len(rows)):  # an image has the draws that it has alone
        here, halves = take(clean, some), [torch.zeros(()), torch.zeros(())]
        for k, (noisy, of_noisy) in enumerate(draws(grey[some], here, some, operator, number, SEED + 1)):
            squares = [t.abs().square() for t in parts(counted(noisy - of_noisy, some))]
            halves[k % 2] = halves[k % 2] + _numbers(squares) / (number // 2)
        groups.append(halves)
    return [torch.cat(half) for half in zip(*groups, strict=True)]


def _numbers(tensors: Sequence[Tensor]) -> Tensor:
    """The measurements of each image, (B, M)."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def _mean(t: Tensor, mask: Tensor) -> Tensor:
    """The mean of what is reached, (B,)."""
    return (t * mask).sum(1) / mask.sum(1).clamp(min=1)


def _covariance(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    return _mean((a - _mean(a, mask)[:, None]) * (b - _mean(b, mask)[:, None]), mask)


def _logarithms(variances: Tensor, mask: Tensor) -> Tensor:
    """Of variances that are no less than those that ``relative`` takes."""
    least = LEAST_OF_MEAN**2 * _mean(variances, mask).clamp(min=torch.finfo(variances.dtype).tiny)
    return torch.maximum(variances, least[:, None]).log()
