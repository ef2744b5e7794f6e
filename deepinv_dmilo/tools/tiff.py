"""What TIFF files say in their tags that PIL does not heed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from deepinv_dmilo.utils.warning import warn

BITS, PHOTOMETRIC, HIGHEST, PLANAR, EXTRA, FORMAT = 258, 262, 281, 284, 338, 339  # tags
WHITE_IS_ZERO, APART, UNKNOWN, SIGNED = 0, 2, 0, 2  # values of the second, and of the last three
STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of files

#: what is read, to type where another kind was given
KINDS = "8 bits, 16 bits of grey or of interleaved colour, or 32-bit floats of grey in [0, 1]"


def is_tiff(file: Path) -> bool:
    """Whether a file begins as one, whatever its ending."""
    with file.open("rb") as stream:
        return stream.read(4) in STARTS


def check_tiff(opened: Image.Image, file: Path) -> None:
    """Refuse values that would be misread; warn of channels that are left out."""
    tags, tiles = tags_of(opened), getattr(opened, "tile", ())
    bits = max(tags.get(BITS, (1,)))
    if tags.get(PLANAR) == APART and bits > 8 and tiles and tiles[0].codec_name != "libtiff":  # which reads them well
        raise ValueError(
            f"its channels of {bits} bits lie one after the other, uncompressed (PlanarConfiguration 2); save them "
            "interleaved (1), compressed, or as PNG"
        )
    if (opened.mode == "I" and tags) or SIGNED in tags.get(FORMAT, ()):
        raise ValueError(
            "its values are integers of 32 bits, or with a sign, of which none is white; divide them by what is white "
            "and save floats in [0, 1], or 65535 times these as 16 bits"
        )
    used = white_of(opened).bit_length()
    if bits == 16 and used < bits and opened.mode == "RGB":
        raise ValueError(f"of its 16 bits of colour {used} are used; multiply its values by {2 ** (16 - used)}")
    if left := sum(kind == UNKNOWN for kind in tags.get(EXTRA, ())):
        warn(f"{left} channel(s) of {file} beside its colours are left out: it does not say that they are opacity")


def white_of(opened: Image.Image) -> int:
    """
    The integer that is white: the largest of so many bits as are used.

    The tag of the highest value gives the bits if it is that of fewer; otherwise it is a statistic, not white.
    """
    tags = tags_of(opened)
    largest = 2 ** max(tags.get(BITS, (16,))) - 1
    highest = max(tags.get(HIGHEST, (largest,)))
    return highest if 0 < highest < largest and highest & (highest + 1) == 0 else largest


def tags_of(opened: Image.Image) -> Any:
    """The tags of a TIFF, of another picture none."""
    return getattr(opened, "tag_v2", {}) if opened.format == "TIFF" else {}
