"""What all reconstructors share: settings, checks, the plan of a call and its result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.models import Denoiser
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.likelihood.constraints import Parameters
from deepinv_dmilo.likelihood.forward import ForwardModel, forward_model
from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements, parts, working_dtype
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.observe import mean_squares
from deepinv_dmilo.methods.configured import Configured
from deepinv_dmilo.methods.monitor import Monitor, chosen_rows, of_samples
from deepinv_dmilo.methods.scale import check_scale, warn_if_unexplained
from deepinv_dmilo.methods.solution import CallPlan, Solution
from deepinv_dmilo.methods.timing import estimated_seconds
from deepinv_dmilo.methods.validation import check_ground_truth, check_inputs, check_latent, check_misplaced
from deepinv_dmilo.methods.volumes import as_solved
from deepinv_dmilo.optim.solvers import SLOWER, Solver
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.priors.conditioning import unwrapped
from deepinv_dmilo.priors.denoiser import DenoiserPrior
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS, Budget, Plan, Planner, Stage
from deepinv_dmilo.utils.draws import Draws, check_not_sampled, check_rng
from deepinv_dmilo.utils.private import frozen, private
from deepinv_dmilo.utils.settings import check_flags, check_settings

CALLS_IF_BLIND = 400  # default calls of the network per sample in blind problems: ours
_Model = TypeVar("_Model", bound="PriorReconstructor")


@dataclass(eq=False, repr=False)
class PriorReconstructor(Configured):
    """
    A deepinv reconstructor that optimises latents of a prior; subclasses add settings and define ``reconstruct``.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param int max_calls: maximum number of forward passes of the network per image, for all samples; a forward and
        backward pass counts as two.
    :param int max_passes: ``max_passes=n`` is ``max_calls=2 * n``; type one of both.
    :param int num_samples: reconstructions of each image, from different noise; their mean is returned, in blind
        problems the most probable one.
    :param int micro_batch: reconstructions per pass of the network, of volumes slices; None: all.
    :param bool verbose: show a progress bar.
    :param torch.Generator, int rng: generator of the noise, or a seed, which gives every image the same noise.
    """

    #: default calls of the network per sample: ours
    calls_of_a_sample: ClassVar[int] = 200
    #: what to type where pixels become NaN or infinite
    if_not_finite: ClassVar[str] = SLOWER

    prior: Prior
    _: KW_ONLY
    max_calls: int | None = None
    max_passes: int | None = None
    num_samples: int = 1
    micro_batch: int | None = None
    verbose: bool = False
    rng: torch.Generator | int = 0

    def __post_init__(self) -> None:
        self._check()

    @property
    def schedule(self) -> Planner:
        """The schedule of the outer steps."""
        raise NotImplementedError

    @property
    def solver(self) -> Solver:
        """The solver of the layer problems."""
        raise NotImplementedError

    @property
    def unknown(self) -> Parameters | None:
        """First guesses of the nuisance parameters, for methods that solve blind problems."""
        return None

    def _check(self) -> None:
        """Check the settings, at construction and at each call, since they can be changed in between."""
        if isinstance(unwrapped(self.prior), Denoiser):
            self.prior = DenoiserPrior(self.prior)
        if not isinstance(self.prior, Prior):
            raise TypeError(
                f"prior is a {type(self.prior).__name__}; pass DiffusionPrior.from_pretrained(NAME), "
                "DiffusionPrior(network, scheduler) or a deepinv denoiser"
            )
        check_rng(self.rng)
        steps = {name: getattr(self, name) for name in ("max_calls", "max_passes", "num_samples", "micro_batch")}
        check_settings(steps={k: v for k, v in steps.items() if v is not None}, rates={}, weights={})
        check_flags(verbose=self.verbose)
        if self.max_calls is not None and self.max_passes is not None:
            raise ValueError(
                f"max_calls={self.max_calls} and max_passes={self.max_passes} both set the budget; type one of them"
            )
        for name, cost in (("max_calls", CALLS_OF_A_PASS), ("max_passes", 1)):
            if (given := getattr(self, name)) is not None:
                self._check_budget(f"{name}={given}", cost * self.num_samples)

    def _check_budget(self, given: str, cost: int) -> None:
        """Refuse a budget that is too small; ``cost`` is that of a pass for all samples, in its unit."""
        self._budget().check(given, self.schedule.least_problems, cost)

    def _budget(self) -> Budget:
        """The budget of one sample."""
        calls = self.max_calls if self.max_passes is None else CALLS_OF_A_PASS * self.max_passes
        if calls is not None:
            return Budget(calls // self.num_samples, self.solver.steps)
        default = CALLS_IF_BLIND if self.unknown else self.calls_of_a_sample
        return Budget(default if self.solver.steps is None else None, self.solver.steps)

    def check(self, y: Measurements, physics: Physics, init: Tensor | None = None) -> tuple[int, ...]:
        """
        Check settings, measurements, physics and ``init`` against each other, as :meth:`forward` does first.

        :return: the shape (B, C, H, W) of the images, of volumes (B, C, D, H, W).
        :raises TypeError, ValueError: they do not fit; the message says which and what to type.
        """
        with self._at_work() as model:
            posterior = model._posteriors(y, physics, init)[0]
            return tuple(posterior.prior.given(posterior.likelihood.forward.like).shape)

    def plan(self, y: Measurements, physics: Physics, *, init: Tensor | None = None) -> CallPlan:
        """
        The plan of a call, without running it; ``print`` it.

        Computes the first image, estimates the noise level if it is not given, and times this, one pass of the network
        and one evaluation of A. The parameters are those of :meth:`forward`.

        :return: the plan of each group of images, and an estimate of the run time in seconds.
        """
        with self._at_work() as model:
            if isinstance(self.rng, torch.Generator):  # keep its state for the call
                model.rng = torch.Generator(self.rng.device).set_state(self.rng.get_state())
            start = time.perf_counter()
            groups = model._groups(model._posteriors(y, physics, init))
            planning = time.perf_counter() - start
            most = [sum(map(model._evaluations, plan.stages)) for _, plan in groups]
            times = [estimated_seconds(*group, count) for group, count in zip(groups, most, strict=True)]
            network, operator = (sum(of_kind) for of_kind in zip(*times, strict=True))
            seconds = {"seconds": planning + network + operator, "seconds_in_network": network}
            return replace(CallPlan.of(groups, self.num_samples), **seconds)

    @contextmanager
    def _at_work(self: _Model) -> Iterator[_Model]:
        """
        A copy for one call in evaluation mode, independent of the caller's grad mode and autocast.

        It shares the weights and the generator, and takes no gradients of weights, so several threads can use a model.
        """
        kind = self.prior.device.type
        autocast = torch.autocast("cpu" if kind == "meta" else kind, enabled=False)  # meta has no autocast
        with torch.inference_mode(False), torch.no_grad(), autocast:
            yield frozen(self, shared=(self.rng,))

    def _posteriors(self, y: Measurements, physics: Physics, init: Tensor | None) -> list[Posterior]:
        """Check the input; one posterior for the images of known noise level, one for those of estimated noise."""
        self._check()
        physics = private(physics)
        if init is not None and self.schedule.starts_from_latent:
            check_latent(init, self.prior, self.num_samples)
        shape = check_inputs(y, physics, self.prior, init)
        prior, physics, shape, micro_batch = as_solved(self.prior, physics, shape, self.micro_batch)
        unknown: Any = self.unknown  # checked: Guess by name
        like = torch.empty(0, dtype=working_dtype(y), device=parts(y)[0].device)
        nuisance = Nuisance(unknown, physics, shape[0], self.num_samples, like) if unknown else None
        forward = forward_model(physics, shape, like, single=shape[0] * self.num_samples == 1, nuisance=nuisance)
        draws, posteriors = Draws(self.rng), []
        for one in self._likelihoods(y.clone(), forward):
            images = one.rows % shape[0]
            start = None if init is None else prior.solved(init.detach().to(like)[images])
            posterior = Posterior(prior.select(images), one, draws, self.num_samples, start, micro_batch)
            check_scale(posterior.first_samples.likelihood)
            posteriors.append(posterior)
        return posteriors

    def _likelihoods(self, y: Measurements, forward: ForwardModel) -> list[Likelihood]:
        """The likelihood of y; several, of some images each, if the noise level of some is known."""
        return mean_squares(y, forward, num_samples=self.num_samples)

    def forward(
        self,
        y: Measurements,
        physics: Physics,
        *,
        init: Tensor | None = None,
        x_gt: Tensor | None = None,
        compute_metrics: bool = False,
        return_unknown: bool = False,
        **misplaced: object,
    ) -> Any:
        r"""
        Reconstruct images from measurements, without ground truth.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements of B images, any shape, real or complex.
        :param deepinv.physics.Physics physics: forward operator, differentiable, acting on images in [0, 1].
        :param torch.Tensor init: start, shape (B, C, H, W): the first image, in [0, 1], of a schedule of levels; the
            first latent z, about standard normal, of a chain from pure noise (DMPlug, ``schedule=Chain()``), if the
            latents of the prior are pixels.
        :param torch.Tensor x_gt: ground truth in [0, 1], shape (B, C, H, W), for the metric ``psnr`` only.
        :param bool compute_metrics: also return a dictionary of lists of B lists with a value per outer step (DMPlug:
            before each of its steps, and at the end): ``cost`` (objective of the last layer; of a decoupled stage, the
            negative log-likelihood), ``residual`` (root mean square of A(x) - y), ``passes`` and ``calls`` (as the
            budget counts them, so far), with levels and Gaussian noise ``noise`` (its standard deviation, as given or
            estimated) and, with ``x_gt``, ``psnr`` (dB). In blind problems they are those of the sample of least
            objective.
        :param bool return_unknown: also return the nuisance parameters of the physics, a dictionary of tensors with a
            row for each image.
        :return: images in [0, 1], shape (B, C, H, W), detached: the mean over the samples, in blind problems the most
            probable sample; or a tuple (images, parameters, metrics) of those asked for.
        :raises TypeError, ValueError: y, physics, prior and init do not fit; the message says which and what to type.
        :raises FloatingPointError: the objective is not finite.
        """
        check_misplaced(misplaced, type(self).__name__, "compute_metrics, return_unknown", blind=bool(self.unknown))
        if return_unknown and not self.unknown:
            raise ValueError('return_unknown=True needs a blind problem; type DMILO(prior, unknown={"filter": kernel})')
        solution = self.solve(y, physics, init=init, x_gt=x_gt, compute_metrics=compute_metrics)
        result: list[Any] = [solution.images]
        if return_unknown:
            result.append(solution.parameters)
        if compute_metrics:
            result.append(solution.metrics)
        return result[0] if len(result) == 1 else tuple(result)

    def solve(
        self,
        y: Measurements,
        physics: Physics,
        *,
        init: Tensor | None = None,
        x_gt: Tensor | None = None,
        compute_metrics: bool = False,
    ) -> Solution:
        """
        Reconstruct images, and return all results of the call; the parameters are those of :meth:`forward`.

        :return: images, samples, nuisance parameters, metrics, the plan, and how each layer problem ended.
        """
        if x_gt is not None and not compute_metrics:
            raise ValueError("x_gt is only used for the metric psnr; type compute_metrics=True, or leave it out")
        check_not_sampled()
        with self._at_work() as model:
            return model._solution(model._posteriors(y, physics, init), x_gt, compute_metrics)

    def _solution(self, posteriors: list[Posterior], x_gt: Tensor | None, compute_metrics: bool) -> Solution:
        forward, prior = posteriors[0].likelihood.forward, posteriors[0].prior
        check_ground_truth(x_gt, prior.given(forward.like))
        groups, name, batch = self._groups(posteriors), type(self).__name__, forward.batch
        truth = None if x_gt is None else prior.solved(x_gt)
        monitor = Monitor(name, batch, self.num_samples, self.verbose, compute_metrics, truth)
        images = torch.empty_like(forward.like)
        samples = images.new_empty(batch, self.num_samples, *images.shape[1:])
        chosen, explained = torch.empty(batch, dtype=torch.long, device=images.device), []
        with monitor.showing(sum(plan.calls for _, plan in groups)):
            for posterior, plan in groups:
                x, score = self.reconstruct(posterior, plan, monitor)
                if not torch.isfinite(x).all():
                    raise FloatingPointError(f"the last step left NaN or infinite pixels; {self.if_not_finite}")
                numbers, places = posterior.image_numbers, chosen_rows(posterior, score)
                images[numbers] = of_samples(posterior, x, places).to(images)
                samples[numbers] = x.view(self.num_samples, -1, *x.shape[1:]).transpose(0, 1).to(images)
                chosen[numbers] = posterior.rows[places]
                explained.append((posterior.likelihood.select(places), images[numbers]))
        warn_if_unexplained(explained)
        found = {} if forward.nuisance is None else forward.nuisance.values(chosen)
        parameters = {name: t.detach() for name, t in found.items()}
        images, samples, plans = prior.given(images), prior.given(samples), CallPlan.of(groups, self.num_samples)
        return Solution(images, samples, parameters, monitor.metrics, plans, monitor.ended)

    def _groups(self, posteriors: list[Posterior]) -> list[tuple[Posterior, Plan]]:
        """The groups of images with equal plans."""
        return [group for posterior in posteriors for group in self.schedule.plan(posterior, self._budget())]

    def _evaluations(self, stage: Stage) -> int:
        """The maximum number of evaluations of A and its adjoint in a stage."""
        return stage.steps

    def reconstruct(self, posterior: Posterior, plan: Plan, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """
        The algorithm, for the images of one group.

        :param Posterior posterior: of all samples of the images: n rows.
        :param Plan plan: the plan of the group.
        :param Monitor monitor: calls the solver and records progress.
        :return: images in [0, 1], (n, C, H, W), and a score of each, (n,), the lowest of the best sample.
        """
        raise NotImplementedError
