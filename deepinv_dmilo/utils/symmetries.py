"""The symmetries of a square."""

from torch import Tensor

WAYS = 8  # that a square is turned and mirrored


def turned(images: Tensor, way: int) -> Tensor:
    """Images (..., H, W) in one of the eight ways: a number of quarter turns, mirrored first from way 4 on."""
    return (images.flip(-1) if way >= 4 else images).rot90(way % 4, (-2, -1))


def turned_back(images: Tensor, way: int) -> Tensor:
    """The inverse of ``turned``."""
    images = images.rot90(-(way % 4), (-2, -1))
    return images.flip(-1) if way >= 4 else images
