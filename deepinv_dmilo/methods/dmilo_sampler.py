"""Samples of the posterior as a deepinv reconstructor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements
from deepinv_dmilo.likelihood.observe import observe
from deepinv_dmilo.methods.base import PriorReconstructor
from deepinv_dmilo.methods.dmilo import one_number
from deepinv_dmilo.methods.monitor import Monitor
from deepinv_dmilo.methods.validation import check_misplaced
from deepinv_dmilo.optim.solvers import LBFGS
from deepinv_dmilo.posterior.moments import CALLS_OF_A_LEVEL, EVALUATIONS_OF_A_DRAW, latent_draw
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.priors.slicewise import Slicewise
from deepinv_dmilo.schedules.annealing import FEWEST, Annealing
from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS, Plan, Stage

# Smallest slice_difference at which samples agree with long Gibbs chains; at 0.003 their means are worse than without
# it: measured with the toy of tests/methods/test_sampler.py.
LEAST_DIFFERENCE = 0.01


@dataclass(eq=False, repr=False, kw_only=True)
class DMILOSampler(PriorReconstructor):
    r"""
    Samples of the posterior p(x | y).

    The levels of DMILO, with a sample in place of a mode (ours). At a level of noise :math:`\sigma`, a latent z
    is the current image with noise. Its clean latents given z have the mean D(z) and the covariance
    :math:`\sigma^2 J`, with D the denoiser and J its Jacobian (Tweedie; :footcite:t:`rozet2024moment`). With the
    normal distribution of these moments, p(x | z, y) is sampled by randomise-then-optimise
    :footcite:p:`bardsley2014randomize`, and fresh noise of the next level is added :footcite:p:`zhang2025daps`:
    annealed Gibbs sampling of images and latents :footcite:p:`vono2019split`, and of the weights of differences where
    slices are alike (:class:`deepinv_dmilo.Slicewise`). For a linear A, Gaussian noise and a Gaussian p(x) each step is
    exact but for its iterations and a square root (:doc:`/method`). :doc:`/calibration` has what is measured, also on
    networks.

    A level costs a forward pass and four products with J, of a backward pass each: five calls. The noise of y must be
    known: Gaussian, Poisson, with a variance of each measurement and others with a standard deviation
    (:doc:`/physics`). Where it is estimated, the samples leave the error of the estimate out.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param float noise_level: standard deviation of the noise of y; None: that of the physics' noise model or, without
        one, an estimate (:doc:`/method`), which costs some more forward passes.
    :param tuple[float] sigmas: standard deviations of the levels, decreasing, for images in [0, 1]; None: from 5 to
        0.02, as many as the budget affords, 20 by default. They set the cost: five calls for each level and sample.
    :param int num_samples: samples S of each image.
    :param int max_calls: maximum number of forward passes of the network per image, for all samples; 100 a sample by
        default. A product with J counts as a call.
    :param int max_passes: ``max_passes=n`` is ``max_calls=2 * n``; type one of both.
    :param int micro_batch: samples per pass of the network, of volumes slices; None: all.
    :param bool verbose: show a progress bar.
    :param torch.Generator, int rng: generator of the noise, or a seed, which gives every image the same noise.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMILOSampler, DiffusionPrior
        >>> from deepinv_dmilo.priors.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3, noise_model=dinv.physics.GaussianNoise(0.05))
        >>> y = physics(held_out_images("digits")[:2])
        >>> model = DMILOSampler(DiffusionPrior.from_pretrained("digits"), num_samples=4, max_calls=160)
        >>> mean, std, samples = model(y, physics, return_std=True, return_samples=True)
        >>> samples.shape
        torch.Size([2, 4, 1, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    calls_of_a_sample: ClassVar[int] = 100
    if_not_finite: ClassVar[str] = "use float32 weights, or a larger noise_level"
    moved: ClassVar[dict[str, str]] = {
        "data_fidelity": "a sampler draws the noise of y; type noise_level=..., or give the physics its noise model",
        "unknown": "for blind problems, type DMILO(prior, unknown=...)",
        "schedule": "type sigmas=(...), or num_samples= and max_calls=",
        "solver": "there is nothing to solve; type max_calls=...",
    }

    num_samples: int = 8
    noise_level: float | None = None
    sigmas: tuple[float, ...] | None = None

    def _check(self) -> None:
        if self.noise_level is not None:
            self.noise_level = one_number(self.noise_level)
        difference = self.prior.slice_difference if isinstance(self.prior, Slicewise) else None
        if difference is not None and difference < LEAST_DIFFERENCE:
            raise ValueError(
                f"slice_difference={difference!r}: below {LEAST_DIFFERENCE} the samples are not those of the "
                f"posterior; type {LEAST_DIFFERENCE} at least, or DMILO(prior) for one reconstruction"
            )
        self.sigmas = self.schedule.sigmas
        if self.sigmas is not None and (self.max_calls, self.max_passes) != (None, None):
            raise ValueError(
                f"sigmas sets the cost, {CALLS_OF_A_LEVEL} calls for each level and sample; leave max_calls and "
                "max_passes out"
            )
        super()._check()

    def _check_budget(self, given: str, cost: int) -> None:
        least = FEWEST * CALLS_OF_A_LEVEL
        if (self._budget().calls or 0) < least:
            raise ValueError(
                f"{given} pays for fewer than {FEWEST} levels of {CALLS_OF_A_LEVEL} calls for each of "
                f"{self.num_samples} samples; type at least {-(-least * cost // CALLS_OF_A_PASS)}, or fewer samples"
            )

    @property
    def schedule(self) -> Annealing:
        """The levels."""
        return Annealing(self.sigmas)

    @property
    def solver(self) -> LBFGS:
        """Not used."""
        return LBFGS()

    def _evaluations(self, stage: Stage) -> int:
        return EVALUATIONS_OF_A_DRAW

    def _likelihoods(self, y: Measurements, forward: ForwardModel) -> list[Likelihood]:
        found = observe(y, forward, num_samples=self.num_samples, noise_level=self.noise_level)
        if not all(one.has_noise for one in found):
            raise ValueError(
                "the noise model has outliers, and no standard deviation to draw noise with; type "
                "noise_level=..., for Gaussian noise, or DMILO(prior) for one reconstruction"
            )
        return found

    def reconstruct(self, posterior: Posterior, plan: Plan, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """A sample of p(x | z, y) at each level, with fresh noise for the next."""
        x = plan.first_image
        u = posterior.in_parts(lambda prior, part: prior.encode(part), x)
        for stage in plan.stages:
            likelihood, level = self.schedule.likelihood(posterior, plan, stage, x), stage.levels[0]
            z = level.signal * u + level.noise * posterior.noise("level", stage.index)
            u = latent_draw(posterior, likelihood, x, z, level, stage.index)
            x = posterior.images(u)
            monitor.called(posterior, 1 + stage.products)
            cost = likelihood(x) if monitor.is_watched else torch.zeros_like(x[:, 0, 0, 0])
            monitor.record(posterior, stage, x, cost, likelihood)
        return x, cost

    def forward(  # type: ignore[override]
        self,
        y: Measurements,
        physics: Physics,
        *,
        init: Tensor | None = None,
        x_gt: Tensor | None = None,
        compute_metrics: bool = False,
        return_std: bool = False,
        quantiles: Iterable[float] | None = None,
        return_samples: bool = False,
        **misplaced: object,
    ) -> Any:
        r"""
        Samples of the posterior of images, and their mean.

        The parameters are those of :meth:`DMILO.forward <deepinv_dmilo.DMILO.forward>`, and:

        :param bool return_std: also return the standard deviation over the samples, shape (B, C, H, W).
        :param quantiles: such as ``(0.2, 0.8)``: also return these quantiles of each pixel over the samples, shape
            (B, Q, C, H, W). The truth is between two of them as often as their difference says, if the samples are
            draws of the posterior: S samples give the quantiles from 1 / (S + 1) to S / (S + 1).
        :param bool return_samples: also return the samples, shape (B, S, C, H, W).
        :return: the mean over the samples, in [0, 1], shape (B, C, H, W), detached; or a tuple (mean, standard
            deviation, quantiles, samples, metrics) of those asked for.
        :raises TypeError, ValueError: y, physics, prior and init do not fit; the message says which and what to type.
        """
        check_misplaced(misplaced, type(self).__name__, "compute_metrics, return_std, quantiles, return_samples")
        if return_std and self.num_samples == 1:
            raise ValueError("return_std=True needs several samples; type num_samples=8")
        wanted = None if quantiles is None else check_quantiles(quantiles, self.num_samples)
        solution = self.solve(y, physics, init=init, x_gt=x_gt, compute_metrics=compute_metrics)
        result: list[Any] = [solution.images]
        if return_std:
            result.append(solution.samples.std(1))
        if wanted is not None:
            result.append(quantiles_of(solution.samples, wanted))
        if return_samples:
            result.append(solution.samples)
        if compute_metrics:
            result.append(solution.metrics)
        return result[0] if len(result) == 1 else tuple(result)


def check_quantiles(quantiles: Iterable[float], num_samples: int) -> tuple[float, ...]:
    """Check that quantiles are between 0 and 1, and that so many samples can estimate them."""
    try:
        given = tuple(float(q) for q in ((quantiles,) if isinstance(quantiles, float | int) else quantiles))
    except (TypeError, ValueError) as error:
        raise TypeError(f"quantiles={quantiles!r} are no numbers; type quantiles=(0.2, 0.8)") from error
    if not given or not all(0 < q < 1 for q in given):
        raise ValueError(f"quantiles={given} must be between 0 and 1; type quantiles=(0.2, 0.8)")
    outermost = min(min(q, 1 - q) for q in given)
    needed = round(1 / outermost - 1, 6)
    if num_samples < needed:
        raise ValueError(
            f"{num_samples} samples cannot tell the quantile {outermost:g}; type num_samples={-int(-needed // 1)}, or "
            f"quantiles from {1 / (num_samples + 1):.2g} to {num_samples / (num_samples + 1):.2g}"
        )
    return given


def quantiles_of(samples: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """
    The quantiles over samples, (B, S, C, H, W) -> (B, Q, C, H, W).

    The k-th smallest of S samples is the quantile k / (S + 1), which one more sample is below with this probability
    (type 6 of Hyndman and Fan 1996); those in between are interpolated.
    """
    ordered, count = samples.sort(1).values, samples.shape[1]
    found = []
    for q in quantiles:
        place = min(max(q * (count + 1) - 1, 0.0), count - 1.0)
        below = min(int(place), count - 2) if count > 1 else 0
        found.append(torch.lerp(ordered[:, below], ordered[:, min(below + 1, count - 1)], place - below))
    return torch.stack(found, 1)
