"""Any deepinv denoiser as a prior."""

from __future__ import annotations

from math import isfinite
from numbers import Real

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from deepinv_dmilo.priors.conditioning import unwrapped
from deepinv_dmilo.priors.prior import AsDenoiser, Level, Prior
from deepinv_dmilo.priors.wrappers import for_images, halvings, warn_of_attention
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory

# What deepinv's restoration networks (DRUNet, SCUNet, ...) are trained up to, in [0, 1].
MAX_NOISE = 0.2
# The same of its diffusion models, step 1000 of linear betas or sigma 80 of images in [-1, 1]; and what height and
# width must be multiples of.
DIFFUSION_MODELS = {"DiffUNet": (78.0, 32), "NCSNpp": (40.0, 8), "ADMUNet": (40.0, 8), "EDMPrecond": (40.0, 1)}


class DenoiserPrior(Prior):
    r"""
    A deepinv denoiser D: :math:`\hat u = 2 D((z + 1) / 2, \sigma) - 1` at noise :math:`\sigma` for images in [0, 1].

    :param deepinv.models.Denoiser denoiser: called as ``denoiser(x, sigma)`` on images in [0, 1]; differentiable.
    :param float max_noise: the largest ``sigma`` that it is good at; levels above it start there. None: 0.2 for
        restoration networks, all that deepinv's diffusion models were trained on.
    :raises TypeError, ValueError: it is no denoiser, or has no gradient (:meth:`check_shape`).

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DiffusionPrior
        >>> DiffusionPrior.from_denoiser(dinv.models.DRUNet(pretrained=None), max_noise=0.2).level(0.1).sigma
        0.05
    """

    def __init__(self, denoiser: Denoiser, *, max_noise: float | None = None) -> None:
        kind = type(unwrapped(denoiser))
        if not issubclass(kind, Denoiser):
            raise TypeError(f"denoiser is a {kind.__name__}; pass a deepinv.models.Denoiser, called as D(x, sigma)")
        if kind.__module__.startswith("deepinv.models") and not any(True for _ in denoiser.parameters()):
            raise TypeError(
                f"a {kind.__name__} has no network to optimise through; it goes with deepinv's own methods, "
                "such as deepinv.optim.PGD, and here give a network, such as deepinv.models.DRUNet()"
            )
        max_noise = trained_up_to(unwrapped(denoiser)) if max_noise is None else max_noise
        if (
            isinstance(max_noise, bool)
            or not isinstance(max_noise, Real)
            or not (isfinite(max_noise) and max_noise > 0)
        ):
            raise ValueError(f"max_noise={max_noise!r}: type a number above 0, e.g. 0.2, for images in [0, 1]")
        super().__init__(denoiser)
        self.max_noise: float = float(max_noise)
        self._taken: set[tuple[int, ...]] = set()  # shapes of images that the denoiser took

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

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the images that deepinv's DiffUNet was trained on; not known for other denoisers."""
        channels, size = (getattr(unwrapped(self.network), name, None) for name in ("in_channels", "img_size"))
        return (channels, size, size) if isinstance(channels, int) and isinstance(size, int) else None

    @property
    def multiple(self) -> int:
        """What diffusion models of deepinv, or of diffusers inside, ask for; other networks of deepinv pad."""
        return max(_multiple(part) for part in self.network.modules())

    def for_images(self, height: int, width: int) -> Prior:
        """Padded, where the denoiser does not take the size."""
        return for_images(self, height, width)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images that the denoiser does not take, and a denoiser that has no gradient there."""
        name = type(unwrapped(self.network)).__name__
        warn_of_attention(self, shape[-2] * shape[-1])
        height, width = (-(-side // self.multiple) * self.multiple for side in shape[2:])
        x = torch.full((1, shape[1], height, width), 0.5, device=self.device)
        try:
            with torch.enable_grad():
                output = self.denoise(x.requires_grad_(), self.levels(1)[0])
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            if shape[1:] in self._taken:
                raise  # no misfit, but a fault
            raise ValueError(
                f"images of shape {shape} do not fit the denoiser {name} ({error}); use a denoiser that is called as "
                "D(x, sigma) and a physics that go together in channels, size and type"
            ) from error
        if output.shape != x.shape or not output.requires_grad:
            raise ValueError(
                f"the denoiser {name} gives shape {tuple(output.shape)} for {tuple(x.shape)}, "
                f"{'with' if output.requires_grad else 'without'} a gradient; pass one that keeps the shape and is "
                "written in torch, without no_grad() or detach()"
            )
        try:
            torch.autograd.grad(output, x, torch.ones_like(output))
        except RuntimeError as error:
            raise_out_of_memory(error)
            if shape[1:] in self._taken:
                raise
            raise ValueError(
                f"the denoiser {name} has no gradient that can be taken ({error}); pass one that changes nothing in "
                "place and takes no gradient itself"
            ) from error
        self._taken.add(shape[1:])

    def denoiser(self) -> nn.Module:
        """The denoiser that was given."""
        return self.network

    def __repr__(self) -> str:
        name, size = type(unwrapped(self.network)).__name__, sum(p.numel() for p in self.parameters())
        return f"DenoiserPrior({name!r}, {size:,} parameters, max_noise={self.max_noise})"


def trained_up_to(denoiser: Denoiser) -> float:
    """The largest noise of images in [0, 1] that a denoiser of deepinv was trained on; 0.2 if that is not known."""
    if isinstance(denoiser, AsDenoiser):
        return min(denoiser.prior.levels(1)[0].sigma, 1e4)  # of pure noise there is no ratio
    sigmas = getattr(denoiser, "sigma_t", None)  # of a ScoreModelWrapper
    if callable(sigmas):
        sigmas = torch.as_tensor(sigmas(torch.tensor(float(getattr(denoiser, "T", 1.0)))))
    if torch.is_tensor(sigmas):
        sigmas = sigmas[torch.isfinite(sigmas)]
        return sigmas.max().item() / (2 if getattr(denoiser, "_was_trained_on_minus_one_one", False) else 1)
    return DIFFUSION_MODELS.get(type(denoiser).__name__, (MAX_NOISE, 1))[0]


def _multiple(part: nn.Module) -> int:
    """What height and width must be multiples of for a network of deepinv, or by a configuration of diffusers."""
    if type(part).__name__ in DIFFUSION_MODELS:
        return DIFFUSION_MODELS[type(part).__name__][1]
    return halvings(part)
