"""What every reconstructor of this package shares: the door, the start, metrics and progress."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.loss.metric import PSNR
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from torch import Tensor
from tqdm.auto import tqdm

from deepinv_dmilo.core.measurements import Measurements, check_inputs, parts, residual, working_dtype
from deepinv_dmilo.core.noise import warn_if_unexplained
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.core.problem import ADVICE
from deepinv_dmilo.priors.diffusers import DiffusionPrior

Self = TypeVar("Self", bound="PriorReconstructor")


class PriorReconstructor(Reconstructor):
    """
    A deepinv reconstructor that optimises latents of a diffusion prior; subclasses write ``_solve``.

    :param DiffusionPrior prior: the prior.
    :param int max_passes: forward and backward passes of the network that an image may take, its samples together.
    :param int num_samples: reconstructions of each image, from different noise; their mean is returned.
    :param int micro_batch: how many reconstructions go through the network at once; None: all.
    :param bool verbose: show a progress bar.
    :param torch.Generator, int rng: where the noise is drawn from, or a seed: the same noise for every image.
    """

    #: settings of the paper, by task
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        max_passes: int | None,
        num_samples: int,
        micro_batch: int | None,
        verbose: bool,
        rng: torch.Generator | int,
    ) -> None:
        if not isinstance(prior, DiffusionPrior):
            raise TypeError(
                f"prior is a {type(prior).__name__}; pass DiffusionPrior.from_pretrained(NAME) or "
                "DiffusionPrior(unet, scheduler)"
            )
        if isinstance(rng, bool) or not isinstance(rng, torch.Generator | int):
            raise TypeError(f"rng is a {type(rng).__name__}; pass a seed, e.g. 0, or torch.Generator().manual_seed(0)")
        steps = {"max_passes": max_passes, "num_samples": num_samples, "micro_batch": micro_batch}
        check_settings(steps={k: v for k, v in steps.items() if v is not None}, rates={}, weights={})
        super().__init__(device=prior.device)
        self.prior: DiffusionPrior = prior
        self.max_passes = max_passes
        self.num_samples = num_samples
        self.micro_batch = micro_batch
        self.verbose = verbose
        self.rng = rng

    @classmethod
    def from_preset(cls: type[Self], name: str, prior: DiffusionPrior, **overrides: Any) -> Self:
        """
        The method with the paper's settings for a task.

        :param str name: one of ``presets``: inpainting, super_resolution, deblurring, nonlinear_deblurring.
        :param DiffusionPrior prior: the prior (paper: three layers).
        :param overrides: constructor arguments that replace the preset's, e.g. ``outer_steps=2``.
        :return: the reconstructor.
        """
        if name not in cls.presets:
            raise ValueError(f"no preset {name!r} for {cls.__name__}; type one of {', '.join(cls.presets)}")
        return cls(prior, **{**cls.presets[name], **overrides})

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
            pure noise (DMPlug, ``levels=None``); the first image, in [0, 1], of a schedule of levels.
        :param torch.Tensor x_gt: ground truth in [0, 1], shape (B, C, H, W); used for the metric ``psnr`` alone.
        :param bool compute_metrics: also return ``cost`` (objective of the last layer), ``residual`` (root mean
            square of A(x) - y), ``passes`` (network passes so far) and, given ``x_gt``, ``psnr`` (dB), each a list of
            B lists with a value per outer step (DMPlug: before each of its steps).
        :param bool return_std: also return the standard deviation over the samples, shape (B, C, H, W).
        :return: images in [0, 1], shape (B, C, H, W), detached, the last iterates, mean over the samples; a tuple
            (images, standard deviations, metrics) of what was asked for.
        :raises TypeError, ValueError: y, physics, prior and init do not fit; says which and what to type.
        :raises FloatingPointError: the objective stopped being finite.
        """
        if return_std and self.num_samples == 1:
            raise ValueError("return_std=True needs several samples; type num_samples=4")
        with torch.inference_mode(False), torch.no_grad(), self.prior.frozen():
            shape = check_inputs(y, physics, self.prior, init)
            if x_gt is not None and not (isinstance(x_gt, Tensor) and tuple(x_gt.shape) == shape):
                given = tuple(x_gt.shape) if isinstance(x_gt, Tensor) else type(x_gt).__name__
                raise ValueError(f"x_gt is {given}; pass the ground truth of the batch, a tensor of shape {shape}")
            y = y.clone()  # inside, a plain tensor even when the caller's is an inference tensor
            if init is not None:
                if self.num_samples > 1 and not self._draws_after_init():
                    raise ValueError("init is the one start of all samples; type num_samples=1, or leave init out")
                init = init.detach().to(self.prior.device, working_dtype(y)).repeat(self.num_samples, 1, 1, 1)
            observation = Observation(y, physics, self.num_samples)
            trace = Trace(observation, x_gt, compute_metrics, self.verbose, self._total_steps(), type(self).__name__)
            try:
                with torch.autocast(self.prior.device.type, enabled=False):  # the caller's; the prior has its own
                    samples = self._solve(observation, shape, init, trace)
            finally:
                trace.bar.close()
            if not torch.isfinite(samples).all():
                raise FloatingPointError(f"the last step left NaN or infinite pixels; {ADVICE}")
            images = observation.mean(samples)
            warn_if_unexplained(images, y, physics, getattr(self, "noise_level", None))
            result: list[Any] = [images]
            if return_std:
                result.append(samples.view(self.num_samples, *shape).std(0))
            if compute_metrics:
                result.append(trace.metrics)
        return result[0] if len(result) == 1 else tuple(result)

    def _solve(self, observation: Observation, shape: tuple[int, ...], init: Tensor | None, trace: Trace) -> Tensor:
        """The algorithm: images in [0, 1], (S * B, C, H, W), from measurements and the start, if there is one."""
        raise NotImplementedError

    def _draws_after_init(self) -> bool:
        """Whether samples that start from the same init differ."""
        return False

    def _total_steps(self) -> int:
        """How many steps ``_solve`` takes at most."""
        raise NotImplementedError

    def _noise(self, shape: tuple[int, ...], draw: int, dtype: torch.dtype) -> Tensor:
        """Standard normal noise for every sample of every image, (S * B, C, H, W); ``draw`` counts the calls."""
        noises = [self.prior.latent(shape, self.rng, draw=draw * self.num_samples + s) for s in range(self.num_samples)]
        return torch.cat(noises).to(dtype)

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        """The rows in parts that go through the network at once."""
        return z.split(self.micro_batch or len(z))

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in ("training", "device")}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items() if not isinstance(v, torch.Generator))


class Trace:
    """Passes, progress bar and metrics of one reconstruction; silent and without metrics it never reads a tensor."""

    def __init__(
        self,
        observation: Observation,
        x_gt: Tensor | None,
        compute_metrics: bool,
        verbose: bool,
        total: int,
        name: str,
    ) -> None:
        self.observation, self.x_gt = observation, x_gt
        self.compute_metrics, self.verbose = compute_metrics, verbose
        self.bar = tqdm(total=total, desc=name, unit="step", disable=not verbose)
        self.metrics: dict[str, list[list[float]]] = {}
        self.rms: Tensor | None = None  # residual of each image, last recorded
        first = parts(observation.y)[0]
        rows = observation.num_samples * len(first)
        self.passes = torch.zeros(rows, dtype=torch.long, device=first.device)

    def on_pass(self, rows: Tensor | None, passes: int = 1) -> None:
        """Count a step of some rows, None for all, of so many network passes."""
        self.passes[slice(None) if rows is None else rows] += passes
        self.bar.update()

    def show(self, **values: object) -> None:
        """Write values, and the residual last recorded, beside the bar."""
        if self.verbose:
            rms = "?" if self.rms is None else f"{self.rms.mean().item():.3g}"
            self.bar.set_postfix({**values, "residual": rms})

    def record(self, x: Tensor, cost: Tensor) -> None:
        """Add the metrics of iterates (S * B, C, H, W), where somebody looks at them."""
        if not (self.verbose or self.compute_metrics):
            return
        images = self.observation.mean(x)
        self.rms = residual(images, self.observation.y, self.observation.physics)
        if self.compute_metrics:
            mean = self.observation.mean
            passes = self.passes.view(-1, len(images)).sum(0)
            values = {"cost": mean(cost), "residual": self.rms, "passes": passes}
            if self.x_gt is not None:
                values["psnr"] = PSNR()(images, self.x_gt.to(x))
            for name, value in values.items():
                curves = self.metrics.setdefault(name, [[] for _ in images])
                for curve, v in zip(curves, value.tolist(), strict=True):
                    curve.append(v)


def check_settings(*, steps: dict[str, int], rates: dict[str, float], weights: dict[str, float]) -> None:
    """Refuse step numbers that are not whole and positive, rates that are not positive, weights that are negative."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: type a whole number of at least 1")
    for name, number in {**rates, **weights}.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"{name}={number!r}: type a finite number, such as 0.01")
        if number < 0 or (number == 0 and name in rates):
            raise ValueError(f"{name}={number!r}: type a number {'above' if name in rates else 'of at least'} 0")


def check_choice(name: str, value: str, choices: tuple[str, ...], other: str = "") -> None:
    """Refuse a word that is none of the choices."""
    if value not in choices:
        options = [repr(choice) for choice in choices] + ([other] if other else [])
        raise ValueError(f"{name}={value!r}: type {' or '.join(options)}")
