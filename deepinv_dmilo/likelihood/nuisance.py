"""Unknown parameters of a physics, found anew for every image that explains y."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.likelihood.constraints import Guess, Simplex
from deepinv_dmilo.likelihood.measurements import energy, measure, operators, shapes
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory
from deepinv_dmilo.utils.private import private
from deepinv_dmilo.utils.warning import warn

# Pixels, standard deviation, below which a kernel is almost a point, and largest over mean entry, below which it is
# almost flat; measured in docs/defaults.md.
_LEAST_SPREAD, _LEAST_PEAK = 0.8, 2.0


class Nuisance:
    """
    The unknown parameters of a physics, one for each of S * B rows.

    :param dict given: guesses, by the names that ``physics.update`` takes.
    :param deepinv.physics.Physics physics: the physics; a copy of it takes them, and its own are left as they are.
    :param int batch: number B of images.
    :param int num_samples: S.
    :param torch.Tensor like: a tensor of the type and device to work in.
    :raises ValueError: the physics has no such parameter, or guesses are for another number of images.
    """

    def __init__(self, given: dict[str, Guess], physics: Physics, batch: int, num_samples: int, like: Tensor) -> None:
        self.guesses, self.batch = given, batch
        self.physics, self._of_caller = private(physics), physics
        for operator in operators(self.physics):  # the noise keeps its own parameters, also those of the same names
            if isinstance(noise := getattr(operator, "noise_model", None), torch.nn.Module):
                noise.update_parameters = lambda **_: None  # type: ignore[assignment]
        self.raw: dict[str, Tensor] = {}
        #: whether what is unknown is a camera's blur, whose measurements end where light came from farther out
        self.open_boundary = False
        self._tried: tuple[Tensor, dict[str, Tensor]] | None = None  # of which rows, what
        for name, guess in given.items():
            raw = guess.raw().to(like)
            own_tensors = [t for o in operators(physics) if isinstance(t := getattr(o, name, None), Tensor)]
            if not own_tensors:
                names = {n for operator in operators(physics) for n, _ in operator.named_buffers(recurse=False)}
                known = sorted(name for name in names if not name.startswith("_"))
                raise ValueError(
                    f"unknown[{name!r}]: a {type(physics).__name__} has no parameter of that name"
                    + (f"; it has {', '.join(known)}" if known else "")
                    + ("; noise that is not known is left out of the physics, and found" if name == "sigma" else "")
                )
            shape = _shape_of_value(name, guess, raw)
            if any(own.ndim == 4 and len(shape) != 4 for own in own_tensors):
                raise ValueError(
                    f"unknown[{name!r}] has shape {shape} where that of the physics has four dimensions; type one of "
                    "shape (1, 1, h, w), say: of a kernel of two dimensions kernel[None, None]"
                )
            if len(raw) not in (1, batch):
                each = f", or one for each, ({batch}, ...)" if batch > 1 else ""
                raise ValueError(
                    f"unknown[{name!r}] has shape {tuple(raw.shape)} for {batch} image{'s' * (batch > 1)}; give one "
                    f"for all, (1, ...) as physics.update takes it{each}"
                )
            self.raw[name] = raw.expand(batch, *raw.shape[1:]).repeat(num_samples, *[1] * (raw.ndim - 1))
        self._hold_one()

    def check(self, like: Tensor) -> None:
        """
        Refuse what A does not take or depend on.

        :param torch.Tensor like: images of the type, device and shape (B, C, H, W).
        """
        x = like.new_full(like.shape, 0.5)
        x[..., ::2, :] = 0.25
        raw = {name: t[: self.batch].detach().requires_grad_() for name, t in self.raw.items()}
        try:
            rows = torch.arange(self.batch, device=x.device)
            with torch.enable_grad(), self.trying(rows, raw):
                made = measure(x, self.physics, **self.values(rows))
                value = energy(made).sum()
                depends = value.requires_grad
                gradients = torch.autograd.grad(value, tuple(raw.values()), allow_unused=True) if depends else [None]
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            raise ValueError(f"physics does not take unknown {', '.join(self.guesses)}: {error}") from error
        if (expected := shapes(measure(x, self._of_caller))) != shapes(made):
            raise ValueError(
                f"with the first guess of {', '.join(self.guesses)} an image has measurements of shape {shapes(made)}, "
                f"with that of the physics of {expected}; give the physics a guess of the same size"
            )
        image, measured = tuple(like.shape[2:]), expected[0][2:]
        for name, value in self.values(rows[:1]).items():
            is_open = value.ndim == 4 and _is_open_boundary(tuple(value.shape[2:]), image, measured)
            self.open_boundary |= is_open
            if isinstance(guess := self.guesses[name], Simplex) and guess.start.ndim == 4:
                _check_kernel(name, guess.start, measured if is_open else image)
        for name, gradient in zip(raw, gradients, strict=False):
            if gradient is None:
                raise ValueError(
                    f"unknown[{name!r}]: physics.A(x, {name}=...) does not depend on it; let A take it, and begin with "
                    f"self.update({name}={name}), or name a parameter that changes A"
                )
        self._hold_one()

    def _hold_one(self) -> None:
        """Leave the physics with the parameters of one row, as it would be with known ones."""
        self.physics.update(**{name: g.value(self.raw[name][:1]) for name, g in self.guesses.items()})

    def values(self, rows: Tensor) -> dict[str, Tensor]:
        """The parameters of some rows as they are known so far, (n, ...) each."""
        raw = self.raw
        if self._tried is not None:
            tried, raw = self._tried
            rows = (rows.to(tried.device)[:, None] == tried).long().argmax(1)
        return {name: guess.value(raw[name][rows]) for name, guess in self.guesses.items()}

    def packed(self, rows: Tensor) -> Tensor:
        """The raw numbers of some rows as columns, (n, d)."""
        return torch.cat([self.raw[name][rows].flatten(1) for name in self.guesses], 1)

    def keep(self, rows: Tensor, flat: Tensor) -> None:
        """Take the columns (n, d) for the parameters of some rows."""
        for name, part in self.unpacked(flat).items():
            self.raw[name][rows] = part

    def loosen(self, rows: Tensor) -> None:
        """Free those of some rows from what a noisier level took for certain."""
        for name, guess in self.guesses.items():
            self.raw[name][rows] = guess.loosened(self.raw[name][rows])

    def unpacked(self, flat: Tensor) -> dict[str, Tensor]:
        """The columns (n, d) as parameters."""
        shapes = [t.shape[1:] for t in self.raw.values()]
        columns = flat.split([shape.numel() for shape in shapes], 1)
        return {n: c.reshape(len(flat), *s) for n, c, s in zip(self.raw, columns, shapes, strict=True)}

    @contextmanager
    def trying(self, rows: Tensor, raw: dict[str, Tensor]) -> Iterator[None]:
        self._tried = rows, raw
        try:
            yield
        finally:
            self._tried = None


def _shape_of_value(name: str, guess: Guess, raw: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, a row for each image; refuses a function of one's own that is none of rows."""
    try:
        made: object = guess.value(raw[:1].repeat(2, *[1] * (raw.ndim - 1)))
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        raise ValueError(f"unknown[{name!r}]: its function does not take two rows of start: {error}") from error
    if not isinstance(made, Tensor) or not made.ndim or len(made) != 2 or not torch.isfinite(made).all():
        given = f"of shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ValueError(
            f"unknown[{name!r}]: its function makes {given} of two rows of start; it takes a batch, (n, ...), and "
            "returns finite parameters, one for each of n images"
        )
    return (len(raw), *made.shape[1:])


def _is_open_boundary(kernel: tuple[int, ...], image: tuple[int, ...], measured: tuple[int, ...]) -> bool:
    """Whether measurements are those pixels of a blur that no light from outside the image came to."""
    return measured != image and measured == tuple(a - b + 1 for a, b in zip(image, kernel, strict=True))


def _check_kernel(name: str, kernels: Tensor, image: tuple[int, ...]) -> None:
    """Refuse first guesses of a blur that are larger than an image; warn of those that a search may not leave."""
    height, width = kernels.shape[2:]
    if height > image[0] or width > image[1]:
        raise ValueError(
            f"unknown[{name!r}] has {height} x {width} pixels, and the images {image[0]} x {image[1]}; type a guess "
            "that is no larger than the blur may be"
        )
    spread = (_variance(kernels.sum(3)) + _variance(kernels.sum(2))).div(2).sqrt()
    is_point = height * width > 1 and bool((spread < _LEAST_SPREAD).any())
    is_flat = height * width > 9 and bool((kernels.amax((2, 3)) < _LEAST_PEAK * kernels.mean((2, 3))).any())
    if is_point or is_flat:
        warn(
            f"unknown[{name!r}] is almost {'flat' if is_flat else 'a single point'}, from where the search may not "
            "find the blur; guess a kernel about as wide, as deepinv.physics.functional.gaussian_blur(sigma=(2, 2)) is"
        )


def _variance(profiles: Tensor) -> Tensor:
    """The variance of the places that profiles (..., n) of at least 0 are the densities of."""
    places = torch.arange(profiles.shape[-1], device=profiles.device, dtype=profiles.dtype)
    density = profiles / profiles.sum(-1, keepdim=True)
    return (density * (places - (density * places).sum(-1, keepdim=True)).square()).sum(-1)
