"""Priors around a prior: pictures that its network cannot take in size or in channels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from deepinv_dmilo.priors.conditioning import configuration
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.utils.warning import warn

LARGE = 4.0  # times the pixels of the training, above which the cost of attention is a warning: ours


def for_images(prior: Prior, height: int, width: int) -> Prior:
    """A prior for images of a size, padded to its multiple."""
    return Padded(prior, height, width) if height % prior.multiple or width % prior.multiple else prior


def halvings(network: object) -> int:
    """What the halvings of a network, or the patches of a transformer, ask of height and width."""
    return configuration(network, "patch_size") or 2 ** (len(configuration(network, "block_out_channels") or (0,)) - 1)


def has_attention(prior: Prior) -> bool:
    """Whether the network has self-attention."""
    return any("Attention" in type(m).__name__ for m in prior.network.modules())


def warn_of_attention(prior: Prior, pixels: int) -> None:
    """Warn of the cost of a network's self-attention on images much larger than those of its training."""
    shape = prior.image_shape
    if shape is None or not has_attention(prior):
        return
    times = pixels / (shape[1] * shape[2])
    if times >= LARGE:
        warn(
            f"the network's self-attention takes memory and time with the fourth power of the side: {times**2:.0f} "
            f"times that of its {shape[1]} x {shape[2]} pixels; a network without it, Tiled(prior) or smaller images "
            "cost less"
        )


class Wrapper(Prior):
    """
    A prior around another, whose levels and network are its own; subclasses write what differs.

    :param Prior prior: the one inside.
    """

    def __init__(self, prior: Prior) -> None:
        if not isinstance(prior, Prior):
            raise TypeError(
                f"prior is a {type(prior).__name__}; pass DiffusionPrior.from_pretrained(NAME), say, or "
                "DiffusionPrior.from_denoiser(denoiser)"
            )
        torch.nn.Module.__init__(self)
        self.prior: Prior = prior
        self.name = prior.name
        self.affine, self.limits = prior.affine, prior.limits

    @property
    def network(self) -> torch.nn.Module:  # type: ignore[override]
        """That of the prior inside, where another one can be put in its place."""
        return self.prior.network

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "network":
            self.prior.network = value
        else:
            super().__setattr__(name, value)

    def level(self, ratio: float) -> Level:
        """That of the prior inside."""
        return self.prior.level(ratio)

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """Those of the prior inside."""
        return self.prior.levels(num_layers)

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """Of latents of the prior inside."""
        return self.prior.denoise(z, level)

    def encode(self, x: Tensor) -> Tensor:
        """As the prior inside."""
        return self.prior.encode(x)

    def decode(self, u: Tensor) -> Tensor:
        """As the prior inside."""
        return self.prior.decode(u)

    def select(self, rows: Tensor) -> Prior:
        """Around some rows of the prior inside."""
        inside = self.prior.select(rows)
        return self if inside is self.prior else self._around(inside)

    @property
    def multiple(self) -> int:
        """That of the prior inside."""
        return self.prior.multiple

    def for_images(self, height: int, width: int) -> Prior:
        """Padded, where it does not take the size."""
        return for_images(self, height, width)

    def _around(self, prior: Prior) -> Prior:
        """The same around another prior."""
        chosen = copy.copy(self)
        chosen._modules = {**self._modules, "prior": prior}
        return chosen

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """As the prior inside."""
        self.prior.check_shape(shape)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """That of the prior inside."""
        return self.prior.image_shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.prior!r})"


class Padded(Wrapper):
    """
    A prior for images of one size, whose latents are padded to what its network takes.

    Encoding mirrors the image at its right and lower edge, decoding crops it: the physics acts without the padding.

    :param Prior prior: the prior.
    :param int height: of the images, as is ``width``.
    """

    def __init__(self, prior: Prior, height: int, width: int) -> None:
        super().__init__(prior)
        multiple = prior.multiple
        self.height, self.width = height, width
        self.padding = (0, -width % multiple, 0, -height % multiple)

    def for_images(self, height: int, width: int) -> Prior:
        """Of another size."""
        return self if (height, width) == (self.height, self.width) else self.prior.for_images(height, width)

    def encode(self, x: Tensor) -> Tensor:
        """Images of the size to padded latents."""
        inside = self.padding[1] < self.width and self.padding[3] < self.height
        return self.prior.encode(pad(x, self.padding, mode="reflect" if inside else "replicate"))

    def decode(self, u: Tensor) -> Tensor:
        """Padded latents to images of the size."""
        return self.prior.decode(u)[..., : self.height, : self.width]


class Channelwise(Wrapper):
    """
    A prior of grey images for images of any number of channels, each channel by itself, in [0, 1].

    Real and imaginary parts have negative values, which it does not know: see :class:`deepinv_dmilo.Complex`.

    :param Prior prior: of images of one channel; a condition of an image is that of all its channels.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        if not prior.affine or isinstance(prior, Greyscale):
            raise ValueError("the channels of an autoencoder's latents go together, or Greyscale's; give a grey prior")

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """Every channel as an image of its own."""
        prior = self.prior.select(torch.arange(len(z)).repeat_interleave(z.shape[1]))
        return self._apart(z, lambda channels: prior.denoise(channels, level))

    def encode(self, x: Tensor) -> Tensor:
        """Every channel as an image of its own."""
        return self._apart(x, self.prior.encode)

    def decode(self, u: Tensor) -> Tensor:
        """Every channel as an image of its own."""
        return self._apart(u, self.prior.decode)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Of one channel."""
        self.prior.check_shape((shape[0], 1, *shape[2:]))

    @staticmethod
    def _apart(images, function):  # type: ignore[no-untyped-def]
        n, channels = images.shape[:2]
        result = function(images.reshape(n * channels, 1, *images.shape[2:]))
        return result.reshape(n, -1, *result.shape[2:])


class Greyscale(Wrapper):
    """
    A prior of colour images for grey ones, (n, 1, H, W) in [0, 1]: latents keep their channels, decoding is a mean.

    :param Prior prior: of red, green and blue; an estimated noise level is half the true one, so give ``noise_level``.
    :raises ValueError: it has another number of channels.

    :Examples:

        >>> from deepinv_dmilo import DiffusionPrior, Greyscale
        >>> Greyscale(DiffusionPrior.from_pretrained("photos")).image_shape
        (1, 64, 64)
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        channels = prior.image_shape[0] if prior.image_shape else 3
        if channels != 3:
            grey = "takes grey images as it is: type DMILO(prior)" if channels == 1 else "not red, green and blue"
            raise ValueError(f"the prior has {channels} channel{'s' * (channels > 1)}, {grey}")

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """
        Of latents of the prior inside; where their channels are equal, so is the noise of these.

        In their mean it is sqrt(3) times what the network expects: a noisier level (ours; measured in docs/prior.rst).
        """
        if z.shape[1] == 1:
            raise ValueError(f"z is {tuple(z.shape)}, and latents have the channels of the prior; leave init out")
        if self.affine and torch.equal(z, z[:, :1].expand_as(z)):
            noisier = self.prior.level(3**0.5 * level.ratio)
            z, level = noisier.signal / level.signal * z, noisier
        return self.prior.denoise(z, level)

    def encode(self, x: Tensor) -> Tensor:
        """From grey images, as colour images of three equal channels."""
        return self.prior.encode(x.expand(-1, 3, -1, -1))

    def decode(self, u: Tensor) -> Tensor:
        """The mean of the channels."""
        return self.prior.decode(u).mean(1, keepdim=True)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Of one channel outside, three inside."""
        if len(shape) != 4 or shape[1] != 1:
            raise ValueError(f"images of shape {shape} are not (B, 1, H, W); for colour type prior, without Greyscale")
        self.prior.check_shape((shape[0], 3, *shape[2:]))

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """That of the prior inside, in grey."""
        return None if self.prior.image_shape is None else (1, *self.prior.image_shape[1:])


class Complex(Wrapper):
    """
    A prior of two channels for complex images: real and imaginary part as two channels in [-1, 1], as deepinv's MRI.

    :param Prior prior: trained on such images, the two parts as its channels.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        channels = prior.image_shape[0] if prior.image_shape else 2
        if channels != 2:
            raise ValueError(
                f"the prior has {channels} channel{'s' * (channels > 1)}, and complex images are two, real and "
                "imaginary part; give a prior that was trained on both (magnitudes alone say nothing of the phase)"
            )
        self.limits = (-1.0, 1.0)

    def level(self, ratio: float) -> Level:
        """That of half the ratio, with twice the noise: all latents are twice those of the prior inside."""
        return self._outside(self.prior.level(ratio / 2))

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """Those of the prior inside, likewise."""
        return tuple(self._outside(level) for level in self.prior.levels(num_layers))

    @staticmethod
    def _outside(level: Level) -> Level:
        return level._replace(noise=2 * level.noise)

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """Twice that of the prior inside."""
        return 2 * self.prior.denoise(z / 2, level._replace(noise=level.noise / 2))

    def encode(self, x: Tensor) -> Tensor:
        """From parts in [-1, 1]."""
        return 2 * self.prior.encode((x + 1) / 2)

    def decode(self, u: Tensor) -> Tensor:
        """To parts in [-1, 1]."""
        return 2 * self.prior.decode(u / 2) - 1


def alone(function, z: Tensor, other: Level | Prior) -> Tensor:  # type: ignore[no-untyped-def]
    """A function of latents whose graph is built again in the backward pass, alone."""
    if torch.is_grad_enabled() and z.requires_grad:
        return checkpoint(function, z, other, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn
    return function(z, other)
