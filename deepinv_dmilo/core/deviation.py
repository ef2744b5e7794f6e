"""The sparse deviation of an image that is done: what no image of the prior explains."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_dmilo.core.data import Fit
from deepinv_dmilo.core.projection import STANDSTILL, value_and_gradient

STEPS, HALVINGS = 100, 30


def sparse_deviation(
    fit: Fit, x: Tensor, weight: Tensor, step: Tensor, *, steps: int = STEPS, standstill: float = STANDSTILL
) -> Tensor:
    r"""
    The :math:`\nu` that minimises :math:`\mathrm{fit}(x + \nu) + w \|\nu\|_1`; no network pass.

    Proximal gradient descent (soft thresholding), with a step of each row that is halved where it is too long, until
    no pixel of a row moves by more than ``standstill``.

    :param torch.Tensor x: shape (n, C, H, W).
    :param torch.Tensor weight: w of each row, (n,).
    :param torch.Tensor step: first step of each row, (n,): the inverse of the fit's curvature, or more.
    :return: the deviation, most of it exactly 0.
    """
    nu = torch.zeros_like(x)
    value, gradient = value_and_gradient(fit, x)
    for _ in range(steps):
        for _ in range(HALVINGS):
            trial = _soften(nu - _column(step) * gradient, _column(step * weight))
            move = trial - nu
            trial_value, trial_gradient = value_and_gradient(fit, x + trial)
            bound = value + (gradient * move).flatten(1).sum(1) + move.square().flatten(1).sum(1) / (2 * step)
            good = trial_value <= bound + 1e-6 * value.abs()  # not so where it is NaN
            if good.all():
                break
            step = torch.where(good, step, step / 2)
        moved = good & (move.abs().flatten(1).amax(1) > standstill)
        nu, gradient = torch.where(_column(good), trial, nu), torch.where(_column(good), trial_gradient, gradient)
        value = torch.where(good, trial_value, value)
        if not moved.any():
            break
    return nu


def _soften(t: Tensor, threshold: Tensor) -> Tensor:
    return t.sign() * (t.abs() - threshold).clamp(min=0)


def _column(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)
