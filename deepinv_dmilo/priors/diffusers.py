"""Diffusion models of diffusers as priors."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from deepinv_dmilo.core.prior import Level, Prior
from deepinv_dmilo.priors.denoiser import MAX_NOISE, DenoiserPrior
from deepinv_dmilo.priors.padded import Padded
from deepinv_dmilo.priors.pretrained import load_unet_and_scheduler
from deepinv_dmilo.priors.variance_preserving import VariancePreserving

LARGE = 4.0  # times the pixels of the training, from which on the cost of attention is told: ours


class DiffusionPrior(Prior):
    r"""
    A pretrained diffusion model: a network and the scheduler that it was trained with.

    The clean image that the network sees in a latent, clamped to [-1, 1], and a deterministic step from one noise
    level to the next, that of :footcite:t:`song2021ddim` without fresh noise:

    .. math::

        z_{t} = \sqrt{\bar\alpha_t} u + \sqrt{1 - \bar\alpha_t} \epsilon, \qquad
        g(z_t) = \sqrt{\bar\alpha_s}\, \hat u + \sqrt{1 - \bar\alpha_s}\,
        \frac{z_t - \sqrt{\bar\alpha_t}\, \hat u}{\sqrt{1 - \bar\alpha_t}}.

    :param torch.nn.Module network: called as ``network(z, t)`` with ``z`` of shape (B, C, H, W) and ``t`` of shape
        (B,); returns a tensor, or an object with a ``sample`` (diffusers), of C channels, or of 2C (learned variance:
        the first C, the mean, are used).
    :param scheduler: a variance-preserving diffusers scheduler (``DDPMScheduler``, ``DDIMScheduler``): its
        ``alphas_cumprod`` and ``config.prediction_type`` (epsilon, v_prediction or sample) are read.
    :param bool clip_sample: clamp :math:`\hat u` to [-1, 1] in every step, as published.
    :param torch.dtype autocast: type the network computes in, e.g. ``torch.bfloat16``; its weights, the latents and
        the optimisation stay as they are. None: the type of its weights.
    :param bool compile: compile the network with ``torch.compile`` at its first call.
    :param bool checkpointing: keep only the inputs of the network's blocks and compute the rest again in the
        backward pass (diffusers' gradient checkpointing): less memory, more time.

    :Examples:

        >>> from deepinv_dmilo import DiffusionPrior
        >>> prior = DiffusionPrior.from_pretrained("digits")
        >>> [level.time for level in prior.levels(3)]
        [999, 666, 333, 0]
        >>> prior.sample(2, num_layers=3).shape
        torch.Size([2, 1, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        *,
        clip_sample: bool = True,
        autocast: torch.dtype | None = None,
        compile: bool = False,
        checkpointing: bool = False,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}; pass a torch.nn.Module called as network(z, t)")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"autocast={autocast!r}: type torch.bfloat16, or None")
        super().__init__(network)
        self.family = VariancePreserving(scheduler)
        self.clip_sample = clip_sample
        self.autocast = autocast
        self.compile_network, self.checkpointing = compile, checkpointing
        # Outside the modules, so that the state dict has one copy of the weights under their own names.
        self._compiled: tuple[nn.Module, Any] | None = None
        if checkpointing:
            if not hasattr(network, "enable_gradient_checkpointing"):
                raise ValueError(f"a {type(network).__name__} has no gradient checkpointing; type checkpointing=False")
            network.enable_gradient_checkpointing()  # type: ignore[operator]

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        clip_sample: bool = True,
        autocast: torch.dtype | None = None,
        compile: bool = False,
        checkpointing: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DiffusionPrior:
        r"""
        The prior of a bundled model (``"digits"``), a diffusers pipeline folder or a hub id (``"owner/model"``).

        A bundled name or folder is read offline, and weights from safetensors files only.

        :param str name: bundled name, path of a folder with ``model_index.json``, or hub id.
        :param bool clip_sample: see :class:`DiffusionPrior`, as are ``autocast``, ``compile`` and ``checkpointing``.
        :param str, torch.device device: where to put the network.
        :param torch.dtype dtype: type of the network's weights.
        :return: the prior, in evaluation mode.
        :raises FileNotFoundError: neither a bundled name, nor a pipeline folder, nor a hub id that can be reached.
        :raises ValueError: a pipeline without safetensors weights, or of another kind than a pixel-space UNet.
        """
        settings = {"autocast": autocast, "compile": compile, "checkpointing": checkpointing}
        prior = cls(*load_unet_and_scheduler(name), clip_sample=clip_sample, **settings)  # type: ignore[arg-type]
        prior.name = str(name)
        # Convolutions are a sixth faster on the CPU in this order of memory.
        return prior.eval().to(device, dtype).to(memory_format=torch.channels_last)

    @staticmethod
    def from_denoiser(denoiser: Denoiser, *, max_noise: float = MAX_NOISE) -> DenoiserPrior:
        """
        Any deepinv denoiser as a prior, such as ``dinv.models.DRUNet()``.

        :param deepinv.models.Denoiser denoiser: called as ``denoiser(x, sigma)`` on images in [0, 1].
        :param float max_noise: the largest ``sigma`` that it is good at; levels above it start there.
        """
        return DenoiserPrior(denoiser, max_noise=max_noise)

    def level(self, ratio: float) -> Level:
        """The training step whose noise, relative to the image, is nearest to ``ratio``."""
        return self.family.level(ratio)

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """The published chain of so many layers, from pure noise to training step 0, whose noise the image keeps."""
        return self.family.levels(num_layers)

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """The clean image in [-1, 1] that the network sees in latents (n, C, H, W)."""
        output = self.predict(z, torch.full((len(z),), int(level.time), device=z.device))
        u = self.family.clean(z, level, output)
        return u.clamp(-1, 1) if self.clip_sample else u

    def predict(self, z: Tensor, t: Tensor) -> Tensor:
        """The network's output at training step t (0-dim or (B,)), without the learned variance, in z's dtype."""
        dtype = next((p.dtype for p in self.network.parameters()), z.dtype)
        with torch.autocast(z.device.type, self.autocast) if self.autocast else nullcontext():
            output = self._callable()(z.to(dtype), t.expand(len(z)))
        if not torch.is_tensor(output):
            output = output.sample if hasattr(output, "sample") else output[0]
        return output[:, : z.shape[1]].to(z.dtype)

    def _callable(self) -> Any:
        """The network, compiled where asked for; another one that was put in its place is compiled anew."""
        if not self.compile_network:
            return self.network
        if self._compiled is None or self._compiled[0] is not self.network:
            self._compiled = (self.network, torch.compile(self.network))
        return self._compiled[1]

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the images the network was trained on, None where its configuration does not tell."""
        config = getattr(self.network, "config", None)
        size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
        if size is None or channels is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images whose channels the network cannot take."""
        config = getattr(self.network, "config", None)
        channels = getattr(config, "in_channels", None)
        if len(shape) != 4 or (channels is not None and shape[1] != channels):
            raise ValueError(
                f"images of shape {shape} do not fit the prior, which takes (B, {channels or 'C'}, H, W); "
                "use a prior and a physics with the same number of channels"
            )
        self._warn_of_attention(shape[2] * shape[3])

    def _warn_of_attention(self, pixels: int) -> None:
        """Tell what self-attention costs on images much larger than those of the training."""
        if self.image_shape is None or not any("Attention" in type(m).__name__ for m in self.network.modules()):
            return
        times = pixels / (self.image_shape[1] * self.image_shape[2])
        if times > LARGE:
            warnings.warn(
                f"the network's self-attention takes memory and time with the fourth power of the side: {times**2:.0f} "
                f"times that of its {self.image_shape[1]} x {self.image_shape[2]} pixels; a network without it, or "
                "smaller images, cost less",
                RuntimeWarning,
                stacklevel=2,
            )

    def for_images(self, height: int, width: int) -> Prior:
        """The prior for images of a size, padded to what the halvings of the network ask for."""
        multiple = 2 ** (len(getattr(getattr(self.network, "config", None), "block_out_channels", (0,))) - 1)
        return Padded(self, height, width, multiple) if height % multiple or width % multiple else self

    def denoiser(self) -> nn.Module:
        """The same network as a deepinv denoiser (images in [0, 1]), for deepinv's DPS, DiffPIR, DDRM and others."""
        from deepinv.models import ScoreModelWrapper

        return ScoreModelWrapper(
            _TensorOutput(self),
            prediction_type=self.family.prediction_type,
            clip_output=self.clip_sample,
            scale_t=torch.tensor(self.family.alphas_cumprod, dtype=torch.float64).sqrt().float(),
            variance_preserving=True,
            takes_integer_time=True,
            n_timesteps=len(self.family.alphas_cumprod),
            device=self.device,
        )

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        return (
            f"{type(self).__name__}({self.name or type(self.network).__name__!r}, {size:,} parameters, "
            f"prediction_type={self.family.prediction_type!r}, clip_sample={self.clip_sample}, "
            f"autocast={self.autocast}, compile={self.compile_network}, checkpointing={self.checkpointing})"
        )


class _TensorOutput(nn.Module):
    """The prior's network as deepinv calls one: plain tensor out."""

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.prior: DiffusionPrior = prior

    def forward(self, z: Tensor, t: Tensor, return_dict: bool = False) -> Tensor:
        return self.prior.predict(z, t)


def photos(**settings: Any) -> DiffusionPrior:
    """The bundled prior of colour photographs; ``settings`` are those of ``DiffusionPrior.from_pretrained``."""
    return DiffusionPrior.from_pretrained("photos", **settings)


def digits(**settings: Any) -> DiffusionPrior:
    """The bundled prior of 32 x 32 digits; ``settings`` are those of ``DiffusionPrior.from_pretrained``."""
    return DiffusionPrior.from_pretrained("digits", **settings)
