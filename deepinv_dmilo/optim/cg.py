"""Preconditioned conjugate gradients, for every image of a batch on its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DONE = 1e-10  # of the squared residual, at which an image is done: ours


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor], *, steps: int
) -> Tensor:
    """
    About the solutions v of ``normal(v) = right``, shape (n, C, H, W).

    :param normal: a symmetric and positive linear map of each image.
    :param torch.Tensor right: the right-hand sides, (n, C, H, W).
    :param precondition: about the inverse of ``normal``.
    :param int steps: at most.
    """
    solution, residual = torch.zeros_like(right), right
    direction = preconditioned = precondition(residual)
    size = first = _dot(residual, preconditioned)
    for _ in range(steps):
        moving = size > DONE * first
        if not moving.any():
            break
        image = normal(direction)
        length = torch.where(moving, size / _dot(direction, image), 0).view(-1, 1, 1, 1)
        solution, residual = solution + length * direction, residual - length * image
        preconditioned = precondition(residual)
        size, before = _dot(residual, preconditioned), size
        direction = preconditioned + torch.where(moving, size / before, 0).view(-1, 1, 1, 1) * direction
    return solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
