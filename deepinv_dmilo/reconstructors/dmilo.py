"""DMILO as a deepinv reconstructor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepinv_dmilo.core.measurements import Measurements, working_dtype
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.core.problem import (
    Fit,
    LayerProblem,
    check_finite,
    latent_fit,
    solve_with_adam,
    solve_with_lbfgs,
    sparse_deviation,
)
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.reconstructors.base import PriorReconstructor, Trace, check_choice, check_settings

# What the paper's settings have in common, for every task.
PUBLISHED: dict[str, Any] = {"levels": None, "solver": "adam", "sparsity": 0.1, "latent_penalty": 1e-4}
# The first image of a schedule: what the network makes of pure noise at this level, near the mean of its images, and
# gradient steps from there: ours.
START_NOISE, START_STEPS = 10.0, 10

# Noise levels of the schedule, as standard deviations for images in [0, 1]: ours, measured in docs/defaults.md.
LEVELS = (1.0, 0.65, 0.37, 0.17, 0.055)
INNER_STEPS = 20  # on each of them
SOLVERS = ("lbfgs", "adam")


class DMILO(PriorReconstructor):
    r"""
    DMILO: intermediate-layer optimisation with a diffusion model and sparse deviations.

    Algorithm 1 of :footcite:t:`zheng2025dmilo`. With the prior a chain :math:`G = g_{N-1} \circ \dots \circ g_0`, each
    outer step solves, from the image back to the noise, one problem per layer over its input :math:`z_i` and a sparse
    deviation :math:`\nu_i` added after it,

    .. math::

        \min_{z_i, \nu_i} \; \mathrm{fit}(g_i(z_i) + \nu_i) + \lambda \, \mathrm{mean}|\nu_i|
        + \rho \, \mathrm{mean}((z_i - c_i)^2),

    where the last layer fits the measurements, :math:`4\,\mathrm{mean}|A(x) - y|^2`, and every other layer the
    latent just found for the layer after it, in the mean squared sense. Then the chain is run forward from
    :math:`z_0` with the deviations. Only one layer's graph is ever alive: memory does not grow with ``num_layers``.

    As published (``from_preset``) the chain is the prior's own, from pure noise, :math:`c_i = 0`, and Adam solves. By
    default the outer steps go coarse to fine over noise ``levels`` instead: each puts fresh noise on the image so far,
    :math:`z = \sqrt{\bar\alpha} u + \sqrt{1 - \bar\alpha} \epsilon`, and solves on a short chain from there. Then
    :math:`c = \sqrt{\bar\alpha} u` and :math:`\rho = 4 \sigma^2 n / (m (1 - \bar\alpha))`, for n pixels, m measurements
    and noise of variance :math:`\sigma^2`, make the problem the maximum a posteriori estimate of z given the image so
    far: fitted to the noise, not below it.

    :param DiffusionPrior prior: the prior; its ``num_layers`` is N where ``levels`` is None.
    :param tuple[float] levels: standard deviations of the noise, for images in [0, 1], that the outer steps start
        from; None: the prior's own chain from pure noise, as published.
    :param int layers_per_level: layers of the chain below each level.
    :param int outer_steps: outer steps (paper: 5 or 10, see :meth:`from_preset`), on each level.
    :param int inner_steps: passes that the problem of a layer may take (paper: 200 to 1000, each taken); None: its
        share of ``max_passes``, and where that is not given either, 20.
    :param str solver: ``"lbfgs"``: a batched L-BFGS, where every image has its own curvature, step and end;
        ``"adam"``: as published.
    :param float tolerance: L-BFGS is done with an image whose objective fell by less than this fraction in a step.
    :param float latent_lr: Adam's learning rate of the latents (paper: 8e-3 to 2e-2).
    :param float deviation_lr: Adam's learning rate of the deviations (paper: 1e-3).
    :param float, str sparsity: weight :math:`\lambda` of the deviations (paper: 0.1); None: no deviations. With L-BFGS
        there is one, of the image, found by soft thresholding after the last level; ``"auto"`` is :math:`20 \sigma`
        then: where A is the identity, what is left over above five standard deviations of the noise.
    :param float, str latent_penalty: weight :math:`\rho` (authors' code: 1e-4, the value above for their noise and
        m = n, with :math:`c_i = 0`); ``"auto"``: as above.
    :param float noise_level: standard deviation :math:`\sigma` of the measurements' noise; None: that of the physics'
        own noise model, and where it has none, what the images so far leave unexplained.
    :param int max_passes: forward and backward passes of the network that an image may take at most, its samples
        together, shared equally by the layer problems; None: no limit beyond the numbers of steps.
    :param int num_samples: reconstructions of each image, from different noise, in one batch; their mean is returned,
        and with ``model(y, physics, return_std=True)`` their standard deviation.
    :param int micro_batch: how many reconstructions go through the network at once, None: all. Less memory.
    :param bool verbose: show a progress bar with outer step, layer and measurement residual.
    :param torch.Generator, int rng: where the noise is drawn from, on any device; or a seed of one noise for every
        image, so that the same call gives the same image, whatever the batch.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMILO, DiffusionPrior
        >>> from deepinv_dmilo.priors.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3)
        >>> y = physics(held_out_images("digits")[:2])
        >>> model = DMILO(DiffusionPrior.from_pretrained("digits"), max_passes=5)
        >>> model(y, physics).shape
        torch.Size([2, 1, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {**PUBLISHED, "latent_lr": 2e-2, "outer_steps": 5, "inner_steps": 200},
        "super_resolution": {**PUBLISHED, "latent_lr": 1e-2, "outer_steps": 5, "inner_steps": 1000},
        "deblurring": {**PUBLISHED, "latent_lr": 8e-3, "outer_steps": 10, "inner_steps": 300},
        "nonlinear_deblurring": {**PUBLISHED, "latent_lr": 1e-2, "outer_steps": 10, "inner_steps": 200},
    }

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        levels: Sequence[float] | None = LEVELS,
        layers_per_level: int = 1,
        outer_steps: int = 1,
        inner_steps: int | None = None,
        solver: str = "lbfgs",
        tolerance: float = 1e-2,
        latent_lr: float = 5e-2,
        deviation_lr: float = 1e-3,
        sparsity: float | str | None = "auto",
        latent_penalty: float | str = "auto",
        noise_level: float | None = None,
        max_passes: int | None = None,
        num_samples: int = 1,
        micro_batch: int | None = None,
        verbose: bool = False,
        rng: torch.Generator | int = 0,
    ) -> None:
        weights = {"deviation_lr": deviation_lr, "tolerance": tolerance}
        for name, weight in (("sparsity", sparsity), ("latent_penalty", latent_penalty)):
            if isinstance(weight, str):
                check_choice(name, weight, ("auto",), "a number of at least 0")
            elif weight is not None or name == "latent_penalty":
                weights[name] = weight  # type: ignore[assignment]
        check_choice("solver", solver, SOLVERS)
        if levels is not None:
            levels = tuple(levels) if isinstance(levels, Iterable) else (levels,)
        rates = {"latent_lr": latent_lr, **{f"levels[{i}]": level for i, level in enumerate(levels or ())}}
        steps = {"outer_steps": outer_steps, "layers_per_level": layers_per_level}
        check_settings(
            steps=steps if inner_steps is None else {**steps, "inner_steps": inner_steps},
            rates=rates if noise_level is None else {**rates, "noise_level": noise_level},
            weights=weights,
        )
        if levels is not None and len(levels) == 0:
            raise ValueError("levels is empty; type levels=None for the chain from pure noise, or leave it out")
        if levels is None and latent_penalty == "auto":
            raise ValueError("latent_penalty='auto' needs levels; type latent_penalty=1e-4 for a chain from pure noise")
        if sparsity == "auto" and (levels is None or solver == "adam"):
            raise ValueError("sparsity='auto' needs levels and solver='lbfgs'; type sparsity=0.1 as published, or None")
        super().__init__(
            prior, max_passes=max_passes, num_samples=num_samples, micro_batch=micro_batch, verbose=verbose, rng=rng
        )
        self.levels = levels
        self.layers_per_level = layers_per_level
        self.outer_steps = outer_steps
        self.inner_steps = inner_steps
        self.solver = solver
        self.tolerance = tolerance
        self.latent_lr = latent_lr
        self.deviation_lr = deviation_lr
        self.sparsity = sparsity
        self.latent_penalty = latent_penalty
        self.noise_level = noise_level
        needed = self._solves() * num_samples
        if max_passes is not None and max_passes < needed:
            raise ValueError(
                f"max_passes={max_passes} is not a pass for each layer problem and sample; type at least {needed}, "
                "or fewer levels, outer_steps or num_samples"
            )

    def _draws_after_init(self) -> bool:
        return self.levels is not None

    def _chains(self) -> list[tuple[int, ...]]:
        """The training steps of the chain of each level."""
        if self.levels is None:
            return [self.prior.timesteps]
        return [self.prior.steps_below(level, self.layers_per_level) for level in self.levels]

    def _solve(self, observation: Observation, shape: tuple[int, ...], init: Tensor | None, trace: Trace) -> Tensor:
        dtype = working_dtype(observation.y)
        grey = torch.full((self.num_samples * shape[0], *shape[1:]), 0.5, device=self.prior.device, dtype=dtype)
        if self.levels is None:
            z = self._noise(shape, 0, dtype) if init is None else init
            penalty = torch.full_like(z[:, 0, 0, 0], float(self.latent_penalty))
            return self._descend(self.prior.timesteps, z, grey, None, penalty, observation, trace)
        x = observation.gradient_steps(self._mean_image(grey), steps=START_STEPS) if init is None else init
        for draw, steps in enumerate(self._chains()):
            noise = observation.noise_variance(x, self.noise_level)
            start = x
            x = self._before_level(x, noise, observation)
            u, abar = self.prior.to_model(x), self.prior.alphas_cumprod[steps[0]]
            z = abar**0.5 * u + (1 - abar) ** 0.5 * self._noise(shape, draw, dtype)
            if isinstance(self.latent_penalty, str):
                # The residual, where it stands in for the noise, is that before the measurements were fitted.
                penalty, center = 4 * observation.variance(noise, start) * x[0].numel() / observation.size, u
            else:
                penalty, center = torch.full_like(noise, self.latent_penalty), None
            x = self._descend(steps, z, x, center, penalty, observation, trace, last=draw == len(self.levels) - 1)
        return x

    def _mean_image(self, like: Tensor) -> Tensor:
        """What the prior expects before any measurement: the network's image of noise, near the mean of its images."""
        t = self.prior.steps_below(START_NOISE, 1)[0]
        z = self.prior.latent((1, *like.shape[1:])).to(like.dtype)
        return self.prior.to_image(self.prior.step(z, t, 0).clamp(-1, 1)).expand_as(like)

    def _descend(
        self,
        steps: tuple[int, ...],  # training steps of the chain
        z: Tensor,  # (S * B, C, H, W), its first latent
        x: Tensor,  # (S * B, C, H, W), the image so far
        center: Tensor | None,  # the same in [-1, 1], where the latents are penalised for leaving it
        penalty: Tensor,  # (S * B,)
        observation: Observation,
        trace: Trace,
        *,
        last: bool = True,
    ) -> Tensor:
        """The outer steps on one chain; returns the image that they end at. On the ``last`` chain it may deviate."""
        layers = list(pairwise(steps))
        with_nu = self.solver == "adam" and self.sparsity is not None
        nu = [torch.zeros_like(z) if with_nu else None for _ in layers]
        zs = [z] if len(layers) == 1 else self._run_chain(layers, z, nu)[0]
        for k in range(self.outer_steps):
            fit = observation.fit(self._targets(x, observation))
            for i in reversed(range(len(layers))):
                problem = self._problem(layers[i], fit, center, penalty, trace)
                zs[i], nu[i], history = self._solve_layer(problem, zs[i], nu[i])
                check_finite(history, f"level {layers[0][0]}, outer step {k + 1}, layer {i}")
                if i == len(layers) - 1:
                    cost = history[-1]
                fit = latent_fit(zs[i])
                outer = f"{k + 1}/{self.outer_steps}"
                trace.show(level=steps[0], outer=outer, layer=i)
            zs, u = self._run_chain(layers, zs[0], nu)
            x = self.prior.to_image(u.clamp(-1, 1))
            if self.solver == "lbfgs" and last and k == self.outer_steps - 1:
                x = self._deviate(x, observation)
            trace.record(x, cost)
        return x

    def _problem(
        self, layer: tuple[int, int], fit: Fit, u: Tensor | None, penalty: Tensor, trace: Trace
    ) -> LayerProblem:
        """The problem of a layer; around u, the image so far, the penalty is that of the layer's own noise."""
        abar = self.prior.alphas_cumprod[layer[0]]
        center = None if u is None else abar**0.5 * u
        weight = penalty if u is None else penalty / (1 - abar)
        sparsity = 0.0 if self.sparsity is None or isinstance(self.sparsity, str) else self.sparsity
        return LayerProblem(self.prior, layer, fit, sparsity, weight, center, self.micro_batch, trace.on_pass)

    def _deviate(self, x: Tensor, observation: Observation) -> Tensor:
        """The image with its sparse deviation."""
        if self.sparsity is None:
            return x
        u, sparsity = self.prior.to_model(x), self.sparsity
        if isinstance(sparsity, str):
            weight = 20 * observation.variance(observation.noise_variance(x, self.noise_level), x).sqrt()
        else:
            weight = torch.full_like(x[:, 0, 0, 0], sparsity)
        return self.prior.to_image(u + sparse_deviation(observation.fit(), u, weight)).clamp(0, 1)

    def _before_level(self, x: Tensor, noise: Tensor, observation: Observation) -> Tensor:
        """The image that a level puts noise on; ``noise`` is the variance of that in a measurement, 0 if unknown."""
        return x

    def _targets(self, x: Tensor, observation: Observation) -> list[Measurements]:
        """What the last layer fits in the next outer step, for each group of B rows of the current image x."""
        return [observation.y] * self.num_samples

    def _solve_layer(self, problem: LayerProblem, z: Tensor, nu: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """The latent, the deviation, and the objectives on the way, (steps, S * B)."""
        steps = self._granted()
        if self.solver == "adam":
            return solve_with_adam(
                problem, z, nu, steps=steps, latent_lr=self.latent_lr, deviation_lr=self.deviation_lr
            )
        z, value = solve_with_lbfgs(problem, z, steps=steps, tolerance=self.tolerance)
        return z, None, value[None]

    def _run_chain(
        self, layers: list[tuple[int, int]], z: Tensor, nu: list[Tensor | None]
    ) -> tuple[list[Tensor], Tensor]:
        """The input of every layer and the output of the last, deviations added."""
        zs = []
        for layer, deviation in zip(layers, nu, strict=True):
            zs.append(z)
            z = torch.cat([self.prior.step(part, *layer) for part in self._split(z)])
            z = z if deviation is None else z + deviation
        return zs, z

    def _granted(self) -> int:
        """Passes for each layer problem of a sample."""
        if self.max_passes is None:
            return self.inner_steps or INNER_STEPS
        share = self.max_passes // (self.num_samples * self._solves())
        return share if self.inner_steps is None else min(self.inner_steps, share)

    def _solves(self) -> int:
        """How many layer problems are solved."""
        return self.outer_steps * sum(len(steps) - 1 for steps in self._chains())

    def _total_steps(self) -> int:
        return self._solves() * self._granted()
