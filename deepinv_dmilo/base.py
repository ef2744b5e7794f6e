"""What every reconstructor of this package shares: the door, the start, metrics and progress."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.loss.metric import PSNR
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from torch import Tensor
from tqdm.auto import tqdm

from deepinv_dmilo.layer import ADVICE, Fit
from deepinv_dmilo.measurements import Measurements, check_inputs, mean_energy, measure, residual, working_dtype
from deepinv_dmilo.prior import DiffusionPrior

Self = TypeVar("Self", bound="PriorReconstructor")


class PriorReconstructor(Reconstructor):
    """
    A deepinv reconstructor that optimises latents of a diffusion prior; subclasses write ``_solve``.

    :param DiffusionPrior prior: the prior.
    :param bool verbose: show a progress bar.
    :param torch.Generator rng: where the first latent is drawn from; None: a fixed seed, the same for every image.
    """

    #: settings of the paper, by task
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, prior: DiffusionPrior, *, verbose: bool, rng: torch.Generator | None) -> None:
        if not isinstance(prior, DiffusionPrior):
            raise TypeError(
                f"prior is a {type(prior).__name__}; pass DiffusionPrior.from_pretrained(NAME) or "
                "DiffusionPrior(unet, scheduler)"
            )
        if rng is not None and not isinstance(rng, torch.Generator):
            raise TypeError(f"rng is a {type(rng).__name__}; pass torch.Generator().manual_seed(0), or leave it out")
        super().__init__(device=prior.timesteps.device)
        self.prior: DiffusionPrior = prior
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
    ) -> Tensor | tuple[Tensor, dict[str, list[list[float]]]]:
        r"""
        Reconstruct images from measurements; the last iterate is returned, no ground truth is used.

        :param torch.Tensor, deepinv.utils.TensorList y: measurements of B images, any shape, real or complex.
        :param deepinv.physics.Physics physics: forward operator, differentiable, acting on images in [0, 1].
        :param torch.Tensor init: first latent z, shape (B, C, H, W), about standard normal.
        :param torch.Tensor x_gt: ground truth in [0, 1], shape (B, C, H, W); used for the metric ``psnr`` alone.
        :param bool compute_metrics: also return ``cost`` (objective of the last layer), ``residual`` (root mean
            square of A(x) - y) and, given ``x_gt``, ``psnr`` (dB), each a list of B lists with a value per outer step
            (DMPlug: the objective, residual and psnr before each of its steps).
        :return: images in [0, 1], shape (B, C, H, W), detached; with ``compute_metrics`` a tuple (images, metrics).
        :raises TypeError, ValueError: y, physics, prior and init do not fit; says which and what to type.
        :raises FloatingPointError: the objective stopped being finite.
        """
        with torch.inference_mode(False), torch.no_grad(), self.prior.frozen():
            shape = check_inputs(y, physics, self.prior, init)
            if x_gt is not None and tuple(x_gt.shape) != shape:
                raise ValueError(f"x_gt has shape {tuple(x_gt.shape)}; pass the ground truth of the batch, {shape}")
            y = y.clone()  # inside, a plain tensor even when the caller's is an inference tensor
            z = self.prior.latent(shape, self.rng) if init is None else init
            z = z.detach().to(device=self.prior.timesteps.device, dtype=working_dtype(y), copy=True)
            trace = Trace(y, physics, x_gt, compute_metrics, self.verbose, self._total_steps(), type(self).__name__)
            try:
                x = self._solve(y, physics, z, trace)
            finally:
                trace.bar.close()
            if not torch.isfinite(x).all():
                raise FloatingPointError(f"the last step left NaN or infinite pixels; {ADVICE}")
        return (x, trace.metrics) if compute_metrics else x

    def _solve(self, y: Measurements, physics: Physics, z: Tensor, trace: Trace) -> Tensor:
        """The algorithm: images in [0, 1] from measurements and the first latent."""
        raise NotImplementedError

    def _total_steps(self) -> int:
        """How often ``_solve`` calls ``trace.bar.update``."""
        raise NotImplementedError

    def _measurement_fit(self, target: Measurements, physics: Physics) -> Fit:
        """The data term on an image u in [-1, 1]; the factor 4 gives the paper's value, computed in [-1, 1] units."""
        return lambda u: 4 * mean_energy(measure(self.prior.to_image(u), physics) - target)

    def extra_repr(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in ("training", "device")}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items() if not isinstance(v, torch.Generator))


class Trace:
    """Progress bar and metrics of one reconstruction; silent and without metrics it never looks at a tensor."""

    def __init__(
        self,
        y: Measurements,
        physics: Physics,
        x_gt: Tensor | None,
        compute_metrics: bool,
        verbose: bool,
        total: int,
        name: str,
    ) -> None:
        self.y, self.physics, self.x_gt = y, physics, x_gt
        self.compute_metrics, self.verbose = compute_metrics, verbose
        self.bar = tqdm(total=total, desc=name, unit="step", disable=not verbose)
        self.metrics: dict[str, list[list[float]]] = {}

    def show(self, **values: object) -> None:
        """Write values beside the bar; tensors, one value per sample, as their mean."""
        if self.verbose:
            texts = {k: f"{v.mean().item():.3g}" if isinstance(v, Tensor) else v for k, v in values.items()}
            self.bar.set_postfix(texts)

    def residual(self, x: Tensor) -> Tensor | None:
        """The measurement residual of each sample, where somebody looks at it."""
        return residual(x, self.y, self.physics) if self.verbose or self.compute_metrics else None

    def record(self, x: Tensor, cost: Tensor, rms: Tensor | None) -> None:
        """Add an iterate's metrics."""
        if not self.compute_metrics or rms is None:
            return
        values = {"cost": cost, "residual": rms}
        if self.x_gt is not None:
            values["psnr"] = PSNR()(x, self.x_gt.to(x))
        for name, value in values.items():
            curves = self.metrics.setdefault(name, [[] for _ in x])
            for curve, v in zip(curves, value.tolist(), strict=True):
                curve.append(v)


def check_settings(*, steps: dict[str, int], rates: dict[str, float], weights: dict[str, float]) -> None:
    """Refuse step numbers that are not whole and positive, rates that are not positive, weights that are negative."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: type a whole number of at least 1")
    for name, number in {**rates, **weights}.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{name}={number!r}: type a finite number")
        if number < 0 or (number == 0 and name in rates):
            raise ValueError(f"{name}={number!r}: type a number {'above' if name in rates else 'of at least'} 0")
