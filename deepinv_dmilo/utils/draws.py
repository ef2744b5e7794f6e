"""Where the methods' noise comes from: a seed, or a generator."""

from __future__ import annotations

import sys
from numbers import Integral

import numpy as np
import torch
from deepinv.sampling import DiffusionIterator
from torch import Tensor

#: what noise is drawn for; the number, and the index of the draw, are part of its seed
PURPOSES = {"start": 1, "level": 2, "noise level": 10_000, "evidence": 20_000}


class Draws:
    """
    Standard normal noise by its purpose; the global random state is never touched.

    From a seed, every purpose, index and sample have noise of their own, whatever was drawn before, and all images of
    a batch share it, so that an image does not depend on the batch it came in. From a generator come its next numbers,
    others for every image.

    :param torch.Generator, int rng: a generator on any device, or a seed of at least 0.
    :raises TypeError, ValueError: neither of them.
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
        :param int index: the how manieth draw of its purpose.
        :param tuple shape: (C, H, W).
        :param torch.Tensor samples: which sample each row is, (n,).
        :param torch.Tensor rows: of a generator's numbers, those with the same row are the same; None: none are.
        """
        if isinstance(self.rng, torch.Generator):
            places = torch.arange(len(samples)) if rows is None else rows.unique(return_inverse=True)[1].cpu()
            size = (int(places.max()) + 1, *shape)
            drawn = torch.randn(size, generator=self.rng, device=self.rng.device, dtype=torch.float32)
            return drawn[places.to(drawn.device)]
        each, places = samples.cpu().unique(return_inverse=True)
        return torch.stack([self._seeded(PURPOSES[purpose] + index, shape, s) for s in each.tolist()])[places]

    def _seeded(self, number: int, shape: tuple[int, ...], sample: int) -> Tensor:
        """Noise of a sample, the same at every call with the seed."""
        seed = np.random.SeedSequence([int(self.rng), number, sample]).generate_state(1, np.uint64)  # type: ignore
        generator = torch.Generator("cpu").manual_seed(int(seed[0] >> np.uint64(1)))
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


def check_rng(rng: torch.Generator | int) -> None:
    """Refuse what is neither a generator nor a seed."""
    if isinstance(rng, bool) or not isinstance(rng, torch.Generator | Integral):
        raise TypeError(f"rng is a {type(rng).__name__}; pass a seed, e.g. 0, or torch.Generator().manual_seed(0)")
    if isinstance(rng, Integral) and rng < 0:
        raise ValueError(f"rng={rng}: type a seed of at least 0, or pass torch.Generator().manual_seed({rng})")


def check_new_draws(rng: torch.Generator | int) -> None:
    """Refuse a seed where deepinv's ``DiffusionSampler`` calls, which takes calls for draws: all would be the same."""
    if not isinstance(rng, torch.Generator) and _is_sampled():
        raise ValueError(
            f"rng={rng} is a seed, the same image at every call, and deepinv's DiffusionSampler takes calls for "
            f"samples; pass rng=torch.Generator().manual_seed({rng}), also where a module sets another seed before "
            "each call, or in place of the sampler type num_samples=8 and model(y, physics, return_std=True)"
        )


def _is_sampled() -> bool:
    """Whether deepinv's ``DiffusionSampler`` calls, however many modules lie between."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code is not DiffusionIterator.forward.__code__:
        frame = frame.f_back
    return frame.f_code is DiffusionIterator.forward.__code__
