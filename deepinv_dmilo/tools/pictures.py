"""Picture files as tensors."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from deepinv_dmilo.tools.tiff import KINDS, PHOTOMETRIC, WHITE_IS_ZERO, check_tiff, is_tiff, tags_of, white_of
from deepinv_dmilo.utils.warning import warn

#: what PIL raises at a file that is missing, damaged, no picture, or far too large
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

#: what is opened: PIL would hand PostScript under any name to a program, which runs it
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
#: the endings that PIL knows for them, in lower case
ENDINGS = (
    *(".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pfm"),
    *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # of a picture: where PIL begins to warn

#: long over short side of a picture that is resized to a square: ours
MOST_ELONGATED = 100

HALF_A_LEVEL = 0.5 / 255  # that floats may be outside [0, 1]: eight bits would not show it
ROUNDING = 2  # levels of 8 bits, by which colours differ and count as the same: of a profile and sRGB, of a grey pixel


def read_picture(file: str | Path, *, ground: float | None = None) -> Tensor:
    """
    A picture of a file, upright, in the colours of sRGB; three equal channels where it is grey.

    Read are 8 bits of any kind (colour, grey, palette, two colours, CMYK), 16 bits (of colour, the upper 8), and
    grey floats in [0, 1]. Channels of a TIFF that are neither colours nor opacity are left out, with a warning.

    :param str, pathlib.Path file: PNG, JPEG, TIFF, WebP, BMP, GIF or PPM, whatever its ending.
    :param float ground: the grey level that lies behind transparent pixels; None: white, and a warning.
    :return: values in [0, 1], shape (3, H, W).
    :raises ValueError: it cannot be read, holds several pictures (pages, frames), or floats or integers of which it
        does not say what is white.
    """
    colours, opacity = read_layers(file)
    if ground is None and (share := (opacity < 1).float().mean().item()):
        warn(f"{share:.1%} of {file} is transparent, and white here; save it on the ground that you want")
    return colours * opacity + (1 - opacity) * (1.0 if ground is None else ground)


def read_layers(file: str | Path) -> tuple[Tensor, Tensor]:
    """The colours of a picture as in :func:`read_picture`, (3, H, W), and how opaque they are, (1, H, W) in [0, 1]."""
    file = Path(file)
    if not file.is_file():  # nor a pipe, which would keep us waiting
        raise ValueError(f"{file} is no file that can be read; give a PNG or JPEG")
    try:
        # Of a name, PIL maps an uncompressed TIFF into memory, and reads one that is to be turned awry.
        with file.open("rb") as stream, Image.open(stream, formats=FORMATS) as opened:
            _check_one(opened)
            check_tiff(opened, file)
            _mend_transparency(opened, file)
            upright, profile = ImageOps.exif_transpose(opened), opened.info.get("icc_profile")
            if upright.mode == "F" or upright.mode.startswith("I"):
                values, opacity = _deep(upright, opened)
                colours = np.repeat(_grey_as_srgb(values, profile, file)[..., None], 3, axis=2)
            else:
                picture, opacity = _eight_bits(upright)
                colours = np.asarray(_as_srgb(picture, profile, file).convert("RGB"), dtype=np.float32) / 255
    except UnidentifiedImageError:
        if is_tiff(file):
            raise ValueError(
                f"{file} is damaged, or a TIFF of a kind that is not read; save it as one of {KINDS}"
            ) from None
        raise ValueError(f"{file} is no picture that can be read; give a PNG or JPEG") from None
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return torch.from_numpy(colours).permute(2, 0, 1), torch.from_numpy(opacity)[None]


def _check_one(opened: Image.Image) -> None:
    """Refuse what is too large by its header, and more pictures than one."""
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MOST_PIXELS:,}; crop or shrink it")
    if opened.format == "MPO":  # a camera's JPEG, with previews or depth beside the picture
        return
    try:
        opened.seek(1)
    except EOFError:
        opened.seek(0)
    else:
        raise ValueError("it holds several pictures (pages or frames); save the one that you want as a file of its own")


def _mend_transparency(opened: Image.Image, file: Path) -> None:
    """Make the one level or colour of a PNG that is transparent one of the 8 bits that PIL makes of 2, 4 or 16."""
    tiles = getattr(opened, "tile", ()) if opened.format == "PNG" else ()
    level, how = opened.info.get("transparency"), tiles[0].args if tiles else None
    if isinstance(level, int) and how in ("L;2", "L;4"):
        opened.info["transparency"] = level * {"L;2": 85, "L;4": 17}[how]
    elif level is not None and how == "RGB;16B":
        del opened.info["transparency"]
        warn(f"the colour of {file} that is transparent has 16 bits: it is left opaque; save it with 8 bits")


def _deep(upright: Image.Image, opened: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Grey values of more than 8 bits, (H, W): floats are in [0, 1], white of b bits is 2^b - 1; and their opacity."""
    values = np.asarray(upright, dtype=np.float32)
    opacity = (values != upright.info.get("transparency", -1)).astype(np.float32)
    if upright.mode == "F":
        low, high = values.min(), values.max()
        if not (low >= -HALF_A_LEVEL and high <= 1 + HALF_A_LEVEL):  # nor NaN
            raise ValueError(
                f"its values are floats from {low:g} to {high:g}, and black is 0, white 1; divide them by what is "
                "white, clip them to [0, 1] and save them again"
            )
        values = values.clip(0, 1)
    else:
        values = values / float(white_of(opened))
    return 1 - values if tags_of(opened).get(PHOTOMETRIC) == WHITE_IS_ZERO else values, opacity


def _eight_bits(upright: Image.Image) -> tuple[Image.Image, np.ndarray]:
    """Colours of 8 bits (L, RGB or CMYK), and how opaque they are, (H, W) in [0, 1]."""
    opacity = np.ones(upright.size[::-1], dtype=np.float32)
    if upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info:
        opacity = np.asarray(upright.convert("RGBA").getchannel("A"), dtype=np.float32) / 255
    return upright.convert({"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(upright.mode, "RGB")), opacity


def _as_srgb(picture: Image.Image, profile: bytes | None, file: Path) -> Image.Image:
    """The same colours in sRGB, where a profile says that the values (L, RGB or CMYK) are those of another space."""
    if not profile:
        return picture
    try:
        given: Any = ImageCms.ImageCmsProfile(BytesIO(profile))
        if picture.mode == "L" and given.profile.xcolor_space == "RGB ":
            picture = picture.convert("RGB")
        to_srgb = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), picture.mode, "RGB")  # type: ignore
        cube = Image.fromarray((17 * np.indices((16,) * 3, dtype=np.uint8)).reshape(3, 64, 64).transpose(1, 2, 0))
        probe = cube.convert(picture.mode)
        before, after = (np.asarray(image, dtype=int) for image in (probe.convert("RGB"), to_srgb.apply(probe)))
        return picture if np.abs(after - before).max() <= ROUNDING else to_srgb.apply(picture)
    except (ImageCms.PyCMSError, OSError, ImportError) as error:
        warn(f"the colour profile of {file} cannot be used ({error}): its colours are taken for those of sRGB")
        return picture


def _grey_as_srgb(values: np.ndarray, profile: bytes | None, file: Path) -> np.ndarray:
    """The same for grey values in [0, 1] of more than 8 bits, between the 256 levels of 8."""
    levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    moved = _as_srgb(levels, profile, file)
    if moved is levels:
        return values
    return np.interp(values, np.linspace(0, 1, 256), np.asarray(moved.convert("L"))[0] / 255).astype(np.float32)


def refuse_strips(image: Tensor) -> Tensor:
    """The image; refuses one so thin that it would take gigabytes when its short side is resized."""
    height, width = image.shape[-2:]
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(f"the picture of {width} x {height} pixels is a strip; crop it")
    return image


def is_grey(picture: Tensor) -> bool:
    """Whether all channels of images (..., C, H, W) in [0, 1] are equal, but for what lossy formats round."""
    spread = picture.amax(-3) - picture.amin(-3)
    return bool((spread <= ROUNDING / 255 + HALF_A_LEVEL).all())


def as_grey(picture: Tensor) -> Tensor:
    """The mean of the channels of images (..., C, H, W), (..., 1, H, W); where they are equal, exactly these."""
    first = picture[..., :1, :, :]
    return first + (picture - first).mean(-3, keepdim=True)


def as_png(image: Tensor) -> Image.Image:
    """An image (C, H, W) in [0, 1], clamped and rounded to 8 bits, to save."""
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image((255 * image.float().cpu().clamp(0, 1)).round().byte())


def scaled_to_white(image: Tensor) -> tuple[Tensor, float]:
    """An image of values from 0, divided by the largest of them, and that."""
    white = image.max().item()
    return image / (white or 1.0), white


def png_bytes(image: Tensor) -> bytes:
    """The file of an image (C, H, W) in [0, 1], a PNG of 8 bits."""
    stream = BytesIO()
    as_png(image).save(stream, "PNG")
    return stream.getvalue()
