"""Images of a size that a network cannot take, padded for it alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from deepinv_dmilo.core.prior import Level, Prior


class Padded(Prior):
    """
    A prior for images of one size, whose latents are padded to what its network takes.

    Encoding mirrors the image at its right and lower edge, decoding crops it: the physics never sees the padding.

    :param Prior prior: the prior.
    :param int height: of the images, as is ``width``.
    :param int multiple: that height and width of the latents are made multiples of.
    """

    def __init__(self, prior: Prior, height: int, width: int, multiple: int) -> None:
        super().__init__(prior.network)
        self.prior: Prior = prior
        self.height, self.width = height, width
        self.padding = (0, -width % multiple, 0, -height % multiple)

    def level(self, ratio: float) -> Level:
        """That of the prior."""
        return self.prior.level(ratio)

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """Those of the prior."""
        return self.prior.levels(num_layers)

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """Of padded latents."""
        return self.prior.denoise(z, level)

    def encode(self, x: Tensor) -> Tensor:
        """Images of the size to padded latents."""
        inside = self.padding[1] < self.width and self.padding[3] < self.height
        return self.prior.encode(pad(x, self.padding, mode="reflect" if inside else "replicate"))

    def decode(self, u: Tensor) -> Tensor:
        """Padded latents to images of the size."""
        return self.prior.decode(u)[..., : self.height, : self.width]
