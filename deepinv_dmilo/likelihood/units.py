"""What measurements are counted in, so that their unit does not matter, nor whether their noise is of one size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, like_parts, parts


@dataclass(frozen=True)
class Units:
    """
    What the measurements of B images are counted in: as the physics has them, divided by a number, or each by its own.

    :param float scale: the number; a power of two, which changes no digit.
    :param relative: what each measurement is divided by besides, (1, ...) or (B, ...) for each part of measurements,
        of a mean square of 1; None: nothing.
    """

    scale: float = 1.0
    relative: tuple[Tensor, ...] | None = None

    @classmethod
    def of_size(cls, largest: float) -> Units:
        """In which such a measurement is about 1."""
        return cls() if largest <= 0 else cls(2.0 ** math.frexp(largest)[1])

    def counted(self, y: Measurements, rows: Tensor) -> Measurements:
        """Measurements as the physics has them, (n, ...), in these units; ``rows`` are those of the images, (n,)."""
        return like_parts(y, [t / self.scale / self._of(k, rows) for k, t in enumerate(parts(y))])

    def as_made(self, y: Measurements, rows: Tensor) -> Measurements:
        """Measurements in these units, (n, ...), as the physics has them."""
        return like_parts(y, [t * self._of(k, rows) * self.scale for k, t in enumerate(parts(y))])

    def _of(self, part: int, rows: Tensor) -> Tensor | float:
        if self.relative is None:
            return 1.0
        t = self.relative[part]
        return t[rows % len(t)]
