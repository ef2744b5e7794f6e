"""The first image of a schedule of levels: the prior mean, fitted to the measurements without the network."""

from __future__ import annotations

from math import inf

from torch import Tensor

from deepinv_dmilo.likelihood.wiener import conditional_spectrum
from deepinv_dmilo.optim.descent import proximal_point
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.utils.warning import warn

# Noise level at which the denoised pure noise is about the prior mean; evaluations of the likelihood: ours.
START_NOISE, START_STEPS = 10.0, 30
MARGIN = 0.5  # by which an init may exceed [0, 1] without a warning


def first_image(posterior: Posterior) -> tuple[Tensor, tuple[str, ...]]:
    """The first image of every row, (n, C, H, W), and how it was made: ``init``, or the MAP under a 1/f spectrum."""
    if posterior.init is not None:
        _check_range(posterior.init)
        return posterior.init, ("init",)
    x, how = _prior_mean(posterior)
    likelihood = posterior.likelihood.simulated_at(x)
    if posterior.nuisance is not None:  # the residual of a first guess of A counts as noise
        likelihood = likelihood.gaussian(likelihood.residual_variance(x))
    limits = posterior.prior.limits
    x = proximal_point(x, likelihood, spectrum=conditional_spectrum(x, inf), steps=START_STEPS, limits=limits)
    return x, (how, "proximal step")


def _check_range(init: Tensor) -> None:
    low, high = init.min().item(), init.max().item()
    if low < -MARGIN or high > 1 + MARGIN:
        warn(
            f"init has values from {low:.3g} to {high:.3g}, and is an image in [0, 1]; pass init / 255, (init + 1) / 2 "
            "or init.clamp(0, 1)"
        )


def _prior_mean(posterior: Posterior) -> tuple[Tensor, str]:
    """The prior mean, and how it was made."""
    a, b = posterior.prior.level(2 * START_NOISE), posterior.prior.levels(1)[-1]
    if a.sigma < START_NOISE / 4:  # the noise levels of the network end below pure noise
        return posterior.grey(), "mid-grey"
    z = a.spread * posterior.noise("start")
    return posterior.images(posterior.in_parts(lambda prior, part: prior.step(part, a, b), z)), "prior mean"
