"""Picture files as tensors."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

#: what PIL raises at a file that is missing, damaged, no picture, or far too large
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

#: what is opened: PIL would hand PostScript under any name to a program, which runs it
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # of a picture: where PIL begins to warn

#: long over short side of a picture that is resized to a square: ours
MOST_ELONGATED = 100


def read_picture(file: str | Path) -> Tensor:
    """A picture of 8 or 16 bits as (3, H, W) in [0, 1], upright."""
    file = Path(file)
    if not file.is_file():  # nor a pipe, which would keep us waiting
        raise ValueError(f"{file} is no file that can be read; give a PNG or JPEG")
    try:
        with Image.open(file, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}; crop or shrink it")
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits
                pixels = np.repeat(np.asarray(picture, dtype=np.float32)[..., None] / 65535, 3, axis=2)
            else:
                pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except UnidentifiedImageError:
        raise ValueError(f"{file} is no picture that can be read; give a PNG or JPEG") from None
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def refuse_strips(image: Tensor) -> Tensor:
    """The image; refuses one so thin that it would take gigabytes when its short side is resized."""
    height, width = image.shape[-2:]
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(f"the picture of {width} x {height} pixels is a strip; crop it")
    return image


def as_png(image: Tensor) -> Image.Image:
    """An image (C, H, W) in [0, 1], clamped and rounded to 8 bits, to save."""
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image((255 * image.float().cpu().clamp(0, 1)).round().byte())
