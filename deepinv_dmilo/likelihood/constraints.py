"""Constraints that an unknown parameter of a physics keeps, with its first guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

_LEAST = 1e-4  # of an entry of a simplex, times their mean: logarithms of nothing do not move; ours


@dataclass(frozen=True, repr=False)
class Guess:
    """
    A first guess of a parameter of a physics, with what it may be: a map from raw numbers, which are optimised.

    :param torch.Tensor start: the first guess, one for all images or one for each: shape (1, ...) or (B, ...), as
        ``physics.update`` takes it.
    """

    start: Tensor

    def __repr__(self) -> str:
        return _kind(self)

    def raw(self) -> Tensor:
        """The raw numbers of the first guess."""
        return self.start

    def value(self, raw: Tensor) -> Tensor:
        """The parameter that raw numbers stand for; the rows of a batch first."""
        return raw

    def loosened(self, raw: Tensor) -> Tensor:
        """The raw numbers to go on from at a new level, of those that were found on a noisier one."""
        return raw


@dataclass(frozen=True, repr=False)
class Free(Guess):
    """
    A parameter of a physics that may be any number.

    :param torch.Tensor start: the first guess, (1, ...) or (B, ...), as ``physics.update`` takes it.
    """


@dataclass(frozen=True, repr=False)
class Positive(Guess):
    """
    A parameter above 0, such as a gain or the width of a blur.

    :param torch.Tensor start: the first guess, (1, ...) or (B, ...), above 0.
    """

    def raw(self) -> Tensor:
        return self.start.log()

    def value(self, raw: Tensor) -> Tensor:
        return raw.exp()


@dataclass(frozen=True, repr=False)
class Simplex(Guess):
    """
    A parameter whose entries are at least 0 and add to one for each image, and each channel, such as a blur kernel.

    :param torch.Tensor start: the first guess, (1, ...) or (B, ...), of channels (1, C, H, W); it is divided by its
        sum. Of a blur a wide kernel, and not a single point, which a search may not leave.
    """

    def raw(self) -> Tensor:
        rows = _entries(self.start)
        return rows.clamp(min=_LEAST * rows.mean(-1, keepdim=True)).log().view_as(self.start)

    def value(self, raw: Tensor) -> Tensor:
        return _entries(raw).softmax(-1).view_as(raw)

    def loosened(self, raw: Tensor) -> Tensor:
        """Each entry of a kernel shared with its neighbours: spikes that a noisier level believed in do not last."""
        if raw.ndim != 4:
            return raw
        return replace(self, start=avg_pool2d(self.value(raw), kernel_size=3, stride=1, padding=1)).raw()


@dataclass(frozen=True, repr=False)
class Custom(Guess):
    """
    A parameter that a function makes of free numbers, such as the kernel of a blur of unknown width.

    :param torch.Tensor start: the free numbers of the first guess, (1, ...) or (B, ...).
    :param function: differentiable, of (n, ...) such numbers to n parameters.
    """

    function: Callable[[Tensor], Tensor]

    def value(self, raw: Tensor) -> Tensor:
        return self.function(raw)


def _entries(t: Tensor) -> Tensor:
    """What of a simplex adds to one, as the last dimension."""
    return t.flatten(2) if t.ndim == 4 else t.flatten(1)


def _kind(given: object) -> str:
    if not isinstance(given, Guess):
        return f"a {type(given).__name__}"
    start: object = given.start
    told = f"tensor of shape {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
    return f"{type(given).__name__}(<{told}>)"


Parameters: TypeAlias = "Mapping[str, Guess | Tensor]"


def check_unknown(unknown: Parameters) -> dict[str, Guess]:
    """The parameters with their constraints: of bare tensors that add to one and have nothing below 0, a simplex."""
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
                "Positive(tensor), Free(tensor), Custom(tensor, function)"
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
                what = "no entries of at least 0 that add to one" + (" in each row" if start.ndim == 2 else "")
                raise ValueError(
                    f"unknown[{name!r}] is a tensor, and {what}; say what it may be: "
                    "Simplex(tensor.clamp(min=0)) for a kernel, of shape (1, 1, h, w), Positive(tensor), Free(tensor)"
                )
            guess = Simplex(start)
        if isinstance(guess, Positive) and not (start > 0).all():
            raise ValueError(f"unknown[{name!r}]: Positive starts above 0; its least entry is {start.min().item():.3g}")
        if isinstance(guess, Simplex) and not ((start >= 0).all() and (_entries(start).sum(-1) > 0).all()):
            raise ValueError(
                f"unknown[{name!r}]: a Simplex starts at entries of at least 0 that do not all vanish; clamp(min=0) it"
            )
        if isinstance(guess, Custom) and not callable(guess.function):
            what = f"a {type(guess.function).__name__}"
            raise TypeError(f"unknown[{name!r}]: Custom(tensor, function) takes a function, not {what}")
        checked[name] = guess
    return checked
