"""The unknown (nuisance) parameters of a physics: their current values for each reconstruction, and their checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepinv.physics import Blur, BlurFFT, Physics
from torch import Tensor

from deepinv_dmilo.likelihood.constraints import BlurKernel, Guess, Simplex
from deepinv_dmilo.likelihood.measurements import energy, measure, operators, shapes
from deepinv_dmilo.priors.blur_kernels import KERNEL_SIDE
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory
from deepinv_dmilo.utils.private import private
from deepinv_dmilo.utils.rows import pack, unpack
from deepinv_dmilo.utils.warning import warn

# A kernel is almost a point below this standard deviation in pixels, and almost flat below this ratio of its largest
# to its mean entry; measured in docs/lab-book/blind.md.
_LEAST_SPREAD, _LEAST_PEAK = 0.8, 2.0


class Nuisance:
    """
    The unknown parameters of a physics, one set for each of S * B rows.

    :param dict given: first guesses, by the names that ``physics.update`` takes.
    :param deepinv.physics.Physics physics: the physics, which is copied and not changed.
    :param int batch: number B of images.
    :param int num_samples: samples S of each image.
    :param torch.Tensor like: a tensor of the dtype and device to work in.
    :raises ValueError: the physics has no such parameter, or the guesses are for another number of images.
    """

    def __init__(self, given: dict[str, Guess], physics: Physics, batch: int, num_samples: int, like: Tensor) -> None:
        self.guesses, self.batch = given, batch
        self.physics, self._original = private(physics), physics
        for operator in operators(self.physics):  # an update does not reach noise parameters of the same name
            if isinstance(noise := getattr(operator, "noise_model", None), torch.nn.Module):
                noise.update_parameters = lambda **_: None  # type: ignore[assignment]
        self.raw: dict[str, Tensor] = {}
        #: whether a blur with an open boundary is unknown, as of a camera: measurements are its valid pixels alone
        self.open_boundary = False
        #: whether the one unknown is a ``BlurKernel``
        self.is_blur = any(isinstance(guess, BlurKernel) for guess in given.values())
        if self.is_blur:
            _check_blur(given, physics)
        for name, guess in given.items():
            raw = guess.raw().to(like)
            own_tensors = [t for o in operators(physics) if isinstance(t := getattr(o, name, None), Tensor)]
            if not own_tensors:
                names = {n for operator in operators(physics) for n, _ in operator.named_buffers(recurse=False)}
                known = sorted(name for name in names if not name.startswith("_"))
                raise ValueError(
                    f"unknown[{name!r}]: a {type(physics).__name__} has no parameter of that name"
                    + (f"; it has {', '.join(known)}" if known else "")
                    + ("; leave unknown noise out of the physics: it is estimated" if name == "sigma" else "")
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
        self._update_physics()

    def check(self, like: Tensor) -> None:
        """
        Check that A takes the parameters, depends on them, and keeps the shape of its measurements.

        :param torch.Tensor like: a tensor of the dtype, device and shape (B, C, H, W) of the images.
        """
        x = like.new_full(like.shape, 0.5)
        x[..., ::2, :] = 0.25
        raw = {name: t[: self.batch].detach().requires_grad_() for name, t in self.raw.items()}
        try:
            rows = torch.arange(self.batch, device=x.device)
            with torch.enable_grad(), self.at(rows, raw):
                made = measure(x, self.physics, **self.values(rows))
                value = energy(made).sum()
                depends = value.requires_grad
                gradients = torch.autograd.grad(value, tuple(raw.values()), allow_unused=True) if depends else [None]
        except SHAPE_ERRORS as error:
            raise_out_of_memory(error)
            raise ValueError(f"physics does not take unknown {', '.join(self.guesses)}: {error}") from error
        if (expected := shapes(measure(x, self._original))) != shapes(made):
            raise ValueError(
                f"with the first guess of {', '.join(self.guesses)} an image has measurements of shape {shapes(made)}, "
                f"with that of the physics of {expected}; give the physics a guess of the same size"
            )
        image, measured = tuple(like.shape[2:]), expected[0][2:]
        for name, value in self.values(rows[:1]).items():
            # The valid pixels of a blur, which do not depend on its boundary conditions.
            valid = tuple(a - b + 1 for a, b in zip(image, value.shape[2:], strict=False))
            is_open = value.ndim == 4 and measured != image and measured == valid
            self.open_boundary |= is_open
            if isinstance(guess := self.guesses[name], Simplex) and guess.start.ndim == 4:
                _check_kernel(name, guess.start, measured if is_open else image)
        for name, gradient in zip(raw, gradients, strict=False):
            if gradient is None:
                raise ValueError(
                    f"unknown[{name!r}]: physics.A(x, {name}=...) does not depend on it; A must take it as an "
                    f"argument and call self.update({name}={name}) first; or name a parameter that changes A"
                )
        self._update_physics()

    def _update_physics(self) -> None:
        """Update the physics with the parameters of one row, so that its tensors have the shape of known ones."""
        self.physics.update(**{name: g.value(self.raw[name][:1]) for name, g in self.guesses.items()})

    def values(self, rows: Tensor) -> dict[str, Tensor]:
        """The current parameters of some rows, (n, ...) each."""
        return {name: guess.value(self.raw[name][rows]) for name, guess in self.guesses.items()}

    def packed(self, rows: Tensor) -> Tensor:
        """The raw parameters of some rows as one matrix, (n, d)."""
        return pack({name: t[rows] for name, t in self.raw.items()})

    def keep(self, rows: Tensor, flat: Tensor) -> None:
        """Set the raw parameters of some rows, (n, d)."""
        for name, part in unpack(flat, self.raw).items():
            self.raw[name][rows] = part

    def loosen(self, rows: Tensor) -> None:
        """Make the parameters of some rows less certain, at the start of a less noisy level."""
        for name, guess in self.guesses.items():
            self.raw[name][rows] = guess.loosened(self.raw[name][rows])

    @contextmanager
    def at(self, rows: Tensor, raw: dict[str, Tensor]) -> Iterator[None]:
        """Within this context, some rows have other raw parameters, (n, ...) each, which may require gradients."""
        stored = self.raw
        self.raw = {name: t.index_copy(0, rows, raw[name]) for name, t in stored.items()}
        try:
            yield
        finally:
            self.raw = stored


def _shape_of_value(name: str, guess: Guess, raw: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, with its rows; checks that a custom function maps n rows to n parameters."""
    try:
        made: object = guess.value(raw[:1].repeat(2, *[1] * (raw.ndim - 1)))
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        raise ValueError(f"unknown[{name!r}]: its function does not take two rows of start: {error}") from error
    if not isinstance(made, Tensor) or not made.ndim or len(made) != 2 or not torch.isfinite(made).all():
        given = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ValueError(
            f"unknown[{name!r}]: its function maps two rows of start to {given}; it must take a batch, (n, ...), and "
            "return finite parameters, (n, ...)"
        )
    return (len(raw), *made.shape[1:])


def _check_blur(given: dict[str, Guess], physics: Physics) -> None:
    """Check that a ``BlurKernel`` is the only unknown, that of a blur, and no larger than the prior of kernels."""
    ((name, guess), *others) = given.items()
    shape = tuple(guess.start.shape)
    is_small = len(shape) == 4 and shape[1] == 1 and max(shape[2:]) <= KERNEL_SIDE
    if others or not is_small or getattr(type(physics), "A", None) not in (Blur.A, BlurFFT.A):
        raise ValueError(
            f"unknown[{name!r}] = BlurKernel of shape {shape} for a {type(physics).__name__}: it is for the kernel, "
            f"(1, 1, h, w) of at most {KERNEL_SIDE} x {KERNEL_SIDE}, of a deepinv Blur or BlurFFT, as the only "
            "unknown; type Simplex(kernel)"
        )


def _check_kernel(name: str, kernels: Tensor, image: tuple[int, ...]) -> None:
    """Check that first guesses of a blur are no larger than an image; warn if they are almost a point or flat."""
    height, width = kernels.shape[2:]
    if height > image[0] or width > image[1]:
        raise ValueError(
            f"unknown[{name!r}] has {height} x {width} pixels, and the images {image[0]} x {image[1]}; type a guess "
            "as large as the support of the blur"
        )
    spread = (_variance(kernels.sum(3)) + _variance(kernels.sum(2))).div(2).sqrt()
    is_point = height * width > 1 and bool((spread < _LEAST_SPREAD).any())
    is_flat = height * width > 9 and bool((kernels.amax((2, 3)) < _LEAST_PEAK * kernels.mean((2, 3))).any())
    if is_point or is_flat:
        warn(
            f"unknown[{name!r}] is almost {'flat' if is_flat else 'a single point'}, from which the search may not "
            "find the blur; pass a kernel of about its width, such as "
            "deepinv.physics.functional.gaussian_blur(sigma=(2, 2))"
        )


def _variance(profiles: Tensor) -> Tensor:
    """The variance of the positions under nonnegative weights, (..., n)."""
    places = torch.arange(profiles.shape[-1], device=profiles.device, dtype=profiles.dtype)
    density = profiles / profiles.sum(-1, keepdim=True)
    return (density * (places - (density * places).sum(-1, keepdim=True)).square()).sum(-1)
