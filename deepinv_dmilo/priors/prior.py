"""The contract of a prior: noise levels, the clean image of a noisy one, and the one formula of a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise
from math import hypot
from typing import NamedTuple, Protocol, TypeVar

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

from deepinv_dmilo.utils.draws import Draws
from deepinv_dmilo.utils.private import frozen

_Prior = TypeVar("_Prior", bound="Prior")


class Level(NamedTuple):
    """A noise level: a latent there is ``signal * u + noise * eps``, u clean and eps standard normal."""

    signal: float
    noise: float
    time: float = 0.0  # the network's time argument

    @property
    def ratio(self) -> float:
        """Standard deviation of the noise, relative to u."""
        return self.noise / self.signal if self.signal > 0 else float("inf")

    @property
    def sigma(self) -> float:
        """The same for images in [0, 1], half as wide as u."""
        return self.ratio / 2

    @property
    def spread(self) -> float:
        """Standard deviation of latents, for u of standard deviation 1."""
        return hypot(self.signal, self.noise)


class Energy(Protocol):
    """A term of -log p(x) apart from the network."""

    def energy(self, x: Tensor) -> Tensor:
        """Of images in [0, 1], (n, C, H, W) -> (n,), differentiable."""

    def select(self, rows: Tensor) -> Energy:
        """That of some of the rows."""


class Prior(nn.Module):
    r"""
    A denoiser that images are reconstructed with.

    An adapter of a family of networks writes :meth:`level`, :meth:`levels` and :meth:`denoise`, and where its latents
    are no images in [-1, 1], :meth:`decode` and :meth:`encode` too. Nothing else knows the family.

    :param torch.nn.Module network: the network whose passes are counted.
    """

    #: whether latents are images in other units, so that noise of the one is noise of the other
    affine: bool = True
    #: the least and the largest value of a pixel
    limits: tuple[float, float] = (0.0, 1.0)
    #: of a batch of images
    dimensions: tuple[str, ...] = ("B", "C", "H", "W")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.name: str | None = None

    def level(self, ratio: float) -> Level:
        """The level whose noise, relative to the clean latent, is nearest to ``ratio``."""
        raise NotImplementedError

    def levels(self, num_layers: int) -> tuple[Level, ...]:
        """The ``num_layers + 1`` levels of a chain from the noisiest to the image."""
        raise NotImplementedError

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """The network's estimate of the clean latent u from z, shape (n, C, H, W), differentiable."""
        raise NotImplementedError

    def decode(self, u: Tensor) -> Tensor:
        """From a clean latent to images in deepinv's range [0, 1]."""
        return (u + 1) / 2

    def encode(self, x: Tensor) -> Tensor:
        """From images in [0, 1] to clean latents, here in [-1, 1]."""
        return 2 * x - 1

    def step(self, z: Tensor, a: Level, b: Level) -> Tensor:
        """A deterministic step from level a to b: DDIM where signal and noise trade off, Euler where they do not."""
        u = self.denoise(z, a)
        return b.signal * u + b.noise * (z - a.signal * u) / a.noise

    def forward(self, z: Tensor, num_layers: int = 3) -> Tensor:
        """A whole chain: latents z at the noisiest level, (n, C, H, W), to clean ones of the same shape."""
        levels = self.levels(num_layers)
        for a, b in pairwise(levels):
            z = self.step(z, a, b)
        return z

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, H, W) of the images the network was trained on, None if that is not known."""
        return None

    @property
    def multiple(self) -> int:
        """That height and width of images must be multiples of."""
        return 1

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError where the network cannot take images of shape (B, C, H, W)."""

    def for_images(self, height: int, width: int) -> Prior:
        """The prior for images of a size; where the network cannot take it, one that pads them for it."""
        return self

    def solved(self, x: Tensor) -> Tensor:
        """Images (..., C, H, W) as the solvers see them: those of :class:`deepinv_dmilo.Slicewise` are volumes."""
        return x

    def given(self, x: Tensor) -> Tensor:
        """Images as y and physics have them, from those of the solvers."""
        return x

    def energy(self, x: Tensor) -> Tensor:
        """The term of -log p(x) apart from the network, for images in [0, 1], (n, C, H, W) -> (n,): here 0."""
        return x.new_zeros(len(x))

    def perturbed_energy(self, x: Tensor, draw: Callable[[tuple[int, ...]], Tensor]) -> Energy:
        """
        The energy whose minimiser is an exact draw, if its terms are mixtures of normal ones; here the energy itself.

        :param torch.Tensor x: current images, (n, C, H, W), given which the weights of the terms are drawn.
        :param draw: gives standard normal noise for each row, (n, ...), of a shape without n.
        """
        return self

    def starting_noise(self, noise: Tensor) -> Tensor:
        """The noise that an optimisation starts from, of standard normal noise like latents: the same."""
        return noise

    def select(self, rows: Tensor) -> Prior:
        """The prior of some rows of a batch, where images have conditions of their own."""
        return self

    def denoiser(self) -> nn.Module:
        """The same network as a deepinv denoiser (images in [0, 1]), for deepinv's DPS, DiffPIR, DDRM and others."""
        return AsDenoiser(self)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((t.device for t in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator | int = 0, *, num_layers: int = 50) -> Tensor:
        """
        Images of the prior in [0, 1], (n, C, H, W): a chain applied to n different noises.

        :param int n: how many.
        :param torch.Generator, int rng: a generator, or a seed: the same images at every call.
        :param int num_layers: steps of the chain; with few they are coarse.
        """
        if self.image_shape is None:
            raise ValueError("the network does not tell its image size; use prior.decode(prior(z)) with your own z")
        prior = self.frozen()
        shape = prior.encode(torch.full((1, *self.image_shape), 0.5, device=self.device)).shape
        z = prior.levels(num_layers)[0].spread * Draws(rng)("start", 0, shape[1:], torch.arange(n)).to(self.device)
        return prior.decode(prior(z, num_layers)).clamp(*self.limits)

    def frozen(self: _Prior) -> _Prior:
        """The same weights in evaluation mode, without gradients of them; the prior itself stays as it is."""
        return frozen(self)


def not_finite(network: nn.Module) -> list[str]:
    """The names of a network's weights that have NaN or infinite values."""
    return [name for name, p in network.named_parameters() if not torch.isfinite(p).all()]


class AsDenoiser(Denoiser):
    """
    A prior as a deepinv denoiser: images of noise sigma are latents of the level that is nearest to it.

    :param Prior prior: the prior.
    :raises ValueError: its latents are those of an autoencoder.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        if not prior.affine:
            raise ValueError("noise of an image is no noise of its latent: give a prior without an autoencoder")
        self.prior: Prior = prior

    def forward(self, x: Tensor, sigma: Tensor | float, **kwargs: object) -> Tensor:
        """
        The network's estimate of the clean images.

        :param torch.Tensor x: noisy images in [0, 1], (B, C, H, W).
        :param torch.Tensor, float sigma: standard deviation of their noise, one for all or of each image,
            (B,) or (B, 1, 1, 1).
        :raises ValueError: sigma is of other images, or the prior does not take them.
        """
        each = sigma if isinstance(sigma, Tensor) else torch.as_tensor(sigma, dtype=torch.float64, device="cpu")
        if each.numel() != 1 and not (len(each) == each.numel() == len(x)):
            raise ValueError(
                f"sigma has shape {tuple(each.shape)} and x {tuple(x.shape)}; type one number, or one for each image, "
                f"shape ({len(x)},)"
            )
        # By item(): tolist() fails within torch.func in older versions of torch (2.6, say).
        sigmas = [one.item() for one in each.detach().cpu().flatten()] * (len(x) if each.numel() == 1 else 1)
        self.prior.check_shape(tuple(x.shape))
        prior = self.prior.for_images(*x.shape[2:])
        of_sigma = {s: prior.level(2 * s) for s in set(sigmas)}
        z, levels = prior.encode(x), [of_sigma[s] for s in sigmas]
        order, clean = [], []
        for level in dict.fromkeys(levels):
            rows = torch.tensor([k for k, other in enumerate(levels) if other == level], device=x.device)
            order.append(rows)
            clean.append(prior.select(rows).denoise(level.signal * z[rows], level))
        return prior.decode(torch.cat(clean)[torch.cat(order).argsort()])
