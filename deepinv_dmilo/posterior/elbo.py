"""How improbable the network thinks images are, to choose among several explanations of the same measurements."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from deepinv_dmilo.methods.run import Run
from deepinv_dmilo.priors.prior import Level, Prior

# Noise that images are denoised of, in [0, 1], each twice the one before: ours.
SIGMAS = (0.05, 0.1, 0.2, 0.4)


def improbability(run: Run, x: Tensor) -> Tensor:
    r"""
    About the negative logarithm of the density of images, in nats and up to a constant, (S * B,).

    A denoiser D errs less on images that are more probable: :math:`-\log p(u)` is a constant and
    :math:`\int \mathbb{E} \|D(u + \sigma \epsilon) - u\|^2 / \sigma^2 \, d\log\sigma` at most, the bound that
    diffusion models are trained by (:footcite:t:`kingma2021variational`). All samples of an image get the same noise,
    so that one call of the network for each noise level tells them apart.

    :param torch.Tensor x: images, (S * B, C, H, W).
    """
    u, rows, total = run.prior.encode(x), torch.arange(len(x), device=x.device), torch.zeros_like(x[:, 0, 0, 0])
    for level in dict.fromkeys(run.prior.level(2 * sigma) for sigma in SIGMAS):  # those that the prior tells apart
        noise = run.noise()[: len(x) // run.num_samples].repeat(run.num_samples, 1, 1, 1)
        clean = run.in_parts(partial(_denoised, level=level), level.signal * u + level.noise * noise, rows)
        total += math.log(2) * (clean - u).square().flatten(1).sum(1) / level.ratio**2
    return total


def _denoised(prior: Prior, z: Tensor, level: Level) -> Tensor:
    return prior.denoise(z, level)
