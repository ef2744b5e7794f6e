"""Fourier transforms of images with a periodic boundary."""

import torch
from torch import Tensor
from torch.nn import functional as F


def taper(side: int, like: Tensor, *, border: int = 16) -> Tensor:
    """A window (side,) that falls to zero over so many pixels at both ends."""
    inside = torch.arange(side, device=like.device) + 0.5
    return torch.sin(torch.minimum(inside, side - inside).clamp(max=border) / border * torch.pi / 2) ** 2


def neighbourhood(images: Tensor, side: int) -> Tensor:
    """The side x side pixels around the first, which comes to side // 2."""
    place = torch.arange(side, device=images.device) - side // 2
    return images[..., (place % images.shape[-2])[:, None], place % images.shape[-1]]


def transfer_function(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Half the transform, at an image size, of kernels (..., h, w) with the origin at h // 2, w // 2."""
    height, width = kernel.shape[-2:]
    wide = F.pad(kernel, [0, size[1] - width, 0, size[0] - height])
    return torch.fft.rfft2(wide.roll((-(height // 2), -(width // 2)), (-2, -1)))


def multiplicity(width: int, like: Tensor) -> Tensor:
    """How often each column of half a transform is in the whole, (width // 2 + 1,)."""
    columns = torch.arange(width // 2 + 1, device=like.device)
    return torch.where((columns == 0) | (2 * columns == width), 1.0, 2.0).to(like)


def laplacian(size: tuple[int, int], like: Tensor) -> Tensor:
    """Half the transfer function of the negative Laplacian."""
    rows, columns = torch.fft.fftfreq(size[0], device=like.device), torch.fft.rfftfreq(size[1], device=like.device)
    return 4 * (torch.sin(torch.pi * rows)[:, None] ** 2 + torch.sin(torch.pi * columns) ** 2)
