"""A small U-Net of any size."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class UNet(nn.Module):
    """
    A block a level, down and up.

    :param int inputs: channels of the input; height and width are divisible by 2 ** (levels - 1).
    :param int outputs: channels of the output.
    :param list channels: one a level, multiples of 8.
    """

    def __init__(self, inputs: int, outputs: int, channels: list[int]) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.head = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down = nn.ModuleList(ResidualBlock(c) for c in channels)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.grow = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(ResidualBlock(c) for c in channels[:-1])
        self.tail = nn.Conv2d(channels[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=False):  # the last block has nothing below it
            kept.append(block(x))
            x = shrink(kept[-1])
        x = self.down[-1](x)
        for block, grow, fine in reversed(list(zip(self.up, self.grow, kept, strict=True))):
            x = block(F.pixel_shuffle(grow(x), 2) + fine)
        return self.tail(x)
