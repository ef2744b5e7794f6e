"""Warnings that point to the line of a user's that led to them."""

from __future__ import annotations

import sys
import warnings
from os.path import dirname, join

import torch

_INSIDE = tuple(join(folder, "") for folder in (dirname(dirname(__file__)), dirname(torch.__file__)))


def warn(message: str) -> None:
    """A ``RuntimeWarning`` of the nearest caller outside this package and torch, which calls models for users."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
