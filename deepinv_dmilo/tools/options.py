"""What several commands share: the device and the prior."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deepinv_dmilo import registry

if TYPE_CHECKING:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior


def add_device(command: argparse._ActionsContainer) -> None:
    """Add ``--device`` to a command."""
    command.add_argument("--device", default=None, help="cpu, cuda, ... (default: a GPU where there is one)")


def add_bfloat16(command: argparse._ActionsContainer) -> None:
    """Add ``--bfloat16`` to a command or a group of its options."""
    what = "the network computes in bfloat16: faster on GPUs, and on CPUs that have it (AMX)"
    command.add_argument("--bfloat16", action="store_true", help=what)


def open_device(name: str | None) -> str:
    """
    A device by its name, once it is seen to work; None: a GPU where there is one.

    :raises ValueError: it is not available.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available ({str(error).splitlines()[0]}); type --device cpu") from error
    return name


def open_prior(name: str, device: str, *, bfloat16: bool = False) -> DiffusionPrior:
    """
    A prior by its installed or bundled name, pipeline folder or hub id, on a device.

    :raises ValueError, FileNotFoundError, ImportError, TypeError: it cannot be loaded, or knows no ``autocast``.
    """
    import torch

    settings: dict[str, Any] = {"autocast": torch.bfloat16} if bfloat16 else {}
    return registry.load(name, registry.PRIORS, optional={"device": device}, **settings).to(device)
