"""Preconditioned conjugate gradients, independent for each image of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepinv_dmilo.optim.lbfgs import steps_between_checks
from deepinv_dmilo.utils.rows import column, dot

DONE = 1e-10  # relative decrease of the squared preconditioned residual at which an image stops: ours


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor], *, steps: int
) -> Tensor:
    """
    Approximate solutions v of ``normal(v) = right``, (n, C, H, W).

    :param normal: a symmetric positive definite linear map of each image.
    :param torch.Tensor right: the right-hand sides, (n, C, H, W).
    :param precondition: an approximate inverse of ``normal``.
    :param int steps: maximum number of iterations.
    """
    solution, residual = torch.zeros_like(right), right
    direction = preconditioned = precondition(residual)
    size = first = dot(residual, preconditioned)
    check_every = steps_between_checks(right)
    for step in range(steps):
        moving = size > DONE * first
        if step % check_every == 0 and not moving.any():
            break
        image = normal(direction)
        length = column(torch.where(moving, size / dot(direction, image), 0), right)
        solution, residual = solution + length * direction, residual - length * image
        preconditioned = precondition(residual)
        size, before = dot(residual, preconditioned), size
        direction = preconditioned + column(torch.where(moving, size / before, 0), right) * direction
    return solution
