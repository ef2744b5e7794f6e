"""The splittable prior: a diffusion model as a chain of deterministic DDIM steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class DiffusionPrior(nn.Module):
    r"""
    A pretrained diffusion model as a chain of ``num_layers`` deterministic DDIM steps.

    .. math::

        G = g_{N-1} \circ \dots \circ g_0, \qquad
        g_i(z) = \sqrt{\bar\alpha_{t_{i+1}}}\, \hat x_0 + \sqrt{1 - \bar\alpha_{t_{i+1}}}\, \hat\epsilon,

    where :math:`\hat x_0` is the network's clean image at noise level :math:`t_i`, clamped to [-1, 1], and
    :math:`\hat\epsilon` the noise that is then left in :math:`z`. Layer 0 takes pure noise, layer ``num_layers - 1``
    gives the image. The steps are those of :footcite:t:`song2021ddim` without fresh noise. As published, the levels are
    multiples of T // N, the first at most T - 1: 999, 666, 333, 0 for three layers of T = 1000 training steps; the last
    one keeps the noise of training step 0. With hundreds of layers the first level falls well short of T; the method
    wants few.

    The chain lives in the network's range [-1, 1]; :meth:`to_image` and :meth:`to_model` are the only places where
    it meets deepinv's range [0, 1].

    :param torch.nn.Module unet: network called as ``unet(z, t)`` with ``z`` of shape (B, C, H, W) and ``t`` of shape
        (B,); returns a tensor, or an object with a ``sample`` (diffusers), of C channels, or of 2C (learned variance:
        the first C, the mean, are used).
    :param scheduler: a variance-preserving diffusers scheduler (``DDPMScheduler``, ``DDIMScheduler``): its
        ``alphas_cumprod`` and ``config.prediction_type`` (epsilon, v_prediction or sample) are read.
    :param int num_layers: number N of layers, from 1 to the number of training steps less one (paper: 3).
    :param bool clip_sample: clamp :math:`\hat x_0` to [-1, 1] in every layer, as published.
    :param torch.dtype autocast: type the network computes in, e.g. ``torch.bfloat16``; its weights, the latents and
        the optimisation stay as they are. None: the type of its weights.
    :param bool compile: compile the network with ``torch.compile`` at its first call.
    :param bool checkpointing: keep only the inputs of the network's blocks and compute the rest again in the
        backward pass (diffusers' gradient checkpointing): less memory, more time.

    :Examples:

        >>> from deepinv_dmilo import DiffusionPrior
        >>> prior = DiffusionPrior.from_pretrained("digits", num_layers=3)
        >>> prior.timesteps
        (999, 666, 333, 0)
        >>> prior.sample(2).shape
        torch.Size([2, 1, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        *,
        num_layers: int = 3,
        clip_sample: bool = True,
        autocast: torch.dtype | None = None,
        compile: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(unet, nn.Module):
            raise TypeError(f"unet is a {type(unet).__name__}; pass a torch.nn.Module called as unet(z, t)")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"autocast={autocast!r}: type torch.bfloat16, or None")
        alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
        if alphas_cumprod is None:
            raise TypeError(
                f"scheduler {type(scheduler).__name__} has no alphas_cumprod; pass a variance-preserving one, "
                "such as diffusers.DDPMScheduler or DDIMScheduler"
            )
        prediction_type = getattr(scheduler.config, "prediction_type", "epsilon")
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type {prediction_type!r} is not supported; use one of {PREDICTION_TYPES}")
        train_steps = len(alphas_cumprod)
        if isinstance(num_layers, bool) or not isinstance(num_layers, int) or not 1 <= num_layers < train_steps:
            raise ValueError(f"num_layers={num_layers!r}: type a whole number from 1 to {train_steps - 1}, e.g. 3")
        self.unet: nn.Module = unet
        self.num_layers = num_layers
        self.clip_sample = clip_sample
        self.prediction_type = prediction_type
        self.autocast = autocast
        self.name: str | None = None
        if checkpointing:
            if not hasattr(unet, "enable_gradient_checkpointing"):
                raise ValueError(f"a {type(unet).__name__} has no gradient checkpointing; type checkpointing=False")
            unet.enable_gradient_checkpointing()  # type: ignore[operator]
        # Outside the modules, so that the state dict has one copy of the weights under their own names.
        self._compiled = (torch.compile(unet),) if compile else ()
        stride = train_steps // num_layers
        self.timesteps = tuple(min(i * stride, train_steps - 1) for i in reversed(range(num_layers + 1)))
        # Python floats: exact in any dtype, on any device.
        self.alphas_cumprod = [float(a) for a in alphas_cumprod]
        if self.alphas_cumprod[-1] <= 0 and prediction_type == "epsilon":
            raise ValueError(
                "the scheduler's last alphas_cumprod is 0 (zero terminal signal), where the predicted noise says "
                "nothing of the image; use a prediction_type='v_prediction' model"
            )

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        num_layers: int = 3,
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
        :param int num_layers: see :class:`DiffusionPrior`.
        :param bool clip_sample: see :class:`DiffusionPrior`, as are ``autocast``, ``compile`` and ``checkpointing``.
        :param str, torch.device device: where to put the network.
        :param torch.dtype dtype: type of the network's weights.
        :return: the prior, in evaluation mode.
        :raises FileNotFoundError: neither a bundled name, nor a pipeline folder, nor a hub id that can be reached.
        :raises ValueError: a pipeline without safetensors weights, or of another kind than a pixel-space UNet.
        """
        from deepinv_dmilo.priors.pretrained import load_unet_and_scheduler

        unet, scheduler = load_unet_and_scheduler(name)
        prior = cls(
            unet,
            scheduler,
            num_layers=num_layers,
            clip_sample=clip_sample,
            autocast=autocast,
            compile=compile,
            checkpointing=checkpointing,
        )
        prior.name = str(name)
        return prior.eval().to(device, dtype)

    def steps_below(self, sigma: float, num_layers: int) -> tuple[int, ...]:
        """
        The training steps of a chain that starts at a noise level: evenly spaced, the last 0.

        :param float sigma: standard deviation of the noise, relative to images in [0, 1].
        :param int num_layers: number of layers.
        :return: ``num_layers + 1`` training steps, the one whose noise is nearest to ``sigma`` first.
        """
        first = min(range(len(self.alphas_cumprod)), key=lambda t: abs(self.sigma(t) - sigma))
        return tuple(first * i // num_layers for i in reversed(range(num_layers + 1)))

    def sigma(self, t: int) -> float:
        """Standard deviation of the noise at a training step, relative to images in [0, 1]."""
        abar = self.alphas_cumprod[t]
        return ((1 - abar) / abar) ** 0.5 / 2 if abar > 0 else float("inf")

    def layer(self, i: int, z: Tensor) -> Tensor:
        r"""
        Layer i of the chain: one DDIM step from noise level ``timesteps[i]`` to ``timesteps[i + 1]``.

        :param int i: layer, 0 next to the noise, ``num_layers - 1`` next to the image.
        :param torch.Tensor z: latent of shape (B, C, H, W), floating.
        :return: the next latent (for the last layer the image in [-1, 1]), shape and dtype of ``z``, differentiable.
        """
        return self.step(z, self.timesteps[i], self.timesteps[i + 1])

    def step(self, z: Tensor, t: int, t_next: int) -> Tensor:
        """One DDIM step from training step t to t_next, for latents of shape (B, C, H, W); see :meth:`layer`."""
        abar, abar_next = self.alphas_cumprod[t], self.alphas_cumprod[t_next]
        prediction = self.predict(z, torch.full((len(z),), t, device=z.device))
        if self.prediction_type == "epsilon":
            x0 = (z - (1 - abar) ** 0.5 * prediction) / abar**0.5
        elif self.prediction_type == "v_prediction":
            x0 = abar**0.5 * z - (1 - abar) ** 0.5 * prediction
        else:
            x0 = prediction
        if self.clip_sample:
            x0 = x0.clamp(-1, 1)
        eps = (z - abar**0.5 * x0) / (1 - abar) ** 0.5
        return abar_next**0.5 * x0 + (1 - abar_next) ** 0.5 * eps

    def predict(self, z: Tensor, t: Tensor) -> Tensor:
        """The network's output at training step t (0-dim or (B,)), without the learned variance, in z's dtype."""
        dtype = next((p.dtype for p in self.unet.parameters()), z.dtype)
        network = self._compiled[0] if self._compiled else self.unet
        with torch.autocast(z.device.type, self.autocast) if self.autocast else nullcontext():
            output = network(z.to(dtype), t.expand(len(z)))
        if not torch.is_tensor(output):
            output = output.sample if hasattr(output, "sample") else output[0]
        return output[:, : z.shape[1]].to(z.dtype)

    def forward(self, z: Tensor) -> Tensor:
        """The whole chain G: latent of shape (B, C, H, W) to image in [-1, 1] of the same shape."""
        for i in range(self.num_layers):
            z = self.layer(i, z)
        return z

    @staticmethod
    def to_image(u: Tensor) -> Tensor:
        """From the model's range [-1, 1] to deepinv's [0, 1]."""
        return (u + 1) / 2

    @staticmethod
    def to_model(x: Tensor) -> Tensor:
        """From deepinv's range [0, 1] to the model's [-1, 1]."""
        return 2 * x - 1

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the images the network was trained on, None where its configuration does not tell."""
        config = getattr(self.unet, "config", None)
        size, channels = getattr(config, "sample_size", None), getattr(config, "in_channels", None)
        if size is None or channels is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.unet.parameters()), torch.device("cpu"))

    def latent(self, shape: Sequence[int], rng: torch.Generator | int = 0, *, draw: int = 0) -> Tensor:
        """
        Standard normal noise of a shape, on the prior's device; the global random state is never touched.

        With a generator its next numbers; with a seed the same noise for every image of the batch and at every call
        with the same ``draw``, so that an image's result does not depend on the batch it came in.
        """
        if isinstance(rng, int):
            seeded = torch.Generator("cpu").manual_seed((100_003 * rng + draw) % 2**32)
            noise = torch.randn(tuple(shape[1:]), generator=seeded, device="cpu").expand(tuple(shape)).contiguous()
        else:
            noise = torch.randn(tuple(shape), generator=rng, device=rng.device)
        return noise.to(self.device)

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator | None = None) -> Tensor:
        """
        Images of the prior in [0, 1], shape (n, C, H, W): the chain applied to n noises.

        With few layers they are coarse; without ``rng`` the same n images at every call.
        """
        if self.image_shape is None:
            raise ValueError("the network's configuration does not tell its image size; use prior(z) with your own z")
        rng = rng or torch.Generator().manual_seed(0)
        with self.frozen():
            return self.to_image(self(self.latent((n, *self.image_shape), rng)).clamp(-1, 1))

    def denoiser(self) -> nn.Module:
        """The same network as a deepinv denoiser (images in [0, 1]), for deepinv's DPS, DiffPIR, DDRM and others."""
        from deepinv.models import ScoreModelWrapper

        return ScoreModelWrapper(
            _TensorOutput(self),
            prediction_type=self.prediction_type,
            clip_output=self.clip_sample,
            scale_t=torch.tensor(self.alphas_cumprod, dtype=torch.float64).sqrt().float(),
            variance_preserving=True,
            takes_integer_time=True,
            n_timesteps=len(self.alphas_cumprod),
            device=self.device,
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode and no weight gradients inside; every flag as before after it, also after an error."""
        parameters = [(p, p.requires_grad) for p in self.parameters()]
        modes = [(m, m.training) for m in self.modules()]
        try:
            for parameter, flag in parameters:
                if flag:
                    parameter.requires_grad_(False)
            self.eval()
            yield
        finally:
            for parameter, flag in parameters:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)
            for module, mode in modes:
                module.training = mode

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        return (
            f"{type(self).__name__}({self.name or type(self.unet).__name__!r}, {size:,} parameters, "
            f"num_layers={self.num_layers}, timesteps={list(self.timesteps)}, "
            f"prediction_type={self.prediction_type!r}, clip_sample={self.clip_sample})"
        )


class _TensorOutput(nn.Module):
    """The prior's network as deepinv calls one: plain tensor out."""

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.prior: DiffusionPrior = prior

    def forward(self, z: Tensor, t: Tensor, return_dict: bool = False) -> Tensor:
        return self.prior.predict(z, t)
