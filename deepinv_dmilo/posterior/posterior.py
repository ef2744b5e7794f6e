"""p(x | y) of some rows of a call: prior, likelihood and noise together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.profile import ProfileLikelihood
from deepinv_dmilo.posterior.problem import Target
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.utils.draws import Draws


@dataclass(frozen=True)
class Posterior:
    """
    What is known of n reconstructions: those of the first sample of all images, then those of the second, and so on.

    :param Prior prior: p(x), for images of their size, with the conditions of each row.
    :param Likelihood likelihood: p(y | x); its ``rows`` are those of the call.
    :param Draws draws: where noise comes from.
    :param int num_samples: reconstructions S of each image.
    :param torch.Tensor init: the start that the caller gave, (n, C, H, W); None: none.
    :param int micro_batch: how many rows go through the network at once; None: all.
    """

    prior: Prior
    likelihood: Likelihood
    draws: Draws
    num_samples: int = 1
    init: Tensor | None = None
    micro_batch: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> Tensor:
        """Which of the S * B rows of the call these are, (n,)."""
        return self.likelihood.rows

    @property
    def image_numbers(self) -> Tensor:
        """Which of the B images of the call these are, (n / S,)."""
        return self.rows[: len(self) // self.num_samples] % self.likelihood.forward.batch

    @property
    def nuisance(self) -> Nuisance | None:
        """The unknown parameters of the physics, if any."""
        return self.likelihood.forward.nuisance

    def select(self, rows: Tensor) -> Posterior:
        """That of some of the rows."""
        init = None if self.init is None else self.init[rows]
        return replace(self, prior=self.prior.select(rows), likelihood=self.likelihood.select(rows), init=init)

    def of_images(self, images: Tensor) -> Posterior:
        """That of all samples of some of the images, by their places, (k,)."""
        each = len(self) // self.num_samples
        return self.select(torch.cat([images + sample * each for sample in range(self.num_samples)]))

    @property
    def first_samples(self) -> Posterior:
        """That of the first sample of each image."""
        return self.select(torch.arange(len(self) // self.num_samples, device=self.rows.device))

    def mean(self, t: Tensor) -> Tensor:
        """The mean of n rows over the samples of each image."""
        return t.view(self.num_samples, -1, *t.shape[1:]).mean(0)

    def profiled(self, likelihood: Likelihood) -> Target:
        """A likelihood as a layer fits it: at the best parameters for every image, where some are unknown."""
        return likelihood if self.nuisance is None else ProfileLikelihood(likelihood, self.nuisance)

    def grey(self) -> Tensor:
        """Mid-grey images, (n, C, H, W)."""
        like = self.likelihood.forward.like
        return like.new_full((len(self), *like.shape[1:]), sum(self.prior.limits) / 2)

    def noise(self, purpose: str, index: int = 0, *, alike: bool = False) -> Tensor:
        """
        Standard normal noise like latents, (n, C, H, W).

        :param str purpose: what it is for, one of ``PURPOSES``.
        :param int index: the how manieth of its purpose.
        :param bool alike: the same for all samples of an image.
        """
        grey, batch = self.grey(), self.likelihood.forward.batch
        rows = self.rows % batch if alike else self.rows
        shape = tuple(self.prior.select(rows[:1] * 0).encode(grey[:1]).shape[1:])
        return self.draws(purpose, index, shape, rows // batch, rows).to(grey)

    def in_parts(self, function: Callable[[Prior, Tensor], Tensor], z: Tensor) -> Tensor:
        """A function of the prior and latents of all rows, of as many at a time as may go through the network."""
        rows = torch.arange(len(z), device=z.device).split(self.micro_batch or len(z))
        return torch.cat([function(self.prior.select(some), z[some]) for some in rows])

    def images(self, u: Tensor) -> Tensor:
        """The images of clean latents, within the limits of the prior."""
        return self.in_parts(lambda prior, part: prior.decode(part).clamp(*prior.limits), u)

    def denoised(self, z: Tensor, level: Level) -> Tensor:
        """What the network as a denoiser makes of latents at a level: images, within the limits."""
        return self.in_parts(lambda prior, part: prior.decode(prior.denoise(part, level)).clamp(*prior.limits), z)
