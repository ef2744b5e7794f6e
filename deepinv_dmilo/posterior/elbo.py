"""How improbable the network finds images: the bound that diffusion models are trained by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepinv_dmilo.posterior.posterior import Posterior

# Noise that images are denoised of, in [0, 1], each twice the one before: ours.
EVIDENCE_SIGMAS = (0.05, 0.1, 0.2, 0.4)


def negative_elbo(posterior: Posterior, x: Tensor) -> Tensor:
    r"""
    About the negative logarithm of p(x), in nats and up to a constant, (n,).

    A denoiser D errs less on images that are more probable: :math:`-\log p(u)` is a constant and
    :math:`\int \mathbb{E} \|D(u + \sigma \epsilon) - u\|^2 / \sigma^2 \, d\log\sigma` at most, the bound that
    diffusion models are trained by (:footcite:t:`kingma2021variational`). All samples of an image get the same noise,
    so that one call of the network for each noise level tells them apart.

    :param torch.Tensor x: images, (n, C, H, W).
    """
    prior, u, total = posterior.prior, posterior.prior.encode(x), torch.zeros_like(x[:, 0, 0, 0])
    levels = dict.fromkeys(prior.level(2 * sigma) for sigma in EVIDENCE_SIGMAS)  # those that the prior tells apart
    for k, level in enumerate(levels):
        z = level.signal * u + level.noise * posterior.noise("evidence", k, alike=True)
        clean = posterior.in_parts(lambda prior, part, at=level: prior.denoise(part, at), z)  # type: ignore[misc]
        total += math.log(2) * (clean - u).square().flatten(1).sum(1) / level.ratio**2
    return total
