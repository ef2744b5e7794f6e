"""Measurements of any kind (real, complex, TensorList): their parts, energies, units, and equality up to rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from deepinv.physics import PhaseRetrieval, Physics
from deepinv.utils import TensorList
from torch import Tensor

Measurements: TypeAlias = "Tensor | TensorList"

# Relative rounding errors of sums that are taken over another batch: of the energy in float32; of the energy with the
# 11 bits of TF32 (up to 1.4e-7 for blurs and a Laplacian, simulated); of an entry with TF32.
SAME, SAME_IN_TF32, ENTRY_IN_TF32 = 1e-8, 4e-6, 1e-2
TF32_BITS = 11  # of the significand, as of float16
SIGNIFICAND = {torch.bfloat16: 8, torch.float16: 11, torch.complex32: 11, torch.float64: 53, torch.complex128: 53}


def as_input(x: Tensor, physics: Physics) -> Tensor:
    """Real images in the dtype that the physics takes, which is complex for phase retrieval and some others."""
    own = getattr(physics, "dtype", None)
    if isinstance(physics, PhaseRetrieval):
        return x.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
    return x.to(own) if isinstance(own, torch.dtype) and own.is_complex else x


def measure(x: Tensor, physics: Physics, **parameters: Tensor) -> Measurements:
    """A(x) of real images x; ``parameters`` as ``physics.update`` takes them."""
    return physics.A(as_input(x, physics), **parameters)


def parts(y: Measurements) -> list[Tensor]:
    """The tensors of measurements: one, or those of a (nested) TensorList."""
    return [t for part in y for t in parts(part)] if isinstance(y, TensorList) else [y]


def like_parts(y: Measurements, tensors: list[Tensor]) -> Measurements:
    """Tensors as the parts of measurements structured like y."""
    if not isinstance(y, TensorList):
        return tensors[0]
    rest = iter(tensors)
    return TensorList([like_parts(part, [next(rest) for _ in parts(part)]) for part in y])


def take(y: Measurements, rows: Tensor) -> Measurements:
    """Some rows of measurements."""
    return like_parts(y, [t[rows] for t in parts(y)])


def join(ys: list[Measurements]) -> Measurements:
    """The measurements of several batches as one batch."""
    return like_parts(ys[0], [torch.cat(tensors) for tensors in zip(*map(parts, ys), strict=True)])


def real(t: Tensor) -> Tensor:
    """The real numbers of each row, (n, k), in float32 at least, for sums; a complex number counts as two."""
    t = _single(t)
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).flatten(1)


def _single(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def energy(r: Measurements) -> Tensor:
    """Squared 2-norm of each row, (n,)."""
    return torch.stack([real(t).square().sum(1) for t in parts(r)]).sum(0)


def mean_energy(r: Measurements) -> Tensor:
    """Mean squared modulus of the entries of each row, (n,)."""
    return energy(r) / sum(t[0].numel() for t in parts(r))


def working_dtype(y: Measurements) -> torch.dtype:
    """The real floating dtype to reconstruct in: that of the measurements, at least float32."""
    dtype = torch.float32
    for t in parts(y):
        dtype = torch.promote_types(dtype, t.real.dtype if t.is_complex() else t.dtype)
    return dtype


def shapes(y: Measurements) -> list[tuple[int, ...]]:
    """The shapes of the parts."""
    return [tuple(t.shape) for t in parts(y)]


def operators(physics: Physics) -> Iterator[Physics]:
    """The physics and, recursively, the members of a deepinv stack, which are no submodules of it."""
    yield physics
    for member in getattr(physics, "physics_list", ()):
        yield from operators(member)


def operators_of_parts(physics: Physics, y: Measurements) -> list[Physics]:
    """The operator of each part of y: the innermost members of a stack, if their number fits; or one for all."""
    members = [member for member in operators(physics) if not hasattr(member, "physics_list")]
    return members * len(parts(y)) if len(members) == 1 else members


@dataclass(frozen=True)
class Units:
    """
    The units of the measurements of B images: one factor for all, and optionally one for each measurement.

    :param float scale: the common factor; a power of two, so that it is exact.
    :param relative: for each part, a factor for each measurement, (1, ...) or (B, ...), of mean square 1; None: 1.
    """

    scale: float = 1.0
    relative: tuple[Tensor, ...] | None = None

    @classmethod
    def of_size(cls, largest: float) -> Units:
        """Units in which a measurement of this size is about 1."""
        return cls() if largest <= 0 else cls(2.0 ** math.frexp(largest)[1])

    def normalized(self, y: Measurements, rows: Tensor) -> Measurements:
        """Measurements of some rows, (n, ...), from the units of the physics to these units."""
        return like_parts(y, [t / self.scale / self._factor(k, rows) for k, t in enumerate(parts(y))])

    def physical(self, y: Measurements, rows: Tensor) -> Measurements:
        """Measurements of some rows, (n, ...), from these units to those of the physics."""
        return like_parts(y, [t * self._factor(k, rows) * self.scale for k, t in enumerate(parts(y))])

    def _factor(self, part: int, rows: Tensor) -> Tensor | float:
        if self.relative is None:
            return 1.0
        t = self.relative[part]
        return t[rows % len(t)]


def agree(a: Measurements, b: Measurements) -> bool:
    """Whether measurements have equal numbers of rows and are equal up to rounding, in the precision of their sums."""
    if [len(t) for t in parts(a)] != [len(t) for t in parts(b)]:
        return False
    error, size, bits = energy(a - b), energy(a), min(map(_bits, parts(a)))
    looser = 2.0 ** (TF32_BITS - bits)
    if bits > TF32_BITS or not (error <= SAME_IN_TF32 * looser**2 * size).all():
        return bool((error <= SAME * size).all())
    for s, t in ((_single(s).flatten(1), _single(t).flatten(1)) for s, t in zip(parts(a), parts(b), strict=True)):
        rms, most = s.abs().square().mean(1, keepdim=True).sqrt(), ENTRY_IN_TF32 * looser
        if not ((s - t).abs() <= most * (s.abs() + rms)).all():  # a few entries differ, such as masked ones
            return False
    return True


def _bits(t: Tensor) -> int:
    """Bits of the significand that sums are computed with; torch may use TF32, by default in convolutions on a GPU."""
    return SIGNIFICAND.get(t.dtype, TF32_BITS if t.device.type != "cpu" or not _is_exact_on_cpu() else 24)


def _is_exact_on_cpu() -> bool:
    """Whether torch multiplies float32 as such."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by ``torch.backends.fp32_precision``, of which it does not know
        return False
