"""Shrinking pictures as programs, browsers and cameras do, as a deepinv physics."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from torch.nn.functional import interpolate

from deepinv_dmilo.tools.task_names import RESAMPLERS

#: what torch calls those that it has by another name, and whether they have antialiasing
TORCH = {
    "nearest": ("nearest-exact", False),
    "opencv-linear": ("bilinear", False),
    "opencv-cubic": ("bicubic", False),
    "opencv-nearest": ("nearest", False),
}


class Resampling(LinearPhysics):
    r"""
    A picture made smaller, :math:`A(x) = R_h x R_w^\top`: a new pixel is centred on the old ones that it stands for.

    deepinv's ``Downsampling`` samples a corner of each block of pixels and has a periodic boundary: of a picture that
    a program, a browser or a camera made small, it is another operator (off by one pixel at 4x).

    :param tuple img_size: (C, H, W) of the large images.
    :param tuple size: (h, w) of the small ones, of any ratio to the large ones.
    :param str resampler: "area" (the mean over each new pixel, OpenCV's ``INTER_AREA``); with antialiasing "bilinear",
        "bicubic" or "lanczos", or "nearest", as Pillow; "opencv-linear", "opencv-cubic" or "opencv-nearest" (which is
        ``x[::n, ::n]`` of whole factors), as OpenCV, without antialiasing.
    :param settings: those of :class:`deepinv.physics.LinearPhysics`, such as ``noise_model``.
    :raises ValueError: another resampler, or one that this torch does not have.
    """

    def __init__(
        self,
        img_size: tuple[int, int, int],
        size: tuple[int, int],
        resampler: str = "area",
        *,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> None:
        if resampler not in RESAMPLERS:
            raise ValueError(f"downsampling={resampler!r}: type {' or '.join(RESAMPLERS)}")
        super().__init__(img_size=img_size, **settings)
        self.register_buffer("rows", weights(img_size[1], size[0], resampler))
        self.register_buffer("columns", weights(img_size[2], size[1], resampler))
        self.to(device)

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Images (B, C, H, W) to small ones, (B, C, h, w)."""
        return self.rows.to(x) @ x @ self.columns.to(x).T

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        """Small images (B, C, h, w) to large ones, (B, C, H, W): the transpose."""
        return self.rows.to(y).T @ y @ self.columns.to(y)


def weights(old: int, new: int, resampler: str) -> Tensor:
    """What each of ``new`` pixels in a row is of the ``old`` ones, (new, old); each row adds to one."""
    if resampler == "area":
        edges, left = torch.linspace(0, old, new + 1), torch.arange(old)
        overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
        return overlap.clamp(min=0) * new / old
    mode, antialias = TORCH.get(resampler, (resampler, True))
    points = torch.eye(old)[None, None]  # each column has one pixel of the row
    try:
        return interpolate(points, size=(new, old), mode=mode, antialias=antialias)[0, 0]
    except (NotImplementedError, ValueError) as error:  # older ones have no lanczos
        raise ValueError(
            f"torch {torch.__version__} has no downsampling={resampler!r}; type bicubic, the nearest to it, or install "
            "a newer torch"
        ) from error
