"""What a reconstruction costs: network passes, seconds, peak memory."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn


class Meter:
    """
    Counts inside a ``with`` block; read it afterwards.

    A pass is a forward and backward pass of the network that an image takes part in, a call a forward pass alone.

    :param torch.nn.Module network: the network whose passes are counted.
    :param torch.device device: where the work is done.
    """

    passes: int  # of all images together
    calls: int  # forward alone, of all images together
    seconds: float
    peak: float  # bytes: resident on a CPU (Linux), allocated on a GPU
    memory: float  # megabytes that the peak lies above the start

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device

    def __enter__(self) -> Meter:
        self.passes = self.calls = 0
        self._handle = self.network.register_forward_hook(self._count)
        self._base = _start_of_peak(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self.peak = _peak(self.device)
        self.memory = (self.peak - self._base) / 1e6
        self._handle.remove()

    def _count(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        z = args[0]
        # deepinv's PiGDM differentiates inside torch.func, where tensors do not say that they require a gradient
        differentiated = z.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(z)
        if differentiated:
            self.passes += len(z)
        else:
            self.calls += len(z)


def _start_of_peak(device: torch.device) -> float:
    """Forget earlier peaks; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is no use of memory
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    """Bytes of a line of /proc/self/status; NaN where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024.0 * int(line.split()[1])
    return float("nan")
