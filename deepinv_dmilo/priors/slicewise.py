"""A prior of images for volumes and films, slice by slice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepinv_dmilo.priors.prior import Energy, Level, Prior
from deepinv_dmilo.priors.wrappers import Wrapper, alone
from deepinv_dmilo.utils.draws import inverse_gaussian
from deepinv_dmilo.utils.settings import check_settings


@dataclass(frozen=True)
class Fold:
    """
    Volumes (..., C, D, H, W) as images of many channels, those of a slice together, and back.

    :param int axis: along which slices are stacked: -3, -2 or -1.
    :param int slices: how many.
    """

    axis: int
    slices: int

    def images(self, volumes: Tensor) -> Tensor:
        """Volumes (..., C, D, H, W) as images, (..., D * C, H, W) for the first axis."""
        return volumes.movedim(self.axis, -4).flatten(-4, -3)

    def volumes(self, images: Tensor) -> Tensor:
        """The volumes of such images."""
        return images.unflatten(-3, (self.slices, -1)).movedim(-4, self.axis).contiguous()  # a physics may view it

    def differences(self, images: Tensor) -> Tensor:
        """Those of the neighbouring slices of the volumes."""
        return self.volumes(images).diff(dim=self.axis)


class Slicewise(Wrapper):
    r"""
    A prior of images for volumes and films (B, C, D, H, W), each slice by itself; the physics acts on the whole volume.

    A pass of the network is one of all slices; ``micro_batch`` of the model counts slices. It is the outermost wrapper,
    as in ``Slicewise(Channelwise(prior))``.

    Slices are independent in the prior: what ties them is the physics and, with a ``slice_difference`` b, a total
    variation along the axis, as in :footcite:t:`chung2023diffusionmbir`, smooth below b. With d the difference of a
    pixel from that of the next slice,

    .. math::

        p(x) \propto \prod_k p(x_k) \prod_d \exp\Big(-\sqrt{1 + d^2 / b^2}\Big).

    :param Prior prior: of slices, (n, C, H, W) for the first axis; a condition of a volume is that of all its slices.
    :param int axis: dimension of (B, C, D, H, W) along which slices are stacked, 2, 3 or 4 (or -3, -2, -1); of films
        (B, C, T, H, W) that of time is 2.
    :param float slice_difference: b: the scale of d, for images in [0, 1], such as 0.1; about the root mean square of
        the differences of neighbouring slices. None: slices are independent. With it, all slices start with the same
        noise; in :class:`deepinv_dmilo.DMILOSampler`, which takes 0.01 or more, each has its own.

    :Examples:

        >>> import deepinv as dinv
        >>> import torch
        >>> from deepinv_dmilo import DMILO, DiffusionPrior, Slicewise
        >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
        >>> y = physics(torch.zeros(1, 1, 5, 32, 32))
        >>> DMILO(Slicewise(DiffusionPrior.from_pretrained("digits")), max_passes=2)(y, physics).shape
        torch.Size([1, 1, 5, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    dimensions = ("B", "C", "D", "H", "W")

    def __init__(self, prior: Prior, axis: int = 2, *, slice_difference: float | None = None) -> None:
        super().__init__(prior)
        if isinstance(axis, bool) or axis not in (2, 3, 4, -3, -2, -1):
            raise ValueError(f"axis={axis!r}: type the dimension of (B, C, D, H, W) that counts slices: 2, 3 or 4")
        if slice_difference is not None:
            check_settings(steps={}, rates={"slice_difference": slice_difference}, weights={})
        self.axis = axis - 5 if axis > 0 else axis
        self.slice_difference = slice_difference
        #: slices per pass of the network; None: all
        self.at_once: int | None = None

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """Every slice as an image of its own."""
        return self._each(lambda prior, part: prior.denoise(part, level), z)

    def encode(self, x: Tensor) -> Tensor:
        """Every slice as an image of its own."""
        return self._each(lambda prior, part: prior.encode(part), x)

    def decode(self, u: Tensor) -> Tensor:
        """Every slice as an image of its own."""
        return self._each(lambda prior, part: prior.decode(part), u)

    def energy(self, x: Tensor) -> Tensor:
        """The total variation along the axis, in units of ``slice_difference``."""
        if self.slice_difference is None:
            return super().energy(x)
        differences = x.diff(dim=self.axis) / float(self.slice_difference)
        return ((1 + differences.square()).sqrt() - 1).flatten(1).sum(1)

    def _each(self, function: Callable[[Prior, Tensor], Tensor], volumes: Tensor) -> Tensor:
        """A function of the prior and slices; of several parts, the graph of only one is alive."""
        stacked = volumes.movedim(self.axis, 1)
        slices = stacked.flatten(0, 1)
        each = torch.arange(len(stacked)).repeat_interleave(stacked.shape[1])
        size = self.at_once or len(slices)
        parts = list(zip(slices.split(size), map(self.prior.select, each.split(size)), strict=True))
        run = alone if len(parts) > 1 else lambda function, *args: function(*args)
        results = [run(lambda z, prior: function(prior, z), part, prior) for part, prior in parts]
        return torch.cat(results).unflatten(0, stacked.shape[:2]).movedim(1, self.axis)

    def for_images(self, *size: int) -> Prior:  # type: ignore[override]
        """Of volumes of size (D, H, W): around the prior for their slices."""
        inside = self.prior.for_images(*self._of_a_slice(size))
        return self if inside is self.prior else self._around(inside)

    def in_parts(self, at_once: int | None) -> Slicewise:
        """The same with at most so many slices per pass of the network."""
        parted = copy.copy(self)
        parted.at_once = at_once
        return parted

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Of a slice."""
        self.prior.check_shape((*shape[:2], *self._of_a_slice(shape[2:])))

    @property
    def image_shape(self) -> None:
        """None: any number of slices."""
        return None

    def _of_a_slice(self, size: tuple[int, ...]) -> list[int]:
        return [length for k, length in enumerate(size) if k - 3 != self.axis]


@dataclass(frozen=True)
class NormalTerms:
    r"""
    :math:`\sum (\sqrt w d - \epsilon)^2 / 2` over the differences of slices: the total variation given its weights.

    For d in units of ``slice_difference``, :math:`\exp(-\sqrt{1 + d^2})` is a mixture of :math:`\exp(-w d^2 / 2)`.
    Given d, w has the inverse Gaussian distribution of mean :math:`1 / \sqrt{1 + d^2}` and shape 1, as in the Bayesian
    lasso :footcite:p:`park2008bayesian`.

    :param Fold fold: gives the differences of images.
    :param torch.Tensor roots: of w, like the differences.
    :param torch.Tensor noise: standard normal, for a draw by optimisation.
    """

    fold: Fold
    roots: Tensor
    noise: Tensor

    def energy(self, x: Tensor) -> Tensor:
        """That of images, (n, C, H, W) -> (n,)."""
        return (self.roots * self.fold.differences(x) - self.noise).square().flatten(1).sum(1) / 2

    def select(self, rows: Tensor) -> NormalTerms:
        """That of some of the rows."""
        return NormalTerms(self.fold, self.roots[rows], self.noise[rows])


class Folded(Wrapper):
    """
    A prior of volumes for their images of many channels, as the solvers see them.

    :param Slicewise prior: the prior.
    :param Fold fold: from the one to the other.
    """

    def __init__(self, prior: Slicewise, fold: Fold) -> None:
        super().__init__(prior)
        self.fold, self.slice_difference = fold, prior.slice_difference

    def denoise(self, z: Tensor, level: Level) -> Tensor:
        """As the prior of volumes."""
        return self.fold.images(self.prior.denoise(self.fold.volumes(z), level))

    def encode(self, x: Tensor) -> Tensor:
        """As the prior of volumes."""
        return self.fold.images(self.prior.encode(self.fold.volumes(x)))

    def decode(self, u: Tensor) -> Tensor:
        """As the prior of volumes."""
        return self.fold.images(self.prior.decode(self.fold.volumes(u)))

    def energy(self, x: Tensor) -> Tensor:
        """As the prior of volumes."""
        return self.prior.energy(self.fold.volumes(x))

    def perturbed_energy(self, x: Tensor, draw: Callable[[tuple[int, ...]], Tensor]) -> Energy:
        """Weights drawn given the slices of x."""
        if self.slice_difference is None:
            return self
        b, d = float(self.slice_difference), self.fold.differences(x)
        noise, *others = draw((3, *d.shape[1:])).to(d).unbind(1)
        weights = inverse_gaussian((1 + (d / b).square()).rsqrt(), *others)
        return NormalTerms(self.fold, weights.sqrt() / b, noise)

    def starting_noise(self, noise: Tensor) -> Tensor:
        """Of slices that are alike that of the first: with noise of their own they end in different images."""
        if self.slice_difference is None:
            return noise
        return noise[:, : noise.shape[1] // self.fold.slices].repeat(1, self.fold.slices, 1, 1)

    def solved(self, x: Tensor) -> Tensor:
        """Volumes as images of many channels."""
        return self.fold.images(x)

    def given(self, x: Tensor) -> Tensor:
        """Images of many channels as volumes."""
        return self.fold.volumes(x)
