"""Warnings that point to the line of user code that caused them."""

from __future__ import annotations

import sys
import warnings
from os.path import dirname, join
from types import FrameType

import torch

_INSIDE = tuple(join(folder, "") for folder in (dirname(dirname(__file__)), dirname(torch.__file__)))


def caller() -> tuple[FrameType, int]:
    """The nearest frame outside this package and torch, and how many levels up it is."""
    frame, level = sys._getframe(), 0
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return frame, level


def warn(message: str) -> None:
    """Issue a ``RuntimeWarning`` at the nearest caller outside this package and torch."""
    warnings.warn(message, RuntimeWarning, stacklevel=caller()[1])
