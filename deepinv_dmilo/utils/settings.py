"""Checks of settings: numbers and flags."""

from __future__ import annotations

import math
from numbers import Integral, Real

from torch import Tensor


def check_settings(*, steps: dict[str, int], rates: dict[str, float], weights: dict[str, float]) -> None:
    """Check that steps are positive whole numbers, rates positive numbers, and weights numbers of at least 0."""
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: type a whole number of at least 1")
    for name, number in {**rates, **weights}.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            of_tensor = ", of a tensor its .item()" if isinstance(number, Tensor) else ""
            raise ValueError(f"{name}={number!r}: type a finite number, such as 0.01{of_tensor}")
        if number < 0 or (number == 0 and name in rates):
            raise ValueError(f"{name}={number!r}: type a number {'above' if name in rates else 'of at least'} 0")


def check_flags(**flags: object) -> None:
    """Check that flags are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: type True or False")
