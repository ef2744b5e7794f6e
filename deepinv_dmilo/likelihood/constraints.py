"""First guesses of the unknown parameters of a physics, and the constraints on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from deepinv.physics.functional import gaussian_blur
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from deepinv_dmilo.priors.blur_kernels import KERNEL_SIDE

_LEAST = 1e-4  # floor of an entry of a simplex relative to the mean, for its logarithm: ours


@dataclass(frozen=True, repr=False)
class Guess:
    """
    A first guess of a parameter of a physics, and its constraint: a map from the raw parameter that is optimised.

    :param torch.Tensor start: the first guess, one for all images, (1, ...), or one for each, (B, ...), as
        ``physics.update`` takes it.
    """

    start: Tensor

    def __repr__(self) -> str:
        return _kind(self)

    def raw(self) -> Tensor:
        """The raw parameter of the first guess."""
        return self.start

    def value(self, raw: Tensor) -> Tensor:
        """The parameter of a raw one, (n, ...) -> (n, ...)."""
        return raw

    def loosened(self, raw: Tensor) -> Tensor:
        """The raw parameter to start a less noisy level from."""
        return raw


@dataclass(frozen=True, repr=False)
class Free(Guess):
    """
    A parameter without a constraint.

    :param torch.Tensor start: the first guess, (1, ...) or (B, ...), as ``physics.update`` takes it.
    """


@dataclass(frozen=True, repr=False)
class Positive(Guess):
    """
    A positive parameter, such as a gain or the width of a blur.

    :param torch.Tensor start: the first guess, (1, ...) or (B, ...), above 0.
    """

    def raw(self) -> Tensor:
        return self.start.log()

    def value(self, raw: Tensor) -> Tensor:
        return raw.exp()


@dataclass(frozen=True, repr=False)
class Simplex(Guess):
    """
    A parameter with nonnegative entries that sum to one for each image and channel, such as a blur kernel.

    :param torch.Tensor start: the first guess, (1, ...) or (B, ...), with channels (1, C, H, W); it is divided by its
        sum. For a blur, a wide kernel: the search may not leave a single point.
    """

    def raw(self) -> Tensor:
        rows = _entries(self.start)
        return rows.clamp(min=_LEAST * rows.mean(-1, keepdim=True)).log().view_as(self.start)

    def value(self, raw: Tensor) -> Tensor:
        return _entries(raw).softmax(-1).view_as(raw)

    def loosened(self, raw: Tensor) -> Tensor:
        """A kernel is smoothed, so that spurious peaks of a noisier level do not persist."""
        if raw.ndim != 4:
            return raw
        return replace(self, start=avg_pool2d(self.value(raw), kernel_size=3, stride=1, padding=1)).raw()


def _gaussian_kernel() -> Tensor:
    """A Gaussian of 2 pixels, (1, 1, 33, 33)."""
    kernel = gaussian_blur(sigma=(2.0, 2.0))
    return pad(kernel, [(KERNEL_SIDE - kernel.shape[-1]) // 2] * 4)


@dataclass(frozen=True, repr=False)
class BlurKernel(Simplex):
    """
    The kernel of a blur, estimated with the image integrated out and with a learned prior of kernels (:doc:`/method`).

    With the default levels of DMILO and DMILO-PGD, for a blur that is the same everywhere, ``Blur`` or ``BlurFFT``,
    noise with a standard deviation and a prior of pixels; at least 150 calls of the network a sample. :doc:`/physics`
    says when it is better than ``Simplex``.

    :param torch.Tensor start: the first guess, (1, 1, h, w) or (B, 1, h, w), at most 33 x 33; None: a Gaussian of 2
        pixels, 33 x 33.
    """

    start: Tensor = field(default_factory=_gaussian_kernel)


@dataclass(frozen=True, repr=False)
class Custom(Guess):
    """
    A function of unconstrained numbers, such as the kernel of a blur of unknown width.

    :param torch.Tensor start: the first guess of these numbers, (1, ...) or (B, ...).
    :param function: differentiable, maps (n, ...) such numbers to n parameters.
    """

    function: Callable[[Tensor], Tensor]

    def value(self, raw: Tensor) -> Tensor:
        return self.function(raw)


def _entries(t: Tensor) -> Tensor:
    """The entries that sum to one, as the last dimension."""
    return t.flatten(2) if t.ndim == 4 else t.flatten(1)


def _kind(given: object) -> str:
    if not isinstance(given, Guess):
        return f"a {type(given).__name__}"
    start: object = given.start
    shown = f"tensor of shape {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
    return f"{type(given).__name__}(<{shown}>)"


Parameters: TypeAlias = "Mapping[str, Guess | Tensor]"


def check_unknown(unknown: Parameters) -> dict[str, Guess]:
    """The first guesses with their constraints; a plain tensor is a simplex, and must be one."""
    if not isinstance(unknown, Mapping) or not unknown or not all(isinstance(name, str) for name in unknown):
        what = repr(unknown) if isinstance(unknown, Mapping) else f"a {type(unknown).__name__}"
        raise TypeError(
            f"unknown is {what}; pass first guesses by the names that physics.update takes, such as "
            '{"filter": Simplex(kernel)}, or leave it out'
        )
    checked: dict[str, Guess] = {}
    for name, given in unknown.items():
        guess = Free(given) if isinstance(given, Tensor) else given
        if not isinstance(guess, Guess) or not isinstance(guess.start, Tensor):
            raise TypeError(
                f"unknown[{name!r}] is {_kind(given)}; pass a first guess as a tensor, or Simplex(tensor), "
                "Positive(tensor), Free(tensor), Custom(tensor, function), or of a blur BlurKernel(tensor)"
            )
        start = guess.start
        if start.ndim < 2 or not start.numel() or not start.is_floating_point() or not torch.isfinite(start).all():
            raise ValueError(
                f"unknown[{name!r}] has shape {tuple(start.shape)} and type {start.dtype}; pass finite floats, one "
                "guess for all images or one for each: shape (1, ...) or (B, ...), with two dimensions at least"
            )
        if isinstance(given, Tensor):
            entries = _entries(start)
            if entries.shape[-1] == 1 or (start < 0).any() or (entries.sum(-1) - 1).abs().max() > 1e-3:
                where = " in each row" if start.ndim == 2 else ""
                raise ValueError(
                    f"unknown[{name!r}] is a tensor without nonnegative entries that sum to one{where}; pass its "
                    "constraint: Simplex(tensor.clamp(min=0)) for a kernel, of shape (1, 1, h, w), Positive(tensor) or "
                    "Free(tensor)"
                )
            guess = Simplex(start)
        if isinstance(guess, Positive) and not (start > 0).all():
            raise ValueError(f"unknown[{name!r}]: Positive starts above 0; its least entry is {start.min().item():.3g}")
        if isinstance(guess, Simplex) and not ((start >= 0).all() and (_entries(start).sum(-1) > 0).all()):
            raise ValueError(
                f"unknown[{name!r}]: a Simplex starts at entries of at least 0, not all 0; pass tensor.clamp(min=0)"
            )
        if isinstance(guess, Custom) and not callable(guess.function):
            what = f"a {type(guess.function).__name__}"
            raise TypeError(f"unknown[{name!r}]: Custom(tensor, function) takes a function, not {what}")
        checked[name] = guess
    return checked
