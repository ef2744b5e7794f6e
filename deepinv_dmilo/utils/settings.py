"""Checks of settings: numbers, flags, choices."""

from __future__ import annotations

import math
from numbers import Integral, Real

from torch import Tensor


def check_settings(*, steps: dict[str, int], rates: dict[str, float], weights: dict[str, float]) -> None:
    """Refuse step numbers that are not whole and positive, rates that are not positive, weights that are negative."""
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
    """Refuse what is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: type True or False")


def check_choice(name: str, value: str, choices: tuple[str, ...], other: str = "") -> None:
    """Refuse a word that is none of the choices."""
    if value not in choices:
        options = [repr(choice) for choice in choices] + ([other] if other else [])
        raise ValueError(f"{name}={value!r}: type {' or '.join(options)}")
