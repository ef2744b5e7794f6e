"""Networks trained on noise that the image gives way to: epsilon, v and sample prediction of diffusers' schedulers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepinv_dmilo.core.prior import Level

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


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
                f"scheduler {type(scheduler).__name__} has no alphas_cumprod; pass a variance-preserving one, "
                "such as diffusers.DDPMScheduler or DDIMScheduler"
            )
        self.prediction_type = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type {self.prediction_type!r} is not supported; use one of {PREDICTION_TYPES}"
            )
        # Python floats: exact in any dtype, on any device.
        self.alphas_cumprod = [float(a) for a in alphas_cumprod]
        if self.alphas_cumprod[-1] <= 0 and self.prediction_type == "epsilon":
            raise ValueError(
                "the scheduler's last alphas_cumprod is 0 (zero terminal signal), where the predicted noise says "
                "nothing of the image; use a prediction_type='v_prediction' model"
            )

    def at(self, t: int) -> Level:
        """The level of a training step."""
        abar = self.alphas_cumprod[t]
        return Level(abar**0.5, (1 - abar) ** 0.5, t)

    def level(self, ratio: float) -> Level:
        """The training step whose noise, relative to the image, is nearest to ``ratio``."""
        return self.at(min(range(len(self.alphas_cumprod)), key=lambda t: abs(self.at(t).ratio - ratio)))

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """As published: multiples of T // N, the first at most T - 1: 999, 666, 333, 0 for three layers of T = 1000."""
        train_steps = len(self.alphas_cumprod)
        if not 1 <= num_layers < train_steps:
            raise ValueError(f"num_layers={num_layers}: type a whole number from 1 to {train_steps - 1}, e.g. 3")
        stride = train_steps // num_layers
        return tuple(self.at(min(i * stride, train_steps - 1)) for i in reversed(range(num_layers + 1)))

    def clean(self, z: Tensor, level: Level, output: Tensor) -> Tensor:
        """The clean image that the network's output stands for."""
        if self.prediction_type == "epsilon":
            return (z - level.noise * output) / level.signal
        if self.prediction_type == "v_prediction":
            return level.signal * z - level.noise * output
        return output
