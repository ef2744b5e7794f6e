"""Any deepinv denoiser as a prior."""

from __future__ import annotations

from numbers import Real

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from deepinv_dmilo.core.measurements import SHAPE_ERRORS, raise_out_of_memory
from deepinv_dmilo.core.prior import Level, Prior

# What deepinv's restoration networks (DRUNet, SCUNet, ...) are trained up to, in [0, 1].
MAX_NOISE = 0.2


class DenoiserPrior(Prior):
    r"""
    A deepinv denoiser D: :math:`\hat u = 2 D((z + 1) / 2, \sigma) - 1` at noise :math:`\sigma` for images in [0, 1].

    :param deepinv.models.Denoiser denoiser: called as ``denoiser(x, sigma)`` on images in [0, 1]; differentiable.
    :param float max_noise: the largest ``sigma`` that it is good at; levels above it start there.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DiffusionPrior
        >>> DiffusionPrior.from_denoiser(dinv.models.DRUNet(pretrained=None), max_noise=0.2).level(0.1).sigma
        0.05
    """

    def __init__(self, denoiser: Denoiser, *, max_noise: float = MAX_NOISE) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(
                f"denoiser is a {type(denoiser).__name__}; pass a deepinv.models.Denoiser, called as D(x, sigma)"
            )
        if not isinstance(max_noise, Real) or not max_noise > 0:
            raise ValueError(f"max_noise={max_noise!r}: type a number above 0, e.g. 0.2, for images in [0, 1]")
        super().__init__(denoiser)
        self.max_noise: float = max_noise

    def level(self, ratio: float) -> Level:
        """Any level up to ``max_noise``; the signal is not scaled."""
        return Level(1.0, min(ratio, 2 * self.max_noise))

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """From ``max_noise`` to about a fifth of it (ours) by equal factors, then the image."""
        most = 2 * self.max_noise
        inner = [most * 0.2 ** (i / num_layers) for i in range(num_layers)]
        return (*(Level(1.0, noise) for noise in inner), Level(1.0, 0.0))

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """The denoised latent, shape and type of z, (n, C, H, W); the network computes in the type of its weights."""
        dtype = next((p.dtype for p in self.network.parameters()), z.dtype)
        return self.encode(self.network(self.decode(z).to(dtype), level.sigma).to(z.dtype))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images that the denoiser does not take, and a denoiser that has no gradient there."""
        name = type(self.network).__name__
        x = torch.full((1, *shape[1:]), 0.5, device=self.device)
        try:
            with torch.enable_grad():
                output = self.denoise(x.requires_grad_(), self.levels(1)[0])
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            raise ValueError(
                f"images of shape {shape} do not fit the denoiser {name} ({error}); use a denoiser and a physics with "
                "the same number of channels"
            ) from error
        if output.shape != x.shape or not output.requires_grad:
            raise ValueError(
                f"the denoiser {name} gives shape {tuple(output.shape)} for {tuple(x.shape)}, "
                f"{'with' if output.requires_grad else 'without'} a gradient; pass one that keeps the shape and is "
                "written in torch, without no_grad() or detach()"
            )

    def denoiser(self) -> nn.Module:
        """The denoiser that was given."""
        return self.network

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        return f"DenoiserPrior({type(self.network).__name__!r}, {size:,} parameters, max_noise={self.max_noise})"
