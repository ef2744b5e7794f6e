"""A prior whose network acts on tiles of a large picture."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.priors.wrappers import Wrapper, alone

# Of an overlap, over which one tile gives way to the next: with less a network that sees farther leaves seams, with
# more it must see less far to leave none (ours).
RAMP = 0.125


class Tiled(Wrapper):
    r"""
    A prior whose network acts on overlapping tiles of the latents, for pictures that it cannot take whole.

    .. math::

        \hat u(z) = \sum_k w_k \, \hat u(z_k),

    with tiles :math:`z_k` and windows :math:`w_k` that fall off in the middle of an overlap and add to one at every
    pixel, so that there are no seams. A network that sees no farther to either side than seven sixteenths of the
    overlap gives what it gives for the whole picture. The physics acts on the whole picture, and in each pass only one
    tile's graph is alive, at the price of a forward pass more.

    :param Prior prior: a prior whose latents are images, or latents of an autoencoder: then the sizes are theirs.
    :param int tile: height and width of a tile, a size that the network takes.
    :param int overlap: of neighbouring tiles, at most half a tile.

    :Examples:

        >>> from deepinv_dmilo import DiffusionPrior, Tiled
        >>> Tiled(DiffusionPrior.from_pretrained("photos"), tile=128, overlap=16).places(300)
        [0, 86, 172]
    """

    def __init__(self, prior: Prior, tile: int = 256, overlap: int = 32) -> None:
        super().__init__(prior)
        for name, value, least in (("tile", tile, 2), ("overlap", overlap, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: type a whole number of at least {least}")
        if 2 * overlap > tile:
            raise ValueError(f"overlap={overlap}: type at most half of tile={tile}")
        if tile % prior.multiple:
            raise ValueError(f"tile={tile}: type a multiple of {prior.multiple}, as the network asks")
        if not prior.affine:
            raise ValueError("give the tiles to the network alone: LatentPrior(Tiled(prior), autoencoder)")
        self.tile, self.overlap = tile, overlap
        self._made: tuple[object, dict[tuple[int, int], Tensor]] | None = None

    def places(self, length: int) -> list[int]:
        """Where tiles begin along a side: evenly, overlapping by ``overlap`` at least; a short side is one tile."""
        count = max(1, -(-(length - self.overlap) // (self.tile - self.overlap)))
        return [round(k * (length - self.tile) / max(count - 1, 1)) for k in range(count)]

    def windows(self, length: int) -> dict[int, Tensor]:
        """The weights of the tiles along a side, by where they begin; they add to one."""
        places, size = self.places(length), min(self.tile, length)
        windows = {place: torch.ones(size, dtype=torch.float64, device="cpu") for place in places}
        for before, after in pairwise(places):
            shared = before + size - after
            rising = torch.ones(size, dtype=torch.float64, device="cpu")
            rising[:shared] = (((torch.arange(shared, device="cpu") + 0.5) / shared - 0.5) / RAMP + 0.5).clamp(0, 1)
            windows[after] = windows[after] * rising
            windows[before] = windows[before] * rising.flip(0)
        total = torch.zeros(length, dtype=torch.float64, device="cpu")
        for place, window in windows.items():
            total[place : place + size] += window
        return {place: window / total[place : place + size] for place, window in windows.items()}

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """The windowed sum of the tiles' clean latents."""
        u = torch.zeros_like(z)
        for (top, left), weights in self._weights(z).items():
            bottom, end = top + weights.shape[0], left + weights.shape[1]
            clean = alone(self.prior.denoise, z[..., top:bottom, left:end], level)
            frame = (left, z.shape[3] - end, top, z.shape[2] - bottom)
            u = u + pad(weights * clean, frame)
        return u

    def _weights(self, z: Tensor) -> dict[tuple[int, int], Tensor]:
        """Those of the tiles of latents by their upper left corners, made once for a size: a copy waits for a GPU."""
        key = (z.shape[2:], z.dtype, z.device)
        if self._made is None or self._made[0] != key:
            rows, columns = self.windows(z.shape[2]), self.windows(z.shape[3])
            with torch.inference_mode(False):  # a gradient may be taken through them later
                made = {
                    (top, left): (down[:, None] * right).to(z.dtype).to(z.device)  # float64 stays where it is known
                    for top, down in rows.items()
                    for left, right in columns.items()
                }
            self._made = key, made
        return self._made[1]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Of a tile."""
        self.prior.check_shape((*shape[:2], min(shape[2], self.tile), min(shape[3], self.tile)))
