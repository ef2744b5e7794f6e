"""Errors of the input, which the command line prints in a line; all others keep their traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What was typed or given is at fault."""


@contextmanager
def door() -> Iterator[None]:
    """What is refused in a ``with`` block is the user's: values, types, files, missing packages; as an InputError."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise InputError(str(error)) from error
