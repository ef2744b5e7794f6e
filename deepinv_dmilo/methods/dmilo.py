"""DMILO as a deepinv reconstructor."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.optim import DataFidelity
from torch import Tensor

from deepinv_dmilo.likelihood.constraints import Parameters, check_unknown
from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements
from deepinv_dmilo.likelihood.observe import observe
from deepinv_dmilo.likelihood.profile import JointLikelihood
from deepinv_dmilo.likelihood.wiener import conditional_spectrum
from deepinv_dmilo.methods.base import PriorReconstructor
from deepinv_dmilo.methods.monitor import Monitor
from deepinv_dmilo.optim.descent import correlated_proximal_point
from deepinv_dmilo.optim.solvers import LBFGS, Adam, Solver
from deepinv_dmilo.posterior.blur import estimate_kernel, noise_of_kernels
from deepinv_dmilo.posterior.elbo import negative_elbo
from deepinv_dmilo.posterior.moments import EVALUATIONS_OF_A_DRAW, Moments, latent_draw
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import LatentTerm
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.schedules.chain import Chain
from deepinv_dmilo.schedules.finishing import EVALUATIONS_OF_FINISHING
from deepinv_dmilo.schedules.levels import Levels
from deepinv_dmilo.schedules.schedule import Layers, Plan, Schedule, Stage
from deepinv_dmilo.utils.settings import check_settings

_Method = TypeVar("_Method", bound="DMILO")

LEVELS, SOLVER = Levels(), LBFGS()  # defaults
DECOUPLED_STEPS = 5  # evaluations of the likelihood in the proximal step of a decoupled stage: ours
#: hints for settings that the constructor does not take
MOVED = {
    **{f.name: f"type schedule=Levels({f.name}=...)" for f in fields(Levels)},
    **{f.name: f"with chains from pure noise, type schedule=Chain({f.name}=...)" for f in fields(Chain)},
    **{f.name: f"with Adam, type solver=Adam({f.name}=...)" for f in fields(Adam)},
    **{f.name: f"type solver=LBFGS({f.name}=...)" for f in fields(LBFGS)},
    "inner_steps": "type solver=LBFGS(steps=...), or solver=Adam(steps=...)",
    "sigma": "type noise_level=..., or give the physics its noise model",
    "max_iter": "type max_calls=..., forward passes of the network, or max_passes=..., forward and backward passes",
    "seed": "type rng=..., a seed or a generator",
    "lr": "L-BFGS has none; type solver=Adam(latent_lr=...)",
    "device": "type DMILO(prior.to(device)), or model.to(device)",
}


@dataclass(eq=False, repr=False, kw_only=True)
class DMILO(PriorReconstructor):
    r"""
    DMILO: intermediate-layer optimisation with a diffusion model and sparse deviations.

    Algorithm 1 of :footcite:t:`zheng2025dmilo`. The prior is a chain :math:`G = g_{N-1} \circ \dots \circ g_0`. Each
    outer step solves one problem per layer, from the image back to the noise, over the layer's input :math:`z_i` and a
    sparse deviation :math:`\nu_i` of its output,

    .. math::

        \min_{z_i, \nu_i} \; \mathrm{fit}(g_i(z_i) + \nu_i) + \lambda \, \mathrm{mean}|\nu_i|
        + \rho \, \mathrm{mean}(z_i^2).

    The last layer fits the measurements, :math:`4\,\mathrm{mean}|A(x) - y|^2`; every other layer fits the latent just
    found for the next layer, in mean square. Then the chain is run forward from :math:`z_0` with the deviations. Only
    the graph of one layer is in memory at a time.

    This is ``from_preset``, or ``schedule=Chain(), solver=Adam()``. By default, the outer steps are noise levels from
    coarse to fine instead, each a maximum a posteriori problem of one layer (:class:`deepinv_dmilo.Levels`), solved by
    a batched L-BFGS.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param Levels, Chain schedule: schedule of the outer steps, or your own; None: ``Levels()`` (:doc:`/plans`).
    :param LBFGS, Adam solver: solver of the layer problems.
    :param float noise_level: with levels: standard deviation of the noise of y; None: that of the physics' noise model
        or, without one, an estimate (:doc:`/method`), which costs some more forward passes.
    :param deepinv.optim.DataFidelity data_fidelity: with levels: the negative log-likelihood, e.g.
        ``dinv.optim.L2(sigma=0.05)``; None: that of the physics' noise model for photons, speckle, outliers or heavy
        tails (:doc:`/physics`), else that of Gaussian noise of the level above.
    :param dict unknown: for blind problems: first guesses of the nuisance parameters of the physics, by the names that
        ``physics.update`` takes, with their constraints (:class:`deepinv_dmilo.Simplex`, ``BlurKernel``, ``Positive``,
        ``Free``, ``Custom``), e.g. ``{"filter": Simplex(kernel)}``. They are fitted for each image;
        ``model(y, physics, return_unknown=True)`` returns them, too.
    :param int max_calls: maximum number of forward passes of the network per image, for all samples; a forward and
        backward pass counts as two. What decoupled stages leave is shared equally by the layer problems. One call after
        each level, the finishing steps and an estimate of the noise are not counted. None: limited by the steps of the
        solver alone and, if these are not given, 200 per sample, 400 in blind problems. Blind problems without masked
        pixels and with a relative noise above 2.5 % use at most ten levels, of ten calls each unless the solver has
        its own steps.
    :param int max_passes: the same in forward and backward passes, ``max_calls`` over two; type one of both.
    :param int num_samples: reconstructions of each image, from different noise, in one batch. Their mean is returned,
        in blind problems the most probable sample by likelihood and prior (with a ``Chain`` that of the least
        objective) and its parameters. ``model.solve(y, physics).samples`` has all.
    :param int micro_batch: reconstructions per pass of the network, of volumes slices; None: all. Fewer need less
        memory.
    :param bool verbose: show a progress bar with the outer step, the residual (root mean square of A(x) - y) and the
        noise level.
    :param torch.Generator, int rng: generator of the noise, on any device, or a seed, which gives the same image at
        each call and in each batch.

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
        "inpainting": {"latent_lr": 2e-2, "outer_steps": 5, "inner_steps": 200},
        "super_resolution": {"latent_lr": 1e-2, "outer_steps": 5, "inner_steps": 1000},
        "deblurring": {"latent_lr": 8e-3, "outer_steps": 10, "inner_steps": 300},
        "nonlinear_deblurring": {"latent_lr": 1e-2, "outer_steps": 10, "inner_steps": 200},
        # Neither paper nor code has a rate of the kernel: DMPlug's, ten times that of the latent.
        "blind_deblurring": {"latent_lr": 8e-3, "outer_steps": 10, "inner_steps": 300, "unknown_lr": 8e-2},
    }
    moved: ClassVar[dict[str, str]] = MOVED
    schedule: Schedule = LEVELS
    solver: Solver = SOLVER
    noise_level: float | None = None
    # a factory, since a class attribute would hide the module of this name
    data_fidelity: DataFidelity | None = field(default_factory=lambda: None)
    unknown: Parameters | None = None

    def _check(self) -> None:
        if self.unknown is not None:
            self.unknown = check_unknown(self.unknown)
        if self.schedule is None:
            self.schedule = LEVELS
        for name, kind, examples in (("schedule", Schedule, (Levels, Chain)), ("solver", Solver, (LBFGS, Adam))):
            given = getattr(self, name)
            if not isinstance(given, kind) or isinstance(given, type):
                options = " or ".join(f"{name}={example.__name__}(...)" for example in examples)
                raise TypeError(f"{name}={given!r}: type {options}")
        if self.data_fidelity is not None and not isinstance(self.data_fidelity, DataFidelity):
            raise TypeError(
                f"data_fidelity is a {type(self.data_fidelity).__name__}; pass a deepinv.optim.DataFidelity, e.g. "
                "deepinv.optim.L2(sigma=0.05)"
            )
        if self.noise_level is not None:
            self.noise_level = one_number(self.noise_level)
        self._check_together()
        super()._check()

    def _check_together(self) -> None:
        """Refuse combinations of settings in which one has no effect."""
        has_noise = self.noise_level is not None or self.data_fidelity is not None
        if has_noise and not self.schedule.uses_likelihood:
            raise ValueError(
                "noise_level and data_fidelity have no effect with a Chain, which fits mean squares; type "
                "schedule=Levels(), or leave them out"
            )
        if self.noise_level is not None and self.data_fidelity is not None:
            raise ValueError("noise_level and data_fidelity both define the likelihood; type one of them")
        if self.unknown and isinstance(self.schedule, Levels) and self.schedule.decoupled:
            raise ValueError("blind problems, unknown=..., have no decoupled stages; type Levels(decoupled=False)")
        has_deviations = self.schedule.sparsity is not None
        if has_deviations and isinstance(self.solver, LBFGS):
            raise ValueError("L-BFGS solves smooth problems; type solver=Adam(), or schedule=Chain(sparsity=None)")
        if not self.unknown and isinstance(self.solver, Adam) and self.solver.unknown_lr is not None:
            raise ValueError(
                'unknown_lr is for blind problems: type unknown={"filter": Simplex(kernel)}, a guess, or leave it out'
            )
        if not has_deviations and isinstance(self.solver, Adam) and self.solver.deviation_lr is not None:
            raise ValueError("deviation_lr has no effect without deviations; leave it out, or type Chain(sparsity=0.1)")

    @classmethod
    def _from_flat(cls: type[_Method], prior: Prior, settings: dict[str, Any]) -> _Method:
        """The method as published, with a chain and Adam, whose settings are among the others."""
        own = {{"inner_steps": "steps"}.get(name, name): value for name, value in settings.items()}
        chain, adam = ({f.name: own.pop(f.name) for f in fields(kind) if f.name in own} for kind in (Chain, Adam))
        return cls(prior, schedule=Chain(**chain), solver=Adam(**adam), **own)

    def reconstruct(self, posterior: Posterior, plan: Plan, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """Algorithm 1."""
        x, layers = plan.first_image, None
        for stage in plan.stages:
            likelihood = self.schedule.likelihood(posterior, plan, stage, x)
            layers = self.schedule.start(posterior, stage, x, layers)
            x, cost = self.project(posterior, stage, layers, likelihood, monitor, x)
            for finish in stage.finishing:
                x = finish(posterior, x)
            monitor.record(posterior, stage, x, cost, likelihood)
        return x, self.score(posterior, plan, x, cost)

    def project(
        self, posterior: Posterior, stage: Stage, layers: Layers, likelihood: Likelihood, monitor: Monitor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The images of a stage, (n, C, H, W), and their objective, (n,), from the current images x."""
        if stage.kernel_sigma is not None:
            return self.deblur(posterior, stage, layers, likelihood, monitor, x)
        return (self.denoise if stage.decoupled else self.fit)(posterior, stage, layers, likelihood, monitor)

    def fit(
        self, posterior: Posterior, stage: Stage, layers: Layers, likelihood: Likelihood, monitor: Monitor
    ) -> tuple[Tensor, Tensor]:
        """
        Solve the layers from the image back to the noise, then run the chain forward.

        :return: the images, (n, C, H, W), and the objective of the last layer, (n,).
        """
        jointly = isinstance(self.solver, Adam) and self.solver.unknown_lr is not None
        target = likelihood if stage.fixed else posterior.profiled(likelihood, jointly=jointly)
        costs = []
        for i in reversed(range(len(layers.variables))):
            problem = self.schedule.problem(posterior, stage, layers, i, target)
            unknown = {"unknown": target.unknown} if isinstance(target, JointLikelihood) else {}
            minimum = monitor.solve(self.solver, problem, layers.variables[i] | unknown, posterior, stage)
            if isinstance(target, JointLikelihood):
                target.keep(minimum.variables.pop("unknown"))
            layers.variables[i] = minimum.variables
            costs.append(minimum.value)
            target = LatentTerm(minimum.variables["latent"])
        return posterior.images(layers.forward(posterior)), costs[0]

    def denoise(
        self, posterior: Posterior, stage: Stage, layers: Layers, likelihood: Likelihood, monitor: Monitor
    ) -> tuple[Tensor, Tensor]:
        """
        A decoupled stage: one call of the network as a denoiser, then a proximal step on the likelihood.

        :return: the images, (n, C, H, W), and their negative log-likelihood, (n,).
        """
        x = posterior.denoised(layers.variables[0]["latent"], stage.levels[0])
        monitor.called(posterior)
        spectrum = conditional_spectrum(x, stage.levels[0].sigma)
        limits = posterior.prior.limits
        objective = posterior.with_energy(likelihood)
        x = correlated_proximal_point(x, objective, spectrum=spectrum, steps=DECOUPLED_STEPS, limits=limits)
        return x, likelihood(x) if monitor.is_watched else torch.zeros_like(x[:, 0, 0, 0])

    def deblur(
        self, posterior: Posterior, stage: Stage, layers: Layers, likelihood: Likelihood, monitor: Monitor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A stage of an unknown blur: the kernel from p(k | z, y), then an image from p(x | z, y, k)."""
        z, level, sigma = layers.variables[0]["latent"], stage.levels[0], stage.kernel_sigma or 0.0
        noise = noise_of_kernels(posterior, stage.index)

        def estimate(rows: Tensor, moments: Moments, deviation: Tensor) -> None:
            prior, of_rows = posterior.prior.select(rows), tuple(one[rows] for one in noise)
            estimate_kernel(prior, likelihood.select(rows), moments, deviation, of_rows, sigma)

        x = posterior.images(latent_draw(posterior, likelihood, x, z, level, stage.index, estimate))
        monitor.called(posterior, 1 + stage.products)
        return x, likelihood(x)

    def _evaluations(self, stage: Stage) -> int:
        if stage.products:
            return EVALUATIONS_OF_A_DRAW
        return (DECOUPLED_STEPS if stage.decoupled else stage.steps) + bool(stage.finishing) * EVALUATIONS_OF_FINISHING

    def score(self, posterior: Posterior, plan: Plan, x: Tensor, cost: Tensor) -> Tensor:
        """
        The score by which the best sample of a blind problem is chosen, (n,): the negative log posterior.

        With mean squares it is the objective. A Gaussian negative log-likelihood is clamped at its mean: fitting the
        noise does not make a sample more probable.
        """
        if posterior.nuisance is None or posterior.num_samples == 1 or not self.schedule.uses_likelihood:
            return cost
        likelihood, n = self.schedule.likelihood(posterior, plan, plan.stages[-1], x), posterior.num_samples
        if isinstance(likelihood, Gaussian):
            likelihood = likelihood.gaussian(posterior.mean(likelihood.variance).repeat(n))
            return likelihood(x).clamp(min=likelihood.observed / 2) + negative_elbo(posterior, x)
        return likelihood(x) + negative_elbo(posterior, x)

    def _likelihoods(self, y: Measurements, forward: ForwardModel) -> list[Likelihood]:
        if not self.schedule.uses_likelihood:
            return super()._likelihoods(y, forward)
        noise_level, data_fidelity = self.noise_level, self.data_fidelity
        return observe(y, forward, num_samples=self.num_samples, noise_level=noise_level, data_fidelity=data_fidelity)


def one_number(noise_level: float) -> float:
    """Check that a noise level is one positive number."""
    shape = tuple(getattr(noise_level, "shape", ()))
    if shape:
        raise TypeError(
            f"noise_level has shape {shape}, and is one number for all measurements; leave it out, and type "
            "physics.noise_model = deepinv.physics.GaussianNoise(sigma) with a sigma for each"
        )
    if noise_level == 0:
        raise ValueError("noise_level=0: leave it out to have the noise level estimated, or type 1e-3 for next to none")
    check_settings(steps={}, rates={"noise_level": noise_level}, weights={})
    return float(noise_level)
