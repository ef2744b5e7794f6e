"""Measurements of any kind (real, complex, TensorList): their parts, their energy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
from deepinv.physics import PhaseRetrieval, Physics
from deepinv.utils import TensorList
from torch import Tensor

Measurements: TypeAlias = "Tensor | TensorList"


def as_input(x: Tensor, physics: Physics) -> Tensor:
    """Real images as the physics takes them: some of deepinv's, phase retrieval first, want a complex type."""
    own = getattr(physics, "dtype", None)
    if isinstance(own, torch.dtype) and own.is_complex and not isinstance(physics, PhaseRetrieval):
        return x.to(own)
    if isinstance(physics, PhaseRetrieval):
        return x.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
    return x


def measure(x: Tensor, physics: Physics, **parameters: Tensor) -> Measurements:
    """A(x) of real images x; ``parameters`` as ``physics.update`` takes them."""
    return physics.A(as_input(x, physics), **parameters)


def parts(y: Measurements) -> list[Tensor]:
    """The tensors that measurements consist of: one, or those of a (nested) TensorList."""
    return [t for part in y for t in parts(part)] if isinstance(y, TensorList) else [y]


def like_parts(y: Measurements, tensors: list[Tensor]) -> Measurements:
    """Tensors as the parts of measurements that are built like y."""
    if not isinstance(y, TensorList):
        return tensors[0]
    rest = iter(tensors)
    return TensorList([like_parts(part, [next(rest) for _ in parts(part)]) for part in y])


def take(y: Measurements, rows: Tensor) -> Measurements:
    """The measurements of some samples."""
    return TensorList([take(part, rows) for part in y]) if isinstance(y, TensorList) else y[rows]


def join(ys: list[Measurements]) -> Measurements:
    """The measurements of several batches as those of one."""
    if isinstance(ys[0], TensorList):
        return TensorList([join(list(group)) for group in zip(*ys, strict=True)])
    return torch.cat(ys)


def real(t: Tensor) -> Tensor:
    """The real numbers of each sample, (B, k): real and imaginary parts of complex ones."""
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).flatten(1)


def energy(r: Measurements) -> Tensor:
    """Squared 2-norm of each sample, shape (B,); complex values count by their modulus."""
    return torch.stack([real(t).square().sum(1) for t in parts(r)]).sum(0)


def mean_energy(r: Measurements) -> Tensor:
    """Mean squared modulus over a sample's measurements, shape (B,)."""
    return energy(r) / sum(t[0].numel() for t in parts(r))


def working_dtype(y: Measurements) -> torch.dtype:
    """The real floating type to reconstruct in: that of the measurements, at least float32."""
    dtype = torch.float32
    for t in parts(y):
        dtype = torch.promote_types(dtype, t.real.dtype if t.is_complex() else t.dtype)
    return dtype


def shapes(y: Measurements) -> list[tuple[int, ...]]:
    """The shapes of its parts."""
    return [tuple(t.shape) for t in parts(y)]


def operators(physics: Physics) -> Iterator[Physics]:
    """The physics, and those that a stack of deepinv's keeps in a plain list, where torch does not see them."""
    yield physics
    for member in getattr(physics, "physics_list", ()):
        yield from operators(member)
