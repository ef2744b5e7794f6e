"""Sums over all but the batch dimension, numbers broadcast over it, and tensors as the columns of one matrix."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def column(t: Tensor, like: Tensor) -> Tensor:
    """One number for each row, (n,), with the dimensions of ``like``: (n, 1, ..., 1)."""
    return t.view(-1, *[1] * (like.ndim - 1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, (n, ...) -> (n,)."""
    return (a * b).flatten(1).sum(1)


def sum_of_squares(x: Tensor) -> Tensor:
    """The squared 2-norm of each row, (n, ...) -> (n,)."""
    return x.square().flatten(1).sum(1)


def pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """Tensors (n, ...) as the columns of one matrix, (n, d)."""
    return torch.cat([t.flatten(1) for t in tensors.values()], 1)


def unpack(matrix: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`pack`: tensors named and shaped like those given, with the rows of the matrix."""
    columns = matrix.split([t[0].numel() for t in like.values()], 1)
    return {name: c.reshape(len(matrix), *t.shape[1:]) for (name, t), c in zip(like.items(), columns, strict=True)}
