"""Diffusion models of diffusers as priors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepinv_dmilo.priors.conditioning import (
    Conditioning,
    check_conditioning,
    check_time,
    configuration,
    leaves,
    mapped,
    names_timestep,
    remedy,
    unwrapped,
)
from deepinv_dmilo.priors.denoiser import DenoiserPrior
from deepinv_dmilo.priors.families import family_of
from deepinv_dmilo.priors.latent import LatentPrior
from deepinv_dmilo.priors.pretrained import load_pipeline
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.priors.wrappers import for_images, halvings, warn_of_attention
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory


class DiffusionPrior(Prior):
    r"""
    A pretrained diffusion model: a network and the scheduler that it was trained with.

    The scheduler determines the family of the network (:doc:`/prior` has the table): variance preserving, variance
    exploding, preconditioned as in EDM, rectified flow or consistency model. The clean image :math:`\hat u` that the
    network sees in a latent is clamped to [-1, 1]; a step from level (a, s) to level (b, r) is deterministic, that of
    :footcite:t:`song2021ddim` without fresh noise where signal and noise trade off:

    .. math::

        z = a\, u + s\, \epsilon, \qquad g(z) = b\, \hat u + r\, \frac{z - a\, \hat u}{s}.

    :param torch.nn.Module network: called as ``network(z, t)`` with ``z`` of shape (B, C, H, W) and ``t`` of shape
        (B,), by keyword where it names a ``timestep``; returns a tensor, or an object with a ``sample`` (diffusers), of
        C channels, or of 2C (learned variance: the first C, the mean, are used).
    :param scheduler: a diffusers scheduler, of which the family and its constants are read.
    :param bool clip_sample: clamp :math:`\hat u` to [-1, 1] in every step, as published.
    :param dict conditioning: more arguments of the network, by name: tensors with a row for all images or a row for
        each image of a batch, e.g. ``{"class_labels": torch.tensor([207])}`` or ``{"encoder_hidden_states": prompt}``.
    :param torch.dtype autocast: type the network computes in, e.g. ``torch.bfloat16``; its weights, the latents and
        the optimisation stay as they are. None: the type of its weights.
    :param bool compile: compile the network with ``torch.compile`` at its first call.
    :param bool checkpointing: keep only the inputs of the network's blocks and compute the rest again in the
        backward pass (diffusers' gradient checkpointing): less memory, more time.
    :raises TypeError, ValueError: a network that wants a condition it does not get, an unknown scheduler.

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
        conditioning: Conditioning | None = None,
        autocast: torch.dtype | None = None,
        compile: bool = False,
        checkpointing: bool = False,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}; pass a torch.nn.Module called as network(z, t)")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise TypeError(f"autocast={autocast!r}: type torch.bfloat16, or None")
        check_time(network)
        super().__init__(network)
        self.family = family_of(scheduler)
        self.clip_sample = clip_sample
        if conditioning is not None and not isinstance(conditioning, Mapping):
            raise TypeError(
                f"conditioning is a {type(conditioning).__name__}; give tensors by the names that the network has for "
                'them, such as {"class_labels": torch.tensor([207])}'
            )
        self.conditioning = dict(conditioning or {})
        check_conditioning(network, self.conditioning)
        self.autocast = autocast
        self.compile_network, self.checkpointing = compile, checkpointing
        # The network is an argument, so that copies of the prior share what is compiled.
        self._run = torch.compile(_run) if compile else _run
        self._taken: set[torch.Size] = set()  # shapes of latents that the network took
        if checkpointing:
            inside = unwrapped(network)
            if not hasattr(inside, "enable_gradient_checkpointing"):
                raise ValueError(f"a {type(inside).__name__} has no gradient checkpointing; type checkpointing=False")
            # Nothing is drawn, and the global random state may be of other threads.
            inside.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        scheduler: Any = None,
        clip_sample: bool = True,
        conditioning: Conditioning | None = None,
        autocast: torch.dtype | None = None,
        compile: bool = False,
        checkpointing: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Any:
        r"""
        The prior of a bundled model (``"photos"``), a diffusers pipeline folder or a hub id (``"owner/model"``).

        A bundled name or folder is read offline, and weights from safetensors files only, in full precision where they
        are there. Of a pipeline only its denoising network, scheduler and autoencoder are read: text encoders and the
        like are not.

        :param str, pathlib.Path name: bundled name, hub id, or folder (which a ``Path`` always is): with
            ``model_index.json``, of a network alone (``"mine/unet_ema"``), or of a training's checkpoint
            (``"mine/checkpoint-5000"``). What a network lacks is that of the pipeline around it.
        :param scheduler: a diffusers scheduler, in place of the one that is saved there.
        :param bool clip_sample: see :class:`DiffusionPrior`, as are ``conditioning``, ``autocast``, ``compile`` and
            ``checkpointing``. Latents of an autoencoder are never clamped.
        :param str, torch.device device: where to put the network.
        :param torch.dtype dtype: type of the network's weights.
        :return: the prior, in evaluation mode; a :class:`LatentPrior <deepinv_dmilo.priors.latent.LatentPrior>` where
            the pipeline has an autoencoder.
        :raises FileNotFoundError: neither a bundled name, nor such a folder, nor a hub id that can be reached; or a
            network without a scheduler.
        :raises TypeError, ValueError: a pipeline without safetensors weights or of an unknown family, or a condition
            that is missing.
        """
        network, scheduler, autoencoder = load_pipeline(name, scheduler)
        settings = {"autocast": autocast, "compile": compile, "checkpointing": checkpointing}
        clip_sample = clip_sample and autoencoder is None
        prior: Prior = cls(network, scheduler, clip_sample=clip_sample, conditioning=conditioning, **settings)  # type: ignore[arg-type]
        prior = prior if autoencoder is None else LatentPrior(prior, autoencoder)
        prior.name = str(name)
        # Convolutions are a sixth faster on the CPU in this order of memory.
        return prior.eval().to(device, dtype).to(memory_format=torch.channels_last)

    @staticmethod
    def from_denoiser(denoiser: Denoiser, *, max_noise: float | None = None) -> DenoiserPrior:
        """
        Any deepinv denoiser as a prior, such as ``dinv.models.DRUNet()``.

        :param deepinv.models.Denoiser denoiser: called as ``denoiser(x, sigma)`` on images in [0, 1].
        :param float max_noise: the largest ``sigma`` that it is good at; levels above it start there. None: 0.2 for
            restoration networks, all that deepinv's diffusion models were trained on.
        """
        return DenoiserPrior(denoiser, max_noise=max_noise)

    def level(self, ratio: float) -> Level:
        """The training step whose noise, relative to the image, is nearest to ``ratio``."""
        return self.family.level(ratio)

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """The published chain of so many layers, from pure noise to training step 0, whose noise the image keeps."""
        return self.family.levels(num_layers)

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """The network's estimate of the clean image in [-1, 1], or clean latent, from latents (n, C, H, W)."""
        dtype = torch.long if isinstance(level.time, int) else torch.promote_types(z.dtype, torch.float32)
        t = torch.full((len(z),), level.time, dtype=dtype, device=z.device)
        u = self.family.clean(z, level, self.predict(self.family.input(z, level), t))
        return u.clamp(-1, 1) if self.clip_sample else u

    def predict(self, z: Tensor, t: Tensor) -> Tensor:
        """
        The network's output for its input and time (0-dim or (B,)), without the learned variance, in z's dtype.

        :raises ValueError: the network does not take them, or gives another size; says what it was given. What it
            raises at latents of a shape that it took before is passed on.
        """
        dtype = next((p.dtype for p in self.network.parameters()), z.dtype)
        self._check_rows(len(z))

        def condition(row: Tensor) -> Tensor:
            row = row.to(z.device, dtype if row.is_floating_point() else row.dtype)
            return row.expand(len(z), *row.shape[1:])

        named = {"timestep": t.expand(len(z)), **mapped(self.conditioning, condition)}
        times = () if names_timestep(self.network) else (named.pop("timestep"),)
        try:
            with torch.autocast(z.device.type, self.autocast) if self.autocast else nullcontext():
                output = self._run(self.network, z.to(dtype), *times, **named)
        except (*SHAPE_ERRORS, AttributeError, KeyError) as error:  # whatever a network raises at what it is given
            raise_out_of_memory(error)
            if z.shape[1:] in self._taken:
                raise  # no misfit, but a fault
            told = f"the {self._told(z)} ({type(error).__name__}: {error})"
            raise ValueError(f"{told}; {remedy(self.network)}") from error
        if not torch.is_tensor(output):
            output = output.sample if hasattr(output, "sample") else output[0]
        if output.shape[2:] != z.shape[2:] or output.shape[1] < z.shape[1]:
            raise ValueError(f"the {self._told(z)}: it gives {tuple(output.shape)}; {remedy(self.network)}")
        self._taken.add(z.shape[1:])
        return output[:, : z.shape[1]].to(z.dtype)

    def _told(self, z: Tensor) -> str:
        """What the network was given, for messages."""
        given = ", ".join(f"{name} {tuple(row.shape)}" for name, row in leaves(self.conditioning))
        kind = type(unwrapped(self.network)).__name__
        return f"{kind} does not take latents of shape {tuple(z.shape)} with {given or 'no conditioning'}"

    def _check_rows(self, batch: int) -> None:
        """Refuse conditions of another number of images."""
        for name, row in leaves(self.conditioning):
            if len(row) not in (1, batch):
                raise ValueError(
                    f"conditioning[{name!r}] has {len(row)} rows for a batch of {batch}; give one for all images, or "
                    "one for each"
                )

    def select(self, rows: Tensor) -> DiffusionPrior:
        """The prior of some rows of a batch, whose conditions go with them."""
        if not self.conditioning:
            return self
        chosen = copy.copy(self)
        chosen.conditioning = mapped(self.conditioning, lambda row: row if len(row) == 1 else row[rows.to(row.device)])
        return chosen

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the images the network was trained on, None if its configuration does not have it."""
        size, channels = (configuration(self.network, name) for name in ("sample_size", "in_channels"))
        if size is None or channels is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images whose channels the network cannot take."""
        channels = configuration(self.network, "in_channels")
        if len(shape) != 4 or (channels is not None and shape[1] != channels):
            other = ""
            if channels == 1:
                other = ", or Channelwise(prior); of real and imaginary parts a prior of both, Complex(prior)"
            elif channels == 3 and shape[1:2] == (1,):
                other = ", or for grey images Greyscale(prior)"
            raise ValueError(
                f"images of shape {shape} do not fit the prior, which takes (B, {channels or 'C'}, H, W); "
                f"use a prior and a physics with the same number of channels{other}"
            )
        self._check_rows(shape[0])
        warn_of_attention(self, shape[2] * shape[3])

    @property
    def multiple(self) -> int:
        """What the halvings of the network ask for; the size of a transformer's patches."""
        return halvings(self.network)

    def for_images(self, height: int, width: int) -> Prior:
        """The prior for images of a size, padded to its multiple."""
        return for_images(self, height, width)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        kind = getattr(self.family, "prediction_type", None)
        shown = {} if kind is None else {"prediction_type": kind}
        shown |= {"clip_sample": self.clip_sample, "autocast": self.autocast}
        shown |= {"compile": self.compile_network, "checkpointing": self.checkpointing}
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return (
            f"{type(self).__name__}({self.name or type(unwrapped(self.network)).__name__!r}, {size:,} parameters, "
            f"{type(self.family).__name__}, {settings})"
        )


def _run(network: nn.Module, *args: Tensor, **conditions: Any) -> Any:
    return network(*args, **conditions)


def photos(**settings: Any) -> DiffusionPrior:
    """The bundled prior of colour photographs; ``settings`` are those of ``DiffusionPrior.from_pretrained``."""
    return DiffusionPrior.from_pretrained("photos", **settings)


def digits(**settings: Any) -> DiffusionPrior:
    """The bundled prior of 32 x 32 digits; ``settings`` are those of ``DiffusionPrior.from_pretrained``."""
    return DiffusionPrior.from_pretrained("digits", **settings)
