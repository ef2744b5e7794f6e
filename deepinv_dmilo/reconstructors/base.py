"""What every reconstructor of this package shares: settings, the door, the start, metrics and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.loss.metric import PSNR
from deepinv.models import Denoiser, Reconstructor
from deepinv.optim import DataFidelity
from deepinv.physics import Physics
from torch import Tensor
from tqdm.auto import tqdm

from deepinv_dmilo.core.data import check_fidelity
from deepinv_dmilo.core.door import check_inputs, check_settings
from deepinv_dmilo.core.draws import Draws, check_rng
from deepinv_dmilo.core.measurements import Measurements, parts, working_dtype
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.core.operator import Operator
from deepinv_dmilo.core.prior import Level, Prior
from deepinv_dmilo.core.problem import Problem, Variables
from deepinv_dmilo.core.projection import STANDSTILL, gradient_steps
from deepinv_dmilo.core.solvers import Solution, Solver
from deepinv_dmilo.priors.denoiser import DenoiserPrior

Self = TypeVar("Self", bound="PriorReconstructor")

ADVICE = "lower latent_lr (or lr, step_size), or use float32 weights"


@dataclass(eq=False, repr=False)
class PriorReconstructor(Reconstructor):
    """
    A deepinv reconstructor that optimises latents of a prior; subclasses add settings and write ``_iterates``.

    The settings are the fields of the class, each written once: the constructor, its errors and what is printed follow
    from them.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param int max_passes: forward and backward passes of the network that an image may take, its samples together.
    :param int num_samples: reconstructions of each image, from different noise; their mean is returned.
    :param int micro_batch: how many reconstructions go through the network at once; None: all.
    :param bool verbose: show a progress bar.
    :param torch.Generator, int rng: where the noise is drawn from, or a seed: the same noise for every image.
    """

    #: settings of the paper, by task
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: where a setting is found that the constructor does not take
    moved: ClassVar[dict[str, str]] = {}

    prior: Prior
    _: KW_ONLY
    max_passes: int | None = None
    num_samples: int = 1
    micro_batch: int | None = None
    verbose: bool = False
    rng: torch.Generator | int = 0

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        """A torch module before its fields are set; refuses settings that it does not have."""
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known:
                hint = cls.moved.get(name, f"type some of {', '.join(known)}")
                raise TypeError(f"{cls.__name__} has no setting {name!r}: {hint}")
        self = super().__new__(cls)
        Reconstructor.__init__(self)
        return self

    def __post_init__(self) -> None:
        if isinstance(self.prior, Denoiser):
            self.prior = DenoiserPrior(self.prior)
        if not isinstance(self.prior, Prior):
            raise TypeError(
                f"prior is a {type(self.prior).__name__}; pass DiffusionPrior.from_pretrained(NAME), "
                "DiffusionPrior(network, scheduler) or a deepinv denoiser"
            )
        check_rng(self.rng)
        steps = {name: getattr(self, name) for name in ("max_passes", "num_samples", "micro_batch")}
        check_settings(steps={k: v for k, v in steps.items() if v is not None}, rates={}, weights={})

    @classmethod
    def from_preset(cls: type[Self], name: str, prior: Prior, **overrides: Any) -> Self:
        """
        The method with the paper's settings for a task.

        :param str name: one of ``presets``: inpainting, super_resolution, deblurring, nonlinear_deblurring.
        :param Prior prior: the prior.
        :param overrides: settings that replace the preset's, e.g. ``outer_steps=2``.
        :return: the reconstructor.
        """
        if name not in cls.presets:
            raise ValueError(f"no preset {name!r} for {cls.__name__}; type one of {', '.join(cls.presets)}")
        return cls._from_flat(prior, {**cls.presets[name], **overrides})

    @classmethod
    def _from_flat(cls: type[Self], prior: Prior, settings: dict[str, Any]) -> Self:
        """The method from settings by their names alone."""
        return cls(prior, **settings)

    def check(self, y: Measurements, physics: Physics, init: Tensor | None = None) -> tuple[int, ...]:
        """
        Check measurements, physics and start against each other and the prior, as :meth:`forward` does first.

        :return: the shape (B, C, H, W) of the images.
        :raises TypeError, ValueError: they do not fit; says which and what to type.
        """
        shape = check_inputs(y, physics, self.prior, init)
        if init is not None and self.num_samples > 1 and not self._draws_after_init():
            raise ValueError("init is the one start of all samples; type num_samples=1, or leave init out")
        return shape

    def forward(
        self,
        y: Measurements,
        physics: Physics,
        *,
        init: Tensor | None = None,
        x_gt: Tensor | None = None,
        compute_metrics: bool = False,
        return_std: bool = False,
    ) -> Any:
        r"""
        Reconstruct images from measurements; no ground truth is used.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements of B images, any shape, real or complex.
        :param deepinv.physics.Physics physics: forward operator, differentiable, acting on images in [0, 1].
        :param torch.Tensor init: start, shape (B, C, H, W): the first latent z, about standard normal, of a chain from
            pure noise (DMPlug, ``schedule=Chain()``); the first image, in [0, 1], of a schedule of levels.
        :param torch.Tensor x_gt: ground truth in [0, 1], shape (B, C, H, W); used for the metric ``psnr`` alone.
        :param bool compute_metrics: also return ``cost`` (objective of the last layer), ``residual`` (root mean
            square of A(x) - y), ``passes`` (network passes so far) and, given ``x_gt``, ``psnr`` (dB), each a list of
            B lists with a value per outer step (DMPlug: before each of its steps, and at the end).
        :param bool return_std: also return the standard deviation over the samples, shape (B, C, H, W).
        :return: images in [0, 1], shape (B, C, H, W), detached, the last iterates, mean over the samples; a tuple
            (images, standard deviations, metrics) of what was asked for.
        :raises TypeError, ValueError: y, physics, prior and init do not fit; says which and what to type.
        :raises FloatingPointError: the objective stopped being finite.
        """
        if return_std and self.num_samples == 1:
            raise ValueError("return_std=True needs several samples; type num_samples=4")
        with torch.inference_mode(False), torch.no_grad(), self.prior.frozen():
            shape = self.check(y, physics, init)
            if x_gt is not None and not (isinstance(x_gt, Tensor) and tuple(x_gt.shape) == shape):
                given = tuple(x_gt.shape) if isinstance(x_gt, Tensor) else type(x_gt).__name__
                raise ValueError(f"x_gt is {given}; pass the ground truth of the batch, a tensor of shape {shape}")
            run = Run(self, y.clone(), physics, shape, init, x_gt, compute_metrics)  # a plain tensor, whatever y is
            samples = run.last_of(self._iterates)
            images = run.observation.mean(samples)
            run.observation.warn_if_unexplained(images)
        result: list[Any] = [images]
        if return_std:
            result.append(samples.view(self.num_samples, *shape).std(0))
        if compute_metrics:
            result.append(run.metrics)
        return result[0] if len(result) == 1 else tuple(result)

    def _iterates(self, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
        """The algorithm: after each outer step, images in [0, 1], (S * B, C, H, W), and their objectives, (S * B,)."""
        raise NotImplementedError

    def _draws_after_init(self) -> bool:
        """Whether samples that start from the same init differ."""
        return False

    def _solves(self) -> int:
        """How many problems ``_iterates`` solves."""
        raise NotImplementedError

    def _passes_per_step(self) -> int:
        """Passes of the network that a step of the solver takes."""
        return 1

    def _solver(self) -> Solver:
        raise NotImplementedError

    def _steps(self) -> int:
        """Steps of the solver that each problem may take."""
        solver = self._solver()
        if self.max_passes is None:
            return solver.steps or 20
        share = self.max_passes // (self.num_samples * self._solves() * self._passes_per_step())
        return share if solver.steps is None else min(solver.steps, share)

    def _check_budget(self) -> None:
        """Refuse a budget that is no step for each problem."""
        if self.max_passes is not None and self._steps() < 1:
            needed = self.num_samples * self._solves() * self._passes_per_step()
            raise ValueError(
                f"max_passes={self.max_passes} is not a pass for each layer problem and sample; type at least "
                f"{needed}, or fewer levels, outer_steps or num_samples"
            )

    def extra_repr(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "prior"}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items() if not isinstance(v, torch.Generator))


class Run:
    """One call of a reconstructor: what it observes and draws; it solves, counts passes and keeps metrics."""

    def __init__(
        self,
        model: PriorReconstructor,
        y: Measurements,
        physics: Physics,
        shape: tuple[int, ...],
        init: Tensor | None,
        x_gt: Tensor | None,
        compute_metrics: bool,
    ) -> None:
        self.model, self.prior, self.shape, self.num_samples = model, model.prior, shape, model.num_samples
        rows = shape[0] * model.num_samples
        self.like = torch.empty(0, dtype=working_dtype(y), device=parts(y)[0].device)
        noise_level: float | None = getattr(model, "noise_level", None)
        fidelity: DataFidelity | None = getattr(model, "data_fidelity", None)
        operator = Operator(physics, shape, self.like, single=rows == 1)
        self.observation = Observation(y, operator, model.num_samples, noise_level, fidelity)
        if fidelity is not None:
            check_fidelity(fidelity, self.observation.data, self.grey())
        self.draws = Draws(model.rng)
        #: the start of every sample, where the caller gave one
        self.init = None if init is None else init.detach().to(self.like).repeat(model.num_samples, 1, 1, 1)
        self.x_gt, self.compute_metrics = x_gt, compute_metrics
        self.steps, self.outer = model._steps(), 1
        self.passes = torch.zeros(rows, dtype=torch.long, device=self.like.device)
        self.metrics: dict[str, list[list[float]]] = {}
        total = self.steps * model._solves()
        self.bar = tqdm(total=total, desc=type(model).__name__, unit="step", disable=not model.verbose)

    @property
    def is_watched(self) -> bool:
        """Whether anybody looks at iterates on the way."""
        return self.model.verbose or self.compute_metrics

    def grey(self) -> Tensor:
        """Mid-grey images, (S * B, C, H, W)."""
        return self.like.new_full((self.num_samples * self.shape[0], *self.shape[1:]), 0.5)

    def noise(self) -> Tensor:
        """The next standard normal noise for every sample of every image, (S * B, C, H, W)."""
        return self.draws(self.shape, self.num_samples).to(self.like)

    def descend(self, x: Tensor, *, step_size: float | str = "auto", pull: Tensor | None = None, **how: Any) -> Tensor:
        """Gradient steps of images x, (S * B, C, H, W), on the measurements; "auto": of size ``1 / ||A||^2``."""
        if step_size != "auto":
            size = torch.full_like(x[:, 0, 0, 0], float(step_size))
            return gradient_steps(x, self.observation.data.energy, size=size, pull=pull, **how)
        norm = self.observation.operator.squared_norm
        auto = None if norm is None else 1 / norm.repeat(self.num_samples)
        return gradient_steps(x, self.observation.data.energy, size=auto, pull=pull, standstill=STANDSTILL, **how)

    def outer_steps(self, chains: list[tuple[Level, ...]]) -> Iterator[tuple[tuple[Level, ...], bool]]:
        """The chain of each outer step, and whether it is the last."""
        for self.outer, levels in enumerate(chains, 1):
            yield levels, self.outer == len(chains)

    def in_parts(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """A function of rows, of as many at a time as may go through the network."""
        size = self.model.micro_batch or len(tensors[0])
        return torch.cat([function(*part) for part in zip(*(t.split(size) for t in tensors), strict=True)])

    def last_of(self, iterates: Callable[[Run], Iterator[tuple[Tensor, Tensor]]]) -> Tensor:
        """Go through the outer steps; the last images, checked."""
        try:
            with torch.autocast(self.like.device.type, enabled=False):  # the caller's; the prior has its own
                for x, cost in iterates(self):
                    self.record(x, cost)
        finally:
            self.bar.close()
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"the last step left NaN or infinite pixels; {ADVICE}")
        return x

    def solve(self, problem: Problem, start: Variables, watch: Callable[..., object] | None = None) -> Solution:
        """The solution of a problem, its passes counted."""

        def look(v: Variables | None, value: Tensor | None) -> None:
            if watch is not None:
                watch(v, value)
            self.bar.update()

        seen = self.bar.n
        try:
            solution = self.model._solver()(problem, start, steps=self.steps, watch=look)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}, {problem.name}, outer step {self.outer}; {ADVICE}") from error
        self.bar.update(seen + self.steps - self.bar.n)  # what was not needed
        self.passes += solution.passes * self.model._passes_per_step()
        return solution

    def record(self, x: Tensor, cost: Tensor) -> None:
        """Keep the metrics of iterates (S * B, C, H, W), where somebody looks at them."""
        if not self.is_watched:
            return
        mean = self.observation.mean
        images = mean(x)
        residual = self.observation.images.rms(images)
        self.bar.set_postfix(outer=self.outer, residual=f"{residual.mean().item():.3g}")
        if self.compute_metrics:
            passes = self.passes.view(-1, len(images)).sum(0)
            values = {"cost": mean(cost), "residual": residual, "passes": passes}
            if self.x_gt is not None:
                values["psnr"] = PSNR()(images, self.x_gt.to(x))
            for name, value in values.items():
                curves = self.metrics.setdefault(name, [[] for _ in images])
                for curve, v in zip(curves, value.tolist(), strict=True):
                    curve.append(v)
