"""The families of diffusion models: what a scheduler of diffusers says of the network that was trained with it."""

from __future__ import annotations

import inspect
from bisect import bisect_left
from math import log
from typing import Any, Protocol

import torch
from torch import Tensor

from deepinv_dmilo.priors.prior import Level

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
RHO = 7.0  # of the levels of a chain where the noise explodes, that of Karras et al. (2022)
PURE = 1e-4  # the least signal that a flow's latents keep, next to pure noise


class Family(Protocol):
    """The time argument of a network, and the meaning of its output, at a noise level."""

    def level(self, ratio: float) -> Level:
        """The level whose noise, relative to the image, is nearest to ``ratio``."""

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """The ``num_layers + 1`` levels of a chain from the noisiest to the image."""

    def input(self, z: Tensor, level: Level) -> Tensor:
        """What the network is given for latents z."""

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """The clean image in [-1, 1] that the network's output for latents z stands for."""


def family_of(scheduler: Any) -> Family:
    """
    The family of a network by the scheduler that it was trained with.

    :param scheduler: a diffusers scheduler, or an object with its ``config`` and ``alphas_cumprod``.
    :raises TypeError, ValueError: it is of no family, or of a variant, that is known.
    """
    kind, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if kind.startswith("FlowMatch") or getattr(config, "prediction_type", None) == "flow_prediction":
        return RectifiedFlow(scheduler)
    if hasattr(scheduler, "precondition_outputs"):
        return Preconditioned(scheduler)
    if kind == "CMStochasticIterativeScheduler":
        return Consistency(scheduler)
    if kind in ("ScoreSdeVeScheduler", "KarrasVeScheduler"):
        return VarianceExploding(scheduler)
    return VariancePreserving(scheduler)


class VariancePreserving:
    r"""
    Latents :math:`\sqrt{\bar\alpha_t} u + \sqrt{1 - \bar\alpha_t} \epsilon` of a scheduler with ``alphas_cumprod``.

    :param scheduler: a diffusers scheduler; its ``alphas_cumprod`` and ``config.prediction_type`` are read.
    :raises TypeError, ValueError: it has none, or a prediction type that is not known.
    """

    def __init__(self, scheduler: Any) -> None:
        alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
        if alphas_cumprod is None:
            raise TypeError(
                f"scheduler {type(scheduler).__name__} is of no known family: it has no alphas_cumprod; pass "
                "diffusers' DDPMScheduler, DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, "
                "CMStochasticIterativeScheduler or ScoreSdeVeScheduler, whichever the network was trained with"
            )
        config = getattr(scheduler, "config", None)
        if getattr(config, "timestep_type", "discrete") != "discrete":
            raise ValueError(
                f"{type(scheduler).__name__} with timestep_type={config.timestep_type!r} is not supported; "  # type: ignore[union-attr]
                "pass an EDMEulerScheduler where the network was trained as Karras et al. (2022) do"
            )
        self.prediction_type = getattr(config, "prediction_type", "epsilon")
        if self.prediction_type == "epsilon" and _ignored(scheduler, "predict_epsilon") is False:
            self.prediction_type = "sample"  # as in diffusers 0.8
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type {self.prediction_type!r} is not supported; use one of {PREDICTION_TYPES}"
            )
        # Python floats: exact in any dtype, on any device.
        self.alphas_cumprod = [float(a) for a in alphas_cumprod]
        if _ignored(scheduler, "rescale_betas_zero_snr"):
            self.alphas_cumprod = _rescaled(self.alphas_cumprod)
        if self.alphas_cumprod[-1] <= 0 and self.prediction_type == "epsilon":
            del self.alphas_cumprod[-1]  # where the predicted noise says nothing of the image
        first: dict[float, int] = {}  # step of a ratio
        for t in range(len(self.alphas_cumprod)):
            first.setdefault(self.at(t).ratio, t)
        self._steps = sorted(first.items())

    def at(self, t: int) -> Level:
        """The level of a training step."""
        abar = self.alphas_cumprod[t]
        return Level(abar**0.5, (1 - abar) ** 0.5, t)

    def level(self, ratio: float) -> Level:
        """The training step whose noise, relative to the image, is nearest to ``ratio``."""
        k = bisect_left(self._steps, (ratio, 0))
        near = self._steps[max(k - 1, 0) : k + 1]
        return self.at(min((abs(found - ratio), t) for found, t in near)[1])

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """As published: multiples of T // N, the first at most T - 1: 999, 666, 333, 0 for three layers of T = 1000."""
        train_steps = len(self.alphas_cumprod)
        if not 1 <= num_layers < train_steps:
            raise ValueError(f"num_layers={num_layers}: type a whole number from 1 to {train_steps - 1}, e.g. 3")
        stride = train_steps // num_layers
        return tuple(self.at(min(i * stride, train_steps - 1)) for i in reversed(range(num_layers + 1)))

    def input(self, z: Tensor, level: Level) -> Tensor:
        """The latents themselves."""
        return z

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """From the noise, the velocity or the image that is predicted."""
        if self.prediction_type == "epsilon":
            return (z - level.noise * output) / level.signal
        if self.prediction_type == "v_prediction":
            return level.signal * z - level.noise * output
        return output


def _ignored(scheduler: Any, key: str) -> Any:
    """What a configuration has under a key that its class of diffusers keeps and does not read; None: nothing."""
    value = getattr(getattr(scheduler, "config", None), key, None)
    is_read = value is None or key in inspect.signature(type(scheduler)).parameters
    return None if is_read else value


def _rescaled(alphas_cumprod: list[float]) -> list[float]:
    """The schedule that ends without signal (algorithm 1 of Lin et al., 2024); one that does already stays."""
    signals = [a**0.5 for a in alphas_cumprod]
    first, last = signals[0], signals[-1]
    return [((signal - last) * first / (first - last)) ** 2 for signal in signals]


class _Exploding:
    """Latents ``u + s eps`` at any noise s between two ends; a family defines the network's time argument for s."""

    least: float
    most: float

    def time(self, noise: float) -> float:
        """The time argument of the network at a noise level."""
        return noise

    def level(self, ratio: float) -> Level:
        """Any between the ends."""
        noise = min(max(ratio, self.least), self.most)
        return Level(1.0, noise, self.time(noise))

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """From the noisiest to the least noise, evenly in its seventh root :footcite:p:`karras2022elucidating`."""
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: type a whole number of at least 1, e.g. 3")
        ends = self.most ** (1 / RHO), self.least ** (1 / RHO)
        return tuple(self.level((ends[0] + i / num_layers * (ends[1] - ends[0])) ** RHO) for i in range(num_layers + 1))


class VarianceExploding(_Exploding):
    r"""
    Networks that give the score of noisy images in [0, 1]: ``ScoreSdeVeScheduler``, ``KarrasVeScheduler``.

    They are given :math:`(z + 1) / 2` and its noise :math:`s / 2`; the clean image is
    :math:`\hat u = z + s^2 / 2` times the score.
    """

    def __init__(self, scheduler: Any) -> None:
        # The ends of the first are of images in [0, 1], those of the second of latents.
        width = 2.0 if type(scheduler).__name__ == "ScoreSdeVeScheduler" else 1.0
        self.least, self.most = width * scheduler.config.sigma_min, width * scheduler.config.sigma_max

    def time(self, noise: float) -> float:
        """The noise for images in [0, 1]."""
        return noise / 2

    def input(self, z: Tensor, level: Level) -> Tensor:
        """Noisy images in [0, 1]."""
        return (z + 1) / 2

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """A step along the score, of the variance."""
        return z + level.noise**2 / 2 * output


class Preconditioned(_Exploding):
    """Networks that :footcite:t:`karras2022elucidating` precondition, by the scheduler's own formulas (``EDM...``)."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.least, self.most = scheduler.config.sigma_min, scheduler.config.sigma_max

    def time(self, noise: float) -> float:
        """What the scheduler makes of it."""
        return float(self.scheduler.precondition_noise(torch.tensor([noise], dtype=torch.float64, device="cpu")))

    def input(self, z: Tensor, level: Level) -> Tensor:
        """Latents of standard deviation 1."""
        return self.scheduler.precondition_inputs(z, level.noise)

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """The latents and the output, weighed by the noise."""
        return self.scheduler.precondition_outputs(z, output, level.noise)


class Consistency(_Exploding):
    """Networks that take a noisy image to a clean one in one call (``CMStochasticIterativeScheduler``)."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.least, self.most = scheduler.config.sigma_min, scheduler.config.sigma_max

    def time(self, noise: float) -> float:
        """A quarter of the logarithm, in thousandths."""
        return 250 * log(noise)

    def input(self, z: Tensor, level: Level) -> Tensor:
        """Latents of standard deviation 1."""
        return z / (level.noise**2 + self.scheduler.config.sigma_data**2) ** 0.5

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """The latents and the output, weighed so that the least noise changes nothing."""
        skip, out = self.scheduler.get_scalings_for_boundary_condition(level.noise)
        return skip * z + out * output


class RectifiedFlow:
    r"""
    Latents :math:`(1 - s) u + s \epsilon` and networks that predict the velocity :math:`\epsilon - u`.

    :param scheduler: ``FlowMatchEulerDiscreteScheduler``, or another with ``prediction_type="flow_prediction"``.
    """

    def __init__(self, scheduler: Any) -> None:
        config = scheduler.config
        if getattr(config, "invert_sigmas", False):
            raise ValueError(f"{type(scheduler).__name__} with invert_sigmas=True is not supported; give one without")
        self.train_steps = config.num_train_timesteps
        self.shift = getattr(config, "shift", None) or getattr(config, "flow_shift", None) or 1.0

    def at(self, noise: float) -> Level:
        """The level of so much noise."""
        return Level(1 - noise, noise, self.train_steps * noise)

    def level(self, ratio: float) -> Level:
        """Any short of pure noise, and of no noise."""
        return self.at(min(max(ratio / (1 + ratio), PURE), 1 - PURE))

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """From pure noise to the image, evenly but for the scheduler's shift."""
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: type a whole number of at least 1, e.g. 3")
        even = [1 - i / num_layers for i in range(num_layers + 1)]
        return tuple(self.at(self.shift * s / (1 + (self.shift - 1) * s)) for s in even)

    def input(self, z: Tensor, level: Level) -> Tensor:
        """The latents themselves."""
        return z

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """Back along the velocity."""
        return z - level.noise * output
