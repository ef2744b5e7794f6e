"""The negative ELBO of images under the prior."""

from __future__ import annotations

import math

from torch import Tensor

from deepinv_dmilo.posterior.posterior import Posterior

# Noise levels of the integral, in [0, 1], one per octave: ours.
ELBO_SIGMAS = (0.05, 0.1, 0.2, 0.4)


def negative_elbo(posterior: Posterior, x: Tensor) -> Tensor:
    r"""
    An estimate of the negative ELBO, an upper bound of :math:`-\log p(x)` in nats up to a constant, (n,).

    With a denoiser D and :math:`z = u + \sigma \epsilon`, :math:`-\log p(u)` is at most a constant plus
    :math:`\int \mathbb{E} \|D(z) - u\|^2 / \sigma^2 \, d\log\sigma`, the bound that diffusion models are trained on
    (:footcite:t:`kingma2021variational`). All samples of an image get the same noise, so that one network call per
    noise level is enough to rank them.

    :param torch.Tensor x: images in [0, 1], (n, C, H, W).
    """
    prior, u, total = posterior.prior, posterior.prior.encode(x), posterior.prior.energy(x)
    levels = dict.fromkeys(prior.level(2 * sigma) for sigma in ELBO_SIGMAS)  # without duplicates
    for k, level in enumerate(levels):
        z = level.signal * u + level.noise * posterior.noise("evidence", k, alike=True)
        clean = posterior.in_parts(lambda prior, part, at=level: prior.denoise(part, at), z)  # type: ignore[misc]
        total = total + math.log(2) * (clean - u).square().flatten(1).sum(1) / level.ratio**2
    return total
