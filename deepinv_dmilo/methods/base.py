"""What every reconstructor of this package shares: settings, the door, the start, metrics and progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements
from deepinv_dmilo.methods.run import Run
from deepinv_dmilo.methods.scale import warn_if_unexplained
from deepinv_dmilo.methods.validation import check_inputs
from deepinv_dmilo.optim.solvers import Solver
from deepinv_dmilo.priors.conditioning import unwrapped
from deepinv_dmilo.priors.denoiser import DenoiserPrior
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.utils.draws import check_new_draws, check_rng
from deepinv_dmilo.utils.private import frozen, private
from deepinv_dmilo.utils.settings import check_flags, check_settings

# Of the network for a sample, where neither a budget nor the solver's steps are given, and where parameters of the
# physics are found with it: ours.
PASSES_OF_A_SAMPLE, WITH_UNKNOWN = 100, 200
_Model = TypeVar("_Model", bound="PriorReconstructor")


@dataclass(eq=False, repr=False)
class PriorReconstructor(Reconstructor):
    """
    A deepinv reconstructor that optimises latents of a prior; subclasses add settings and write ``_iterates``.

    The settings are the fields of the class, each written once: the constructor, its errors and what is printed follow
    from them.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param int max_passes: forward and backward passes of the network that an image may take, its samples together.
    :param int num_samples: reconstructions of each image, from different noise; their mean is returned, or with unknown
        parameters the most probable one.
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

    def __init_subclass__(cls, **settings: Any) -> None:
        """A subclass is a module, equal to itself alone, under a bare ``@dataclass`` too, which keeps what is set."""
        super().__init_subclass__(**settings)
        for name in ("__hash__", "__eq__", "__repr__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        """A torch module before its fields are set; refuses settings that its constructor does not take."""
        taken = list(signature(cls.__init__).parameters.values())[1:]
        known = [p.name for p in taken if p.kind is not Parameter.VAR_POSITIONAL]
        takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in taken)  # of a subclass's own: it knows which
        for name in () if takes_any else settings:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = cls.moved.get(name, f"type {close[0]}" if close else f"type some of {', '.join(known)}")
                raise TypeError(f"{cls.__name__} has no setting {name!r}: {hint}")
        self = super().__new__(cls)
        Reconstructor.__init__(self)
        return self

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Refuse settings that do not fit; at the start, and at each call, since they may have been changed."""
        if isinstance(unwrapped(self.prior), Denoiser):
            self.prior = DenoiserPrior(self.prior)
        if not isinstance(self.prior, Prior):
            raise TypeError(
                f"prior is a {type(self.prior).__name__}; pass DiffusionPrior.from_pretrained(NAME), "
                "DiffusionPrior(network, scheduler) or a deepinv denoiser"
            )
        check_rng(self.rng)
        steps = {name: getattr(self, name) for name in ("max_passes", "num_samples", "micro_batch")}
        check_settings(steps={k: v for k, v in steps.items() if v is not None}, rates={}, weights={})
        check_flags(verbose=self.verbose)

    @classmethod
    def from_preset(cls: type[_Model], name: str, prior: Prior, **overrides: Any) -> _Model:
        """
        The method with the paper's settings for a task.

        :param str name: one of ``presets``: inpainting, super_resolution, deblurring, nonlinear_deblurring.
        :param Prior prior: the prior.
        :param overrides: settings that replace the preset's, e.g. ``outer_steps=2``.
        :return: the reconstructor.
        """
        if not isinstance(name, str):
            raise TypeError(f"from_preset takes the task first: type {cls.__name__}.from_preset('inpainting', prior)")
        preset = cls.presets.get(name.replace("-", "_"))
        if preset is None:
            raise ValueError(f"no preset {name!r} for {cls.__name__}; type one of {', '.join(cls.presets)}")
        if parts := overrides.keys() & {"schedule", "solver"}:
            raise TypeError(
                f"from_preset sets {' and '.join(sorted(parts))} itself; type names of their settings, such as "
                f"outer_steps=2, inner_steps=50, or {cls.__name__}(prior, ...)"
            )
        return cls._from_flat(prior, {**preset, **overrides})

    @classmethod
    def _from_flat(cls: type[_Model], prior: Prior, settings: dict[str, Any]) -> _Model:
        """The method from settings by their names alone."""
        return cls(prior, **settings)

    def check(self, y: Measurements, physics: Physics, init: Tensor | None = None) -> tuple[int, ...]:
        """
        Check settings, measurements, physics and start against each other, as :meth:`forward` does first.

        :return: the shape (B, C, H, W) of the images.
        :raises TypeError, ValueError: they do not fit; says which and what to type.
        """
        with self._at_work() as model:
            return model._open(y, physics, init, None, False).shape

    @contextmanager
    def _at_work(self: _Model) -> Iterator[_Model]:
        """
        A copy for one call, and the grad mode and types that all work has, whatever the caller's are.

        The copy shares weights and generator; it is in evaluation mode and takes no gradients of weights. So a model
        may serve several threads.
        """
        kind = self.prior.device.type
        autocast = torch.autocast("cpu" if kind == "meta" else kind, enabled=False)  # meta knows none
        with torch.inference_mode(False), torch.no_grad(), autocast:  # the prior has its own
            yield frozen(self, shared=(self.rng,))

    def _open(
        self, y: Measurements, physics: Physics, init: Tensor | None, x_gt: Tensor | None, compute_metrics: bool
    ) -> Run:
        """A call with all that it was given checked; y is a plain tensor then, and physics a copy for this call."""
        self._check()
        physics = private(physics)
        shape = self._shape(y, physics, init)
        if x_gt is not None and not (isinstance(x_gt, Tensor) and tuple(x_gt.shape) == shape):
            given = tuple(x_gt.shape) if isinstance(x_gt, Tensor) else type(x_gt).__name__
            raise ValueError(f"x_gt is {given}; pass the ground truth of the batch, a tensor of shape {shape}")
        return Run(self, y.clone(), physics, shape, init, x_gt, compute_metrics)

    def _shape(self, y: Measurements, physics: Physics, init: Tensor | None) -> tuple[int, ...]:
        """The shape (B, C, H, W) of the images, once y, physics, prior and start fit each other."""
        if init is None or self._draws_after_init():
            return check_inputs(y, physics, self.prior, init)
        if self.num_samples > 1:
            raise ValueError("init is the one start of all samples; type num_samples=1, or leave init out")
        if not self.prior.affine:
            raise ValueError(
                "init is a latent of the autoencoder, which is not taken; leave it out, the noise follows rng"
            )
        shape = check_inputs(y, physics, self.prior, init)
        if self.prior.for_images(*shape[2:]) is not self.prior:
            raise ValueError(
                f"init has shape {shape}, which the prior's network does not take as it is; leave init out, or pad or "
                "crop the images"
            )
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
        return_unknown: bool = False,
        **misplaced: object,
    ) -> Any:
        r"""
        Reconstruct images from measurements; no ground truth is used.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements of B images, any shape, real or complex.
        :param deepinv.physics.Physics physics: forward operator, differentiable, acting on images in [0, 1].
        :param torch.Tensor init: start, shape (B, C, H, W): the first latent z, about standard normal, of a chain from
            pure noise (DMPlug, ``schedule=Chain()``), of pixels only; the first image, in [0, 1], of a schedule of
            levels.
        :param torch.Tensor x_gt: ground truth in [0, 1], shape (B, C, H, W); used for the metric ``psnr`` alone.
        :param bool compute_metrics: also return ``cost`` (objective of the last layer), ``residual`` (root mean
            square of A(x) - y), ``passes`` (network passes so far), with levels and Gaussian noise ``noise`` (standard
            deviation that a measurement is taken to have; where nobody told it, an estimate) and, given ``x_gt``,
            ``psnr`` (dB), each a list of B lists with a value per outer step (DMPlug: before each of its steps, and at
            the end); with unknown parameters those of the sample of least objective until the last step.
        :param bool return_std: also return the standard deviation over the samples, about their mean, shape
            (B, C, H, W).
        :param bool return_unknown: also return the parameters of the physics that were not known, a dictionary of
            tensors with a row for each image.
        :return: images in [0, 1], shape (B, C, H, W), detached, the last iterates, mean over the samples (with unknown
            parameters the most probable sample); a tuple (images, standard deviations, parameters, metrics) of what
            was asked for.
        :raises TypeError, ValueError: y, physics, prior and init do not fit; says which and what to type.
        :raises FloatingPointError: the objective stopped being finite.
        """
        for name in misplaced:
            raise TypeError(
                f"a call takes no {name!r} but y, physics, init, x_gt, compute_metrics, return_std and return_unknown; "
                f"a setting goes to the model: type {type(self).__name__}(prior, {name}=...)(y, physics)"
            )
        if return_std and self.num_samples == 1:
            raise ValueError("return_std=True needs several samples; type num_samples=4")
        if x_gt is not None and not compute_metrics:
            raise ValueError("x_gt is for a metric alone; type compute_metrics=True, or leave it out")
        if return_unknown and not getattr(self, "unknown", None):
            raise ValueError(
                'return_unknown=True needs unknown parameters: DMILO(prior, unknown={"filter": kernel}), say'
            )
        check_new_draws(self.rng)
        with self._at_work() as model:
            run = model._open(y, physics, init, x_gt, compute_metrics)
            images, samples = (t.to(run.like) for t in run.last_of(model._iterates))
            warn_if_unexplained(run.observation, images)
        result: list[Any] = [images]
        if return_std:
            result.append(samples.view(self.num_samples, *run.shape).std(0))
        if run.unknowns is not None and return_unknown:
            result.append(run.unknowns.found())
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
        """How many problems ``_iterates`` solves, at most."""
        raise NotImplementedError

    def _least_solves(self) -> int:
        """How many problems it cannot do without."""
        return self._solves()

    def _passes_per_step(self) -> int:
        """Passes of the network that a step of the solver takes."""
        return 1

    def _solver(self) -> Solver:
        raise NotImplementedError

    def _steps(self, solves: int) -> int:
        """Steps of the solver that each of so many problems may take."""
        solver = self._solver()
        budget = self._passes_of_a_sample()
        if budget is None:
            return solver.steps or 0
        share = budget // (solves * self._passes_per_step())
        return share if solver.steps is None else min(solver.steps, share)

    def _passes_of_a_sample(self) -> int | None:
        """Passes of the network that a sample may take; None: as many as the steps of the solver come to."""
        if self.max_passes is not None:
            return self.max_passes // self.num_samples
        default = WITH_UNKNOWN if getattr(self, "unknown", None) else PASSES_OF_A_SAMPLE
        return default if self._solver().steps is None else None

    def _check_budget(self) -> None:
        """Refuse a budget that is no step for each problem that must be solved."""
        if self.max_passes is not None and self._steps(self._least_solves()) < 1:
            needed = self.num_samples * self._least_solves() * self._passes_per_step()
            raise ValueError(
                f"max_passes={self.max_passes} is not a pass for each layer problem and sample; type at least "
                f"{needed}, or fewer layers, outer steps or samples"
            )

    def extra_repr(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {k: v for k, v in shown.items() if not isinstance(v, torch.nn.Module)}  # torch prints those itself
        shown = {k: f"a generator on {v.device}" if isinstance(v, torch.Generator) else v for k, v in shown.items()}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())
