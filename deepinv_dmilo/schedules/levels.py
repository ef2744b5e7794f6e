"""A schedule of noise levels, from coarse to fine, one layer each: what the outer steps do by default."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.data import Fit
from deepinv_dmilo.likelihood.measurements import mean_energy, working_dtype
from deepinv_dmilo.likelihood.observation import Observation
from deepinv_dmilo.likelihood.wiener import least_squares, left_open
from deepinv_dmilo.methods.run import Run
from deepinv_dmilo.methods.scale import warn_if_noise_is_all
from deepinv_dmilo.optim.descent import sparse_deviation
from deepinv_dmilo.posterior.elbo import improbability
from deepinv_dmilo.posterior.noise_estimation import finest_variance, seen_variance
from deepinv_dmilo.posterior.problem import Problem
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.schedules.chain import State
from deepinv_dmilo.schedules.finishing import IMAGE_ERROR, mean_from_mode
from deepinv_dmilo.utils.settings import check_flags, check_settings
from deepinv_dmilo.utils.warning import warn

# The first image of a schedule: what the network makes of pure noise at this level, near the mean of its images; from
# there regularised least squares, with such noise where it is not told, or so many Gauss-Newton steps where A is not
# linear; and gradient steps where that is not enough: ours.
START_NOISE, GUESSED_NOISE, NEWTON_STEPS, START_STEPS = 10.0, 0.05, 3, 10
# Noise of the noisiest measurement, in [0, 1], up to which a likelihood is about one of squares (25 photons); measured
# in docs/defaults.md.
EVEN_NOISE = 0.2
# Where parameters are unknown and no pixel is masked, an image begins with the lowest level of so much at most, of a
# camera's blur, unless noise is much, of so much; measured in docs/defaults.md.
UNKNOWN_FROM, CAMERA_FROM = 0.35, 0.195
# Where A is not linear and no pixel is masked, likewise: its slope at a first image says less than the image does;
# measured in docs/defaults.md.
NOT_LINEAR_FROM = 0.6
# An image begins with the lowest level that is so many times what its measurements leave open, and so many times the
# noise that they bring in at least, which is in the first image; measured in docs/defaults.md. Where less is left open
# than the first times that noise, and would be of little noise, in [0, 1], the measurements determine the image.
COVER, COVER_NOISE, LITTLE_NOISE = 1.5, 2.0, 0.02
# That a level is worth taking for, at least; and that it takes at most, of so many levels, where parameters are unknown
# and noise is more than such a part of y (root mean squares, measured in docs/defaults.md).
PASSES_OF_A_LEVEL, MOST_LEVELS, MUCH_NOISE = 5, 10, 0.025
NO_ERROR = 1e-3  # in [0, 1], which steps leave where it is
MARGIN = 0.5  # beyond [0, 1], that a first image may have without a warning
# Of noise that nobody told: it is looked for from so much on. After a level it is what the image leaves unexplained, if
# that is less, and such a part of the noise of the level at least (the image errs yet): ours.
SEEN_FROM, CLOSENESS = 0.65, 0.02


@dataclass(frozen=True)
class Levels:
    r"""
    Coarse to fine over noise levels, one layer and one outer step each: ours.

    Each level puts fresh noise on the image so far, :math:`z = a u + s \epsilon` (signal a, noise s), and solves

    .. math::

        \min_z \; -\log p(y \,|\, x(z)) + \frac{\|z - a u\|^2}{2 s^2},

    the maximum a posteriori estimate of z given the image so far: fitted to the noise, not below it.

    :param tuple[float] sigmas: standard deviations of the noise, for images in [0, 1] (measured in docs/defaults.md).
    :param bool skip: an image begins with the lowest level whose noise hides, at every spatial frequency, what its
        measurements leave open, and the noise that they bring in (ours; asks the physics alone), and its budget is
        shared by the levels from there on; False: with the first. Of many levels a small budget takes as many as it
        has five passes for, evenly; where parameters are unknown, no pixel is masked and noise is 2.5 % of y and more,
        ten at most.
    :param bool mean: after the last level, steps towards the measurements and one call of the network as a
        denoiser, which take the most probable image towards the mean of those that go with y (ours); not with a
        ``data_fidelity``, nor where the latents are those of an autoencoder.
    :param float deviation_threshold: after the last level the image may deviate sparsely from the prior, where the
        identity is measured by what is left above so many standard deviations of the noise (ours); None: not at all.
    """

    sigmas: tuple[float, ...] = (5.0, 2.2, 1.0, 0.65, 0.37, 0.17, 0.055)
    skip: bool = True
    mean: bool = True
    deviation_threshold: float | None = 5.0

    def __post_init__(self) -> None:
        given: object = self.sigmas
        if not isinstance(given, Iterable):
            raise TypeError(
                f"sigmas={given!r}: type a sequence of noise levels, Levels((1.0, 0.2)), or Levels() for ours"
            )
        object.__setattr__(self, "sigmas", tuple(given))
        if not self.sigmas:
            raise ValueError("sigmas is empty; type Levels() for ours, or schedule=Chain() for chains from pure noise")
        weights = {} if self.deviation_threshold is None else {"deviation_threshold": self.deviation_threshold}
        check_settings(steps={}, rates={f"sigmas[{i}]": s for i, s in enumerate(self.sigmas)}, weights=weights)
        for name, weight in weights.items():
            object.__setattr__(self, name, float(weight))  # a fraction times a tensor is not known
        check_flags(skip=self.skip, mean=self.mean)
        if any(after >= before for before, after in pairwise(self.sigmas)):
            falling = tuple(sorted(set(self.sigmas), reverse=True))
            raise ValueError(f"sigmas={self.sigmas} go from coarse to fine; type {falling}")

    def chains(self, prior: Prior) -> list[tuple[Level, ...]]:
        """A chain of one layer from each level; those that the prior does not tell apart are one."""
        last = prior.levels(1)[-1]
        return [(level, last) for level in dict.fromkeys(prior.level(2 * sigma) for sigma in self.sigmas)]

    def taken(self, run: Run, x: Tensor, chains: list[tuple[Level, ...]]) -> Tensor:
        """Which levels each image takes, (B, len(chains)): evenly from where it begins, as many as are worth it."""
        first = torch.zeros(len(run.observation.images.rows), dtype=torch.long)
        is_noisy = self._is_noisy(run, x)
        if run.model._solver().steps is None and is_noisy.any():
            run.most_steps = torch.where(is_noisy, PASSES_OF_A_LEVEL, torch.iinfo(torch.long).max)
        if self.skip:
            images, n = run.observation.images, len(first)
            gaussian, operator = run.observation.is_gaussian, run.observation.operator
            variance = self._largest_variance(run, x)
            if gaussian:
                warn_if_noise_is_all(run.observation, run.observation.noise_variance(x)[:n])
            noise = (variance / operator.squared_gain).sqrt()
            amplitude = left_open(images, x[:n], variance)
            # Else the gain is no norm, or the noise not of one size, as the last call takes it to be.
            if gaussian and operator.is_known_linear and (amplitude <= COVER * noise).any():
                little = noise.clamp(max=LITTLE_NOISE)  # much noise would hide what A does not transmit
                open_to_little = left_open(images, x[:n], little.square() * operator.squared_gain)
                run.determined = open_to_little <= COVER * little
            needed = torch.maximum(COVER * amplitude, COVER_NOISE * noise)
            highest = torch.full_like(needed, torch.inf if operator.is_known_linear else NOT_LINEAR_FROM)
            if run.unknowns is not None:  # else the image is made anew, and what is unknown explains it
                is_camera = run.unknowns.has_open_edges & ~is_noisy
                highest = torch.where(is_camera, CAMERA_FROM, UNKNOWN_FROM).to(needed)
            needed = torch.where(run.observation.reaches_all, torch.minimum(needed, highest), needed)
            sigmas = torch.tensor([levels[0].sigma for levels in chains], device=x.device, dtype=x.dtype)
            first = (sigmas >= needed[:, None]).sum(1).sub(1).clamp(min=0).cpu()
        taken = torch.zeros(len(first), len(chains), dtype=torch.bool)
        worth, last = len(chains) if run.budget is None else max(1, run.budget // PASSES_OF_A_LEVEL), len(chains) - 1
        for row, start, has_much_noise in zip(taken, first.tolist(), is_noisy.tolist(), strict=True):
            most = min(worth, MOST_LEVELS) if has_much_noise else worth
            row[torch.linspace(start if most > 1 else last, last, min(most, last + 1 - start)).round().long()] = True
        return taken.to(x.device)

    def _is_noisy(self, run: Run, x: Tensor) -> Tensor:
        """
        Where parameters are unknown, whether noise is much and no pixel masked, (B,).

        More passes lead to a smooth image and no blur there, which explain y.
        """
        if run.unknowns is None:
            return torch.zeros(len(run.observation.images.rows), dtype=torch.bool, device=x.device)
        much = self._largest_variance(run, x) > MUCH_NOISE**2 * mean_energy(run.observation.y)
        return much & run.observation.reaches_all

    def _largest_variance(self, run: Run, x: Tensor) -> Tensor:
        """The variance of the noise of a measurement of each image, of the noisiest where they differ, (B,)."""
        observation = run.observation
        variance = self.noise(run, x) if observation.is_gaussian else observation.largest_variance(x)
        return variance[: len(observation.images.rows)]

    def first_image(self, run: Run) -> Tensor:
        """What the prior expects before any measurement, taken to the measurements without the network."""
        if run.init is not None:
            low, high = run.init.min().item(), run.init.max().item()
            if low < -MARGIN or high > 1 + MARGIN:
                warn(
                    f"init has values from {low:.3g} to {high:.3g}, and is an image in [0, 1]; pass init / 255, "
                    "(init + 1) / 2 or init.clamp(0, 1), as the case may be"
                )
            return run.init
        x, observation = self._mean_image(run), run.observation
        operator, gaussian = observation.operator, observation.is_gaussian
        if observation.data_fidelity is not None or observation.has_outliers or not (gaussian or operator.is_linear):
            return run.descend(x, steps=START_STEPS)
        if run.unknowns is not None:  # a guess of A explains nothing of y yet
            return self._least_squares(run, x, observation.rest(x))
        known = observation.noise_variance(x) if gaussian else observation.largest_variance(x)
        gain = operator.squared_gain.repeat(run.num_samples)
        of_squares = gaussian | (known <= EVEN_NOISE**2 * gain)
        moved = self._least_squares(run, x, torch.where(known > 0, known, GUESSED_NOISE**2 * gain))
        x = torch.where(of_squares.view(-1, 1, 1, 1), moved, x)
        solved = (known > 0) & gaussian & operator.is_linear
        return x if solved.all() else torch.where(solved.view(-1, 1, 1, 1), x, run.descend(x, steps=START_STEPS))

    def _least_squares(self, run: Run, x: Tensor, variance: Tensor) -> Tensor:
        """Regularised least squares around x; where A is not linear, a few times, as long as they lead nearer to y."""
        data = run.observation.data
        if data.operator.is_linear:
            return least_squares(data, x, variance).clamp(*run.prior.limits)
        for _ in range(NEWTON_STEPS):
            moved = least_squares(data, x, variance).clamp(*run.prior.limits)
            nearer = data.energy(moved) < data.energy(x)  # not where it is no number
            if not nearer.any():
                break
            x = torch.where(nearer.view(-1, 1, 1, 1), moved, x)
        return x

    def _mean_image(self, run: Run) -> Tensor:
        """What the prior expects before any measurement."""
        a, b = run.prior.level(2 * START_NOISE), run.prior.levels(1)[-1]
        if a.sigma < START_NOISE / 4:  # the network knows no pure noise
            return run.grey()
        z = a.spread * run.noise()
        return run.images(run.in_parts(lambda prior, part: prior.step(part, a, b), z))

    def start(self, run: Run, levels: tuple[Level, ...], x: Tensor, before: State | None) -> State:
        """Fresh noise on the image so far."""
        if run.unknowns is not None:
            run.unknowns.loosen(run.rows)
        level, u = levels[0], run.prior.encode(x)
        z = level.signal * u + level.noise * run.noise()
        return State(levels, [{"latent": z[run.rows]}], center=level.signal * u[run.rows])

    def noise(self, run: Run, x: Tensor) -> Tensor:
        """The variance of the noise of a measurement, (S * B,); not known, what the network sees of it at first."""
        known = run.observation.noise_variance(x)
        if (known > 0).all():
            return known
        if run.seen is None:
            run.seen = torch.minimum(seen_variance(run, x, SEEN_FROM), run.observation.most_noise)
            if run.unknowns is not None:  # a guess of A errs, too, and that is no noise
                run.seen = torch.minimum(run.seen, finest_variance(run.observation).clamp(min=run.seen / 100))
        return torch.where(known > 0, known, run.seen)

    def variance(self, run: Run, x: Tensor, level: Level) -> Tensor | None:
        """How far a measurement may be from A(x) at a level, (S * B,); None: the data term is not one of squares."""
        observation = run.observation
        if not observation.is_gaussian:
            return None
        noise, known = self.noise(run, x), observation.noise_variance(x) > 0
        if known.all():
            return noise
        gain = observation.operator.squared_gain.repeat(run.num_samples)
        left = torch.where(run.passes > 0, torch.minimum(observation.rest(x), noise), noise)
        return torch.where(known, noise, torch.maximum(left, (CLOSENESS * level.sigma) ** 2 * gain))

    def fit(self, observation: Observation, variance: Tensor | None) -> Fit:
        """The negative log-likelihood."""
        return observation.likelihood(variance)

    def fit_after(self, observation: Observation, variance: Tensor | None, x: Tensor) -> Fit:
        """The data term after the gradient steps of DMILO-PGD took the image to x."""
        return self.fit(observation, variance)

    def pull(self, observation: Observation, variance: Tensor | None, level: Level) -> Tensor | None:
        """
        How strongly the gradient steps of DMILO-PGD before a level are held at x: noise must not be taken for signal.

        The image so far is taken to have errors of half the level's noise, or less; where some measurements say nothing
        at all, of none, since the steps would follow them.
        """
        error = NO_ERROR if observation.has_outliers else min(IMAGE_ERROR, level.sigma / 2)
        one = torch.ones_like(observation.data.rows, dtype=working_dtype(observation.y))
        return (one if variance is None else variance) / error**2

    def problem(self, run: Run, state: State, i: int, fit: Fit) -> Problem:
        """The problem of the one layer."""
        level, z = state.levels[0], state.variables[0]["latent"]
        return Problem(
            run.prior.select(run.rows),
            state.levels,
            fit,
            pull=1 / (2 * level.noise**2),
            center=state.center,
            unit=z[0].numel() / 2,
            micro_batch=run.model.micro_batch,
            name="layer 1 of 1",
        )

    def finish(self, run: Run, x: Tensor) -> Tensor:
        """The last image: a mean instead of a mode, and its sparse deviation."""
        observation, mode = run.observation, x
        has_noise = observation.data_fidelity is None and not observation.has_outliers
        if self.mean and has_noise and run.prior.affine:
            if run.seen is not None:  # again, since the network errs less on a better image
                run.seen = torch.minimum(run.seen, seen_variance(run, x, SEEN_FROM))
            x = mean_from_mode(run, x, self.noise(run, x))
        if run.unknowns is not None and run.num_samples > 1:
            run.surprise = self._unexplained(run, mode) + improbability(run, x)
        if self.deviation_threshold is None or observation.noise_likelihoods is not None or run.unknowns is not None:
            return x
        return self._with_deviation(observation, x, self.deviation_threshold).clamp(*run.prior.limits)

    def _unexplained(self, run: Run, x: Tensor) -> Tensor:
        """
        The negative log-likelihood of images, (S * B,), by one noise for all samples of an image.

        Of squares no less than the noise comes to: to explain some of the noise, too, makes no sample likelier.
        """
        observation, n = run.observation, run.num_samples
        if run.variance is None:
            return observation.likelihood(None, held=True)(x)
        variance = observation.mean(run.variance).repeat(n)
        return observation.likelihood(variance, held=True)(x).clamp(min=observation.operator.reached.repeat(n) / 2)

    def _with_deviation(self, observation: Observation, x: Tensor, threshold: float) -> Tensor:
        """The image with its sparse deviation."""
        variance = observation.variance(x).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        # Noise alone has a gradient of this root mean square, at most, in a pixel.
        slope = (observation.operator.squared_gain.repeat(observation.num_samples) / variance).sqrt()
        return x + sparse_deviation(observation.likelihood(variance), x, threshold * slope, 1 / slope**2)
