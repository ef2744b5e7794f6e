"""Diffusion models of an autoencoder's latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepinv_dmilo.priors.conditioning import configuration, unwrapped
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.priors.wrappers import Wrapper, alone


class LatentPrior(Wrapper):
    r"""
    A diffusion model of the latents of an autoencoder: the physics acts on pixels.

    The decoder is one more layer of the chain, between the last latent and the image. As of every layer, its graph is
    alive alone: that of the denoiser is built again in the backward pass, once the decoder's is gone. The peak is the
    larger of the two, not their sum, for a forward pass of the denoiser more.

    A latent u is what the encoder gives, times its scaling factor: :math:`u = c\,(E(2 x - 1) - m)`.

    :param Prior prior: the diffusion model of u, which does not clamp it.
    :param autoencoder: diffusers' ``AutoencoderKL``, ``AutoencoderTiny`` or ``VQModel``: its ``encode``, ``decode``,
        ``config.scaling_factor`` and ``config.shift_factor`` are used.
    """

    def __init__(self, prior: Prior, autoencoder: Any) -> None:
        super().__init__(prior)
        if not prior.affine:
            raise ValueError("the prior has an autoencoder already; give the diffusion model of its latents")
        autoencoder = unwrapped(autoencoder)  # whose encode and decode are called, and not itself
        config: Any = getattr(autoencoder, "config", None)
        if not hasattr(config, "block_out_channels") or not hasattr(config, "latent_channels"):
            raise TypeError(
                f"autoencoder is a {type(autoencoder).__name__}; pass diffusers' AutoencoderKL, AutoencoderTiny or "
                "VQModel"
            )
        self.affine = False
        self.autoencoder: Any = autoencoder
        if getattr(config, "latents_mean", None) is not None:
            raise ValueError(
                f"the {type(autoencoder).__name__} has a mean for each channel of its latents, which is not supported; "
                "give an autoencoder with a scaling_factor alone"
            )
        self.scale: float = getattr(config, "scaling_factor", None) or 1.0
        self.shift: float = getattr(config, "shift_factor", None) or 0.0
        #: pixels of the image to one of the latent, in height and width
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.latent_channels: int = getattr(config, "vq_embed_dim", None) or config.latent_channels
        wanted = configuration(prior.network, "in_channels")
        if wanted not in (None, self.latent_channels):
            raise ValueError(
                f"the network takes {wanted} channels and the autoencoder has {self.latent_channels}: a network of "
                "something else beside the latents (upscaling, inpainting), or of packed latents, is not supported"
            )
        if any(getattr(part, "clip_sample", False) for part in prior.modules()):
            raise ValueError("latents are not in [-1, 1]: type DiffusionPrior(network, scheduler, clip_sample=False)")

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """The network's estimate of the clean latent from z."""
        return alone(self.prior.denoise, z, level)

    def encode(self, x: Tensor) -> Tensor:
        """From images in [0, 1] to clean latents, the most probable ones."""
        output = self.autoencoder.encode(self._given(2 * x - 1))
        u = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
        return self.scale * (u.to(x.dtype) - self.shift)

    def decode(self, u: Tensor) -> Tensor:
        """From clean latents to images in [0, 1]."""
        return (self.autoencoder.decode(self._given(u / self.scale + self.shift)).sample.to(u.dtype) + 1) / 2

    def _given(self, t: Tensor) -> Tensor:
        return t.to(next(p.dtype for p in self.autoencoder.parameters()))

    @property
    def multiple(self) -> int:
        """What the halvings of the autoencoder and of the network ask for."""
        return self.factor * self.prior.multiple

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images whose channels the autoencoder does not take."""
        channels = getattr(self.autoencoder.config, "in_channels", None)
        if len(shape) != 4 or (channels is not None and shape[1] != channels):
            raise ValueError(
                f"images of shape {shape} do not fit the autoencoder, which takes (B, {channels or 'C'}, H, W); use a "
                "prior and a physics with the same number of channels"
            )
        height, width = (-(-side // self.multiple) * self.multiple // self.factor for side in shape[2:])
        self.prior.check_shape((shape[0], self.latent_channels, height, width))

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the images of the latents that the network was trained on."""
        inside, channels = self.prior.image_shape, getattr(self.autoencoder.config, "in_channels", None)
        if inside is None or channels is None:
            return None
        return channels, self.factor * inside[1], self.factor * inside[2]
