"""DMILO as a deepinv reconstructor."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from deepinv.optim import DataFidelity
from torch import Tensor

from deepinv_dmilo.likelihood.constraints import Guess, Parameters, check_unknown
from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements
from deepinv_dmilo.likelihood.observe import observe
from deepinv_dmilo.methods.base import PriorReconstructor
from deepinv_dmilo.methods.monitor import Monitor
from deepinv_dmilo.optim.solvers import LBFGS, Adam, Solver
from deepinv_dmilo.posterior.elbo import negative_elbo
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import LatentTerm
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.schedules.chain import Chain
from deepinv_dmilo.schedules.levels import Levels
from deepinv_dmilo.schedules.schedule import Layers, Plan, Schedule, Stage
from deepinv_dmilo.utils.settings import check_settings

_Method = TypeVar("_Method", bound="DMILO")

LEVELS, SOLVER = Levels(), LBFGS()  # by default
#: where settings are that the constructor does not take itself
MOVED = {
    **{f.name: f"type schedule=Levels({f.name}=...)" for f in fields(Levels)},
    **{f.name: f"it is of the chain from pure noise, type schedule=Chain({f.name}=...)" for f in fields(Chain)},
    **{f.name: f"type solver=LBFGS({f.name}=...)" for f in fields(LBFGS)},
    **{f.name: f"it is of Adam, type solver=Adam({f.name}=...)" for f in fields(Adam) if f.name != "steps"},
    "levels": "type schedule=Levels((1.0, 0.2)), or schedule=Chain() for chains from pure noise",
    **dict.fromkeys(("inner_steps", "steps"), "type solver=LBFGS(steps=...), or solver=Adam(steps=...)"),
    "sparsity": "type schedule=Levels(deviation_threshold=...), or with chains from pure noise Chain(sparsity=...)",
    "latent_penalty": "with levels it follows the noise; with chains from pure noise type Chain(latent_penalty=...)",
    "step_size": "type DMILOPGD(prior, step_size=...)",
    "gradient_steps": "type DMILOPGD(prior, gradient_steps=...)",
    **dict.fromkeys(("sigma", "sigma_noise", "noise"), "type noise_level=..., or give the physics its noise model"),
    **dict.fromkeys(("max_iter", "num_steps"), "type max_passes=..., forward and backward passes of the network"),
    **dict.fromkeys(("seed", "generator"), "type rng=..., a seed or a generator"),
    "lr": "L-BFGS has none; type solver=Adam(latent_lr=...)",
    "device": "type DMILO(prior.to(device)), or model.to(device)",
    "layers_per_level": "a level has one layer; type schedule=Chain(num_layers=...) for more",
}


@dataclass(eq=False, repr=False, kw_only=True)
class DMILO(PriorReconstructor):
    r"""
    DMILO: intermediate-layer optimisation with a diffusion model and sparse deviations.

    Algorithm 1 of :footcite:t:`zheng2025dmilo`. With the prior a chain :math:`G = g_{N-1} \circ \dots \circ g_0`, each
    outer step solves, from the image back to the noise, one problem per layer over its input :math:`z_i` and a sparse
    deviation :math:`\nu_i` added after it,

    .. math::

        \min_{z_i, \nu_i} \; \mathrm{fit}(g_i(z_i) + \nu_i) + \lambda \, \mathrm{mean}|\nu_i|
        + \rho \, \mathrm{mean}(z_i^2),

    where the last layer fits the measurements, :math:`4\,\mathrm{mean}|A(x) - y|^2`, and every other layer the
    latent just found for the layer after it, in the mean squared sense. Then the chain is run forward from
    :math:`z_0` with the deviations. Only one layer's graph is ever alive: memory does not grow with their number.

    That is ``from_preset``, or ``schedule=Chain(), solver=Adam()``. By default the outer steps go coarse to fine over
    noise levels instead, each a maximum a posteriori estimate on one layer (:class:`deepinv_dmilo.Levels`), solved by
    a batched L-BFGS.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param Levels, Chain schedule: what the outer steps do, or a schedule of your own; None: ``Levels()``
        (:doc:`/plans`).
    :param LBFGS, Adam solver: what solves a layer's problem.
    :param float noise_level: with levels: standard deviation of the measurements' noise; None: that of the physics'
        own noise model, and where it has none, an estimate (:doc:`/method`), which costs some forward passes more.
    :param deepinv.optim.DataFidelity data_fidelity: with levels: the negative log-likelihood, e.g.
        ``dinv.optim.L2(sigma=0.05)``; None: that of the physics' noise model where it is one of photons, speckle,
        outliers or heavy tails (:doc:`/physics`), else that of Gaussian noise of the level above.
    :param dict unknown: parameters of the physics that are not known, by the names that ``physics.update`` takes:
        first guesses, with their constraints (:class:`deepinv_dmilo.Simplex`, ``Positive``, ``Free``, ``Custom``),
        e.g. ``{"filter": Simplex(kernel)}``; the best ones for every image are found on the way.
        ``model(y, physics, return_unknown=True)`` returns them too.
    :param int max_passes: forward and backward passes of the network that an image may take at most, its samples
        together, shared equally by the layer problems; None: no limit beyond the steps of the solver, and where those
        are not given, 100 for a sample, 200 with ``unknown`` parameters; where these are,
        no pixel is masked, and noise is 2.5 % of y and more, ten levels take five each at most (unless the solver has
        its own steps).
    :param int num_samples: reconstructions of each image, from different noise, in one batch; their mean is returned
        (where parameters of the physics are unknown, the most probable one by y and the network, with a ``Chain`` that
        of the least objective, and its parameters), and with ``model(y, physics, return_std=True)`` their standard
        deviation.
    :param int micro_batch: how many reconstructions go through the network at once, None: all. Less memory.
    :param bool verbose: show a progress bar of the solver's steps, with the outer step, the residual (root mean square
        of A(x) - y) and the noise that a measurement is taken to have.
    :param torch.Generator, int rng: where the noise is drawn from, on any device; or a seed: the same call gives the
        same image, whatever the batch.

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
    }
    moved: ClassVar[dict[str, str]] = MOVED
    schedule: Schedule = LEVELS
    solver: Solver = SOLVER
    noise_level: float | None = None
    # by a factory, since a class attribute would hide the module that torch keeps elsewhere
    data_fidelity: DataFidelity | None = field(default_factory=lambda: None)
    unknown: Parameters | None = None

    def _check(self) -> None:
        super()._check()
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
            self.noise_level = _one_number(self.noise_level)
        self._check_together()
        self._check_budget()

    def _check_together(self) -> None:
        """Refuse settings that another one would leave without effect."""
        is_chain = isinstance(self.schedule, Chain)
        if is_chain and (self.noise_level is not None or self.data_fidelity is not None):
            raise ValueError(
                "noise_level and data_fidelity are of a schedule of levels, a Chain has the paper's mean squares; type "
                "schedule=Levels(), or leave them out"
            )
        if self.noise_level is not None and self.data_fidelity is not None:
            raise ValueError("noise_level is that of Gaussian noise, data_fidelity of any; type one of them")
        has_deviations = isinstance(self.schedule, Chain) and self.schedule.sparsity is not None
        if has_deviations and isinstance(self.solver, LBFGS):
            raise ValueError("L-BFGS solves smooth problems; type solver=Adam(), or schedule=Chain(sparsity=None)")
        if not has_deviations and isinstance(self.solver, Adam) and self.solver.deviation_lr is not None:
            raise ValueError("deviation_lr has no deviations to learn; leave it out, or type Chain(sparsity=0.1)")

    @classmethod
    def _from_flat(cls: type[_Method], prior: Prior, settings: dict[str, Any]) -> _Method:
        """The method as published: a chain from pure noise and Adam, settings by their names alone."""
        of_chain, of_adam = ({f.name for f in fields(kind)} for kind in (Chain, Adam))
        flat = {{"inner_steps": "steps"}.get(name, name): value for name, value in settings.items()}
        own = {k: v for k, v in flat.items() if k not in of_chain | of_adam}
        chain, adam = ({k: v for k, v in flat.items() if k in names} for names in (of_chain, of_adam))
        return cls(prior, schedule=Chain(**chain), solver=Adam(**adam), **own)

    def reconstruct(self, posterior: Posterior, plan: Plan, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """Algorithm 1."""
        x, layers = plan.first_image, None
        for stage in plan.stages:
            likelihood = self.schedule.likelihood(posterior, plan, stage, x)
            layers = self.schedule.start(posterior, stage, x, layers)
            x, cost = self.fit(posterior, stage, layers, likelihood, monitor)
            for finish in stage.finishing:
                x = finish(posterior, x)
            monitor.record(posterior, stage, x, cost, likelihood)
        return x, self.score(posterior, plan, x, cost)

    def fit(
        self, posterior: Posterior, stage: Stage, layers: Layers, likelihood: Likelihood, monitor: Monitor
    ) -> tuple[Tensor, Tensor]:
        """The layers from the image back to the noise, then forward; the images, and the objectives of their layer."""
        target, costs = posterior.profiled(likelihood), []
        for i in reversed(range(len(layers.variables))):
            problem = self.schedule.problem(posterior, stage, layers, i, target)
            minimum = monitor.solve(self.solver, problem, layers.variables[i], posterior, stage)
            layers.variables[i] = minimum.variables
            costs.append(minimum.value)
            target = LatentTerm(minimum.variables["latent"])
        return posterior.images(layers.forward(posterior)), costs[0]

    def score(self, posterior: Posterior, plan: Plan, x: Tensor, cost: Tensor) -> Tensor:
        """
        By what a sample is chosen where parameters are unknown, (n,): the objective, or the negative log posterior.

        Of Gaussian noise y is explained no better than the noise: to explain some of the noise, too, makes no sample
        likelier.
        """
        if posterior.nuisance is None or posterior.num_samples == 1 or isinstance(self.schedule, Chain):
            return cost
        likelihood, n = self.schedule.likelihood(posterior, plan, plan.stages[-1], x), posterior.num_samples
        if isinstance(likelihood, Gaussian):
            likelihood = likelihood.gaussian(posterior.mean(likelihood.variance).repeat(n))
            return likelihood(x).clamp(min=likelihood.observed / 2) + negative_elbo(posterior, x)
        return likelihood(x) + negative_elbo(posterior, x)

    def _likelihoods(self, y: Measurements, forward: ForwardModel) -> list[Likelihood]:
        if isinstance(self.schedule, Chain):
            return super()._likelihoods(y, forward)
        settings: dict[str, Any] = {"noise_level": self.noise_level, "data_fidelity": self.data_fidelity}
        return observe(y, forward, num_samples=self.num_samples, **settings)

    def _unknown(self) -> dict[str, Guess] | None:
        return self.unknown  # type: ignore[return-value]

    def _starts_from_latent(self) -> bool:
        return not isinstance(self.schedule, Levels)


def _one_number(noise_level: float) -> float:
    """A noise level, checked."""
    shape = tuple(getattr(noise_level, "shape", ()))
    if shape:
        raise TypeError(
            f"noise_level has shape {shape}, and is one number for all measurements; leave it out, and type "
            "physics.noise_model = deepinv.physics.GaussianNoise(sigma) with a sigma for each"
        )
    if noise_level == 0:
        raise ValueError(
            "noise_level=0: leave it out, and what noise there is is estimated, or type 1e-3 for next to none"
        )
    check_settings(steps={}, rates={"noise_level": noise_level}, weights={})
    return float(noise_level)
