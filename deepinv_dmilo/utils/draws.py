"""Random draws of the methods, from a seed or a generator."""

from __future__ import annotations

import sys
from numbers import Integral
from traceback import walk_stack

import numpy as np
import torch
from deepinv.sampling import DiffusionIterator
from torch import Tensor

#: purposes of a draw; its number plus the index of the draw enters the seed
PURPOSES = {
    "start": 1,
    "level": 2,
    "noise level": 10_000,
    "evidence": 20_000,
    "sample": 30_000,
    "measurements": 40_000,
    "kernel": 50_000,
    "slice difference": 60_000,
}


class Draws:
    """
    Standard normal noise, keyed by its purpose; the global random state is never touched.

    With a seed, the noise depends on the purpose, index and sample alone, not on earlier draws. All images of a batch
    share it, so that a result does not depend on the rest of the batch. A generator gives its next numbers, different
    ones for each image.

    :param torch.Generator, int rng: a generator on any device, or a seed of at least 0.
    :raises TypeError, ValueError: ``rng`` is neither.
    """

    def __init__(self, rng: torch.Generator | int) -> None:
        check_rng(rng)
        self.rng = rng

    def __call__(
        self, purpose: str, index: int, shape: tuple[int, ...], samples: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """
        Noise for n rows, (n, *shape).

        :param str purpose: one of ``PURPOSES``.
        :param int index: index of the draw among those of its purpose.
        :param tuple shape: (C, H, W).
        :param torch.Tensor samples: sample number of each row, (n,).
        :param torch.Tensor rows: row numbers, (n,): with a generator, equal ones share their noise; None: all differ.
        """
        if isinstance(self.rng, torch.Generator):
            places = torch.arange(len(samples)) if rows is None else rows.unique(return_inverse=True)[1].cpu()
            size = (int(places.max()) + 1, *shape)
            drawn = torch.randn(size, generator=self.rng, device=self.rng.device, dtype=torch.float32)
            return drawn[places.to(drawn.device)]
        each, places = samples.cpu().unique(return_inverse=True)
        return torch.stack([self._seeded(PURPOSES[purpose] + index, shape, s) for s in each.tolist()])[places]

    def _seeded(self, number: int, shape: tuple[int, ...], sample: int) -> Tensor:
        seed = np.random.SeedSequence([int(self.rng), number, sample]).generate_state(1, np.uint64)  # type: ignore
        generator = torch.Generator("cpu").manual_seed(int(seed[0] >> np.uint64(1)))
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


def inverse_gaussian(mean: Tensor, normal: Tensor, other: Tensor) -> Tensor:
    """Draws of the inverse Gaussian distribution of shape 1 from two normal ones (Michael, Schucany and Haas 1976)."""
    half = mean * normal.square() / 2
    small = mean / (1 + half + (2 * half + half.square()).sqrt())
    return torch.where(torch.special.ndtr(other) * (mean + small) <= mean, small, mean.square() / small)


def check_rng(rng: torch.Generator | int) -> None:
    """Check that ``rng`` is a generator or a seed."""
    if isinstance(rng, bool) or not isinstance(rng, torch.Generator | Integral):
        raise TypeError(f"rng is a {type(rng).__name__}; pass a seed, e.g. 0, or torch.Generator().manual_seed(0)")
    if isinstance(rng, Integral) and rng < 0:
        raise ValueError(f"rng={rng}: type a seed of at least 0, or pass torch.Generator().manual_seed({rng})")


def check_not_sampled() -> None:
    """Refuse deepinv's ``DiffusionSampler``, which counts its initial state among the samples."""
    if any(frame.f_code is DiffusionIterator.forward.__code__ for frame, _ in walk_stack(sys._getframe())):
        raise ValueError(
            "deepinv's DiffusionSampler counts its initial state among the samples, which biases mean and variance; "
            "type DMILOSampler(prior, num_samples=8)(y, physics, return_std=True)"
        )
