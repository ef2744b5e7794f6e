"""The bundled prior of blur kernels, and how its images show them."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.prior import Prior

KERNEL_SIDE, IMAGE_SIDE = 33, 36  # largest kernel; image of the prior, with zeros below and to the right
_LEAST = 1e-9  # floor of an entry over the largest, for the gradient of the root


@lru_cache(maxsize=4)
def kernel_prior(device: torch.device, dtype: torch.dtype) -> Prior:
    """The bundled prior ``kernels``; its weights are shared and never change."""
    return DiffusionPrior.from_pretrained("kernels").to(device, dtype).requires_grad_(False)


def as_images(kernels: Tensor) -> Tensor:
    """Kernels (n, 1, h, w) of at most 33 x 33 as images of the prior, (n, 1, 36, 36): roots over their maximum."""
    height, width = kernels.shape[-2:]
    top, left = (KERNEL_SIDE // 2 - side // 2 for side in (height, width))
    roots = (kernels / kernels.amax((-2, -1), keepdim=True)).clamp(min=_LEAST).sqrt()
    return pad(roots, [left, IMAGE_SIDE - width - left, top, IMAGE_SIDE - height - top])


def as_kernels(images: Tensor, height: int, width: int) -> Tensor:
    """Kernels (n, 1, h, w) that sum to one, of images of the prior with values of at least 0."""
    top, left = (KERNEL_SIDE // 2 - side // 2 for side in (height, width))
    squares = images[..., top : top + height, left : left + width].square() + _LEAST
    return squares / squares.sum((-2, -1), keepdim=True)


def middle(kernels: Tensor) -> Tensor:
    """The middle 33 x 33 of kernels, (..., h, w), at most."""
    for dim in (-2, -1):
        centre, half = kernels.shape[dim] // 2, KERNEL_SIDE // 2
        start = max(0, centre - half)
        kernels = kernels.narrow(dim, start, min(kernels.shape[dim], centre + half + 1) - start)
    return kernels
