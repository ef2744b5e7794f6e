"""p(x | y): prior, likelihood and noise of some reconstructions of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.profile import JointLikelihood, ProfileLikelihood
from deepinv_dmilo.optim.descent import Potential
from deepinv_dmilo.posterior.problem import Target
from deepinv_dmilo.priors.prior import Energy, Level, Prior
from deepinv_dmilo.utils.draws import Draws


@dataclass(frozen=True)
class WithEnergy:
    """The negative log-likelihood of images plus the energy of the prior, what steps without the network descend."""

    likelihood: Likelihood
    term: Energy

    def __call__(self, x: Tensor) -> Tensor:
        return self.likelihood(x) + self.term.energy(x)

    def select(self, rows: Tensor) -> WithEnergy:
        return WithEnergy(self.likelihood.select(rows), self.term.select(rows))


@dataclass(frozen=True)
class Posterior:
    """
    p(x | y) of n reconstructions, one per row: the first samples of all images, then their second samples, and so on.

    :param Prior prior: p(x), for images of this size, with the condition of each row.
    :param Likelihood likelihood: p(y | x); its ``rows`` are the numbers of the rows in the call.
    :param Draws draws: source of the noise.
    :param int num_samples: reconstructions S of each image.
    :param torch.Tensor init: the ``init`` of the call, (n, C, H, W), if any.
    :param int micro_batch: rows per network call; None: all.
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
        """The numbers of the rows among the S * B of the call, (n,)."""
        return self.likelihood.rows

    @property
    def image_numbers(self) -> Tensor:
        """The numbers of the images among the B of the call, (n / S,)."""
        return self.rows[: len(self) // self.num_samples] % self.likelihood.forward.batch

    @property
    def nuisance(self) -> Nuisance | None:
        """The nuisance parameters of the physics, if any."""
        return self.likelihood.forward.nuisance

    def select(self, rows: Tensor) -> Posterior:
        """The posterior of some of the rows."""
        init = None if self.init is None else self.init[rows]
        return replace(self, prior=self.prior.select(rows), likelihood=self.likelihood.select(rows), init=init)

    def rows_of(self, images: Tensor) -> Tensor:
        """The positions of the rows of all samples of some images, given by their own positions, (k,) -> (S * k,)."""
        each = len(self) // self.num_samples
        return torch.cat([images + sample * each for sample in range(self.num_samples)])

    @property
    def first_samples(self) -> Posterior:
        """The posterior of the first sample of each image."""
        return self.select(torch.arange(len(self) // self.num_samples, device=self.rows.device))

    def mean(self, t: Tensor) -> Tensor:
        """The mean over the samples of each image, (n, ...) -> (n / S, ...)."""
        return t.view(self.num_samples, -1, *t.shape[1:]).mean(0)

    def profiled(self, likelihood: Likelihood, *, jointly: bool = False) -> Target:
        """
        The data term of a layer: the likelihood, in blind problems maximised over the nuisance parameters.

        :param bool jointly: it is a function of them instead, for a solver that has them among its variables.
        """
        if self.nuisance is None:
            return likelihood
        return (JointLikelihood if jointly else ProfileLikelihood)(likelihood, self.nuisance)

    def with_energy(self, likelihood: Likelihood) -> Potential:
        """A likelihood of these rows with the energy of the prior."""
        return WithEnergy(likelihood, self.prior)

    def grey(self) -> Tensor:
        """Mid-grey images, (n, C, H, W)."""
        like = self.likelihood.forward.like
        return like.new_full((len(self), *like.shape[1:]), sum(self.prior.limits) / 2)

    def noise(self, purpose: str, index: int = 0, *, alike: bool = False) -> Tensor:
        """
        Standard normal noise like latents, (n, C, H, W).

        :param str purpose: one of ``PURPOSES``.
        :param int index: number of the draw for this purpose.
        :param bool alike: the same noise for all samples of an image.
        """
        grey, batch = self.grey(), self.likelihood.forward.batch
        rows = self.rows % batch if alike else self.rows
        shape = tuple(self.prior.select(rows[:1] * 0).encode(grey[:1]).shape[1:])
        return self.draws(purpose, index, shape, rows // batch, rows).to(grey)

    def in_parts(self, function: Callable[[Prior, Tensor], Tensor], z: Tensor) -> Tensor:
        """Apply a function of the prior and the latents, ``micro_batch`` rows at a time."""
        rows = torch.arange(len(z), device=z.device).split(self.micro_batch or len(z))
        return torch.cat([function(self.prior.select(some), z[some]) for some in rows])

    def images(self, u: Tensor) -> Tensor:
        """The images of clean latents, clamped to the limits of the prior."""
        return self.in_parts(lambda prior, part: prior.decode(part).clamp(*prior.limits), u)

    def denoised(self, z: Tensor, level: Level) -> Tensor:
        """The denoised images of latents at a noise level, clamped to the limits of the prior."""
        return self.in_parts(lambda prior, part: prior.decode(prior.denoise(part, level)).clamp(*prior.limits), z)
