"""The pictures that the options of ``deepinv-dmilo reconstruct`` name, as tensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.priors.wrappers import Greyscale
from deepinv_dmilo.tools.folder import shown
from deepinv_dmilo.tools.pictures import as_grey, is_grey, read_layers, read_picture


def picture_of(args: argparse.Namespace, prior: Prior) -> tuple[Prior, Tensor]:
    """
    The picture of the command line, (1, C, H, W), and the prior for it.

    A colour prior takes a grey one as one channel: three equal ones are one measurement with one noise, not three.
    """
    channels = prior.image_shape[0] if prior.image_shape else 3
    hides = args.mask is not None and args.mask.samefile(args.image)  # what is transparent
    picture = _read(args.image, channels, f"the prior {args.prior!r}", ground=1.0 if hides else None).to(prior.device)
    if channels != 3 or not is_grey(picture):
        return prior, picture
    print(f"{shown(str(args.image))} is grey: it is reconstructed, and written, as one channel")
    return Greyscale(prior), as_grey(picture)


def mask_of(args: argparse.Namespace, picture: Tensor) -> Tensor | None:
    """The mask of the command line, (C, H, W) as the picture (1, C, H, W)."""
    if args.mask is None:
        return None
    is_image = args.mask.samefile(args.image)
    values = read_layers(args.mask)[1] if is_image else _read(args.mask, 1, "a mask", ground=0.0)[0]
    mask = values == 1 if is_image else values > 0.5  # at the edge of a hole colours are mixed with what lies behind
    known, missing = ("opaque", "transparent") if is_image else ("white", "black")
    if mask.shape[1:] != picture.shape[2:]:
        mask_size, size = (f"{t.shape[-1]} x {t.shape[-2]}" for t in (mask, picture))
        raise ValueError(f"--mask {args.mask} has {mask_size} pixels, IMAGE {size}; resize it")
    if not mask.any():
        most = f"no pixel has more than {values.max():.1%} of {known}"
        for white in (255, 65535):
            if (values.max() * white - 1).abs() < 1e-3:  # a mask of 0 and 1, saved as integers
                most = f"its highest value is 1 of {white}; multiply it by {white}"
        raise ValueError(f"--mask {args.mask} is {missing}: nothing is known, {most}; give {known} where it is known")
    if mask.all():
        raise ValueError(f"--mask {args.mask} is {known}: nothing is missing; give {missing} where it is not known")
    print(f"{mask.float().mean():.1%} of the picture is known, where {shown(str(args.mask))} is {known}")
    return mask.float().expand(picture.shape[1], -1, -1)


def kernel_of(args: argparse.Namespace, size: tuple[int, ...]) -> Tensor | None:
    """The blur kernel of the command line, (1, 1, h, w) with odd sides, sums to one; not larger than the picture."""
    if args.kernel is None:
        return None
    kernel = _read(args.kernel, 1, "a kernel", ground=0.0)
    if not kernel.sum() > 0:
        raise ValueError(f"--kernel {args.kernel} is black; give a picture of the blur of a point, white on black")
    height, width = kernel.shape[2:]
    if height >= size[0] or width >= size[1]:
        raise ValueError(f"--kernel {args.kernel} has {width} x {height} pixels, IMAGE {size[1]} x {size[0]}; crop it")
    if height % 2 == 0 or width % 2 == 0:
        print(f"--kernel {args.kernel} has {width} x {height} pixels, no middle: the picture may move by half a pixel")
    return pad(kernel / kernel.sum(), (0, 1 - width % 2, 0, 1 - height % 2))


def _read(file: Path, channels: int, what: str, *, ground: float | None = None) -> Tensor:
    """A picture as (1, channels, H, W) in [0, 1], on ``ground``; refuses colour where one channel is wanted."""
    picture = read_picture(file, ground=ground)
    if channels == 1 and not is_grey(picture):
        raise ValueError(f"{file} is a colour picture and {what} takes grey ones; convert it to grey")
    return (as_grey(picture) if channels == 1 else picture)[None, :channels]
