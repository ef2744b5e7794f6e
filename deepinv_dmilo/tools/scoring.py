"""Quality and cost of a reconstruction: deepinv's metrics, network passes, seconds, peak memory."""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.loss.metric import PSNR, SSIM, Metric
from deepinv.models import Denoiser
from deepinv.physics import Physics
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from deepinv_dmilo.likelihood.measurements import Measurements, mean_energy, measure
from deepinv_dmilo.priors.diffusers import DiffusionPrior

SHIFTS = torch.arange(-3, 3.25, 0.25)  # pixels that an image of an unknown blur is moved by to be compared


def score(
    model: Callable[..., Tensor],
    x: Tensor,
    y: Measurements,
    physics: Physics,
    *,
    guessed: Physics | None = None,
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
) -> tuple[Tensor, list[dict[str, float]]]:
    """
    Reconstruct a batch, and measure quality and cost.

    :param model: a reconstructor, called as ``model(y, physics)``; passes are those of the
        :class:`deepinv_dmilo.DiffusionPrior` inside it, or else of the first denoiser of deepinv's that has parameters.
    :param torch.Tensor x: ground truth in [0, 1], shape (B, C, H, W); the model does not see it.
    :param torch.Tensor, deepinv.utils.TensorList y: measurements of the batch.
    :param deepinv.physics.Physics physics: forward operator.
    :param deepinv.physics.Physics guessed: what the model gets in its place, where its blur is not known; images are
        then registered with x.
    :param int seed: of the global random state that deepinv's samplers draw from; it is as before afterwards.
    :param metrics: more :class:`metrics <deepinv.loss.metric.Metric>` of colour images, by name; grey ones are repeated
        to three channels for them.
    :return: images clamped to [0, 1], shape (B, C, H, W), and for each of them ``psnr`` (dB), ``ssim``, ``residual``
        (root mean square of A(x) - y), what ``metrics`` give, and the batch's means of ``passes`` and ``calls`` of the
        network and of ``seconds``, and its ``memory_mb``.
    """
    forked = torch.random.fork_rng([x.device] if x.is_cuda else [])
    with forked, torch.no_grad(), Meter(_network(model), x.device) as meter:
        torch.manual_seed(seed)
        x_hat = model(y, guessed or physics)
    x_hat = x_hat.real.to(x.dtype).clamp(0, 1)
    x_hat = x_hat if guessed is None else registered(x_hat, x)
    misfit = mean_energy(measure(x_hat, physics) - y)
    columns = {"psnr": PSNR()(x_hat, x), "ssim": SSIM()(x_hat, x), "residual": misfit.sqrt()}
    for name, metric in (metrics or {}).items():
        columns[name] = metric(*(image.expand(-1, 3, -1, -1) for image in (x_hat, x)))
    costs = {"passes": meter.passes, "calls": meter.calls, "seconds": meter.seconds}
    shared = {**{name: cost / len(x) for name, cost in costs.items()}, "memory_mb": meter.memory}
    return x_hat, [{**{name: c[i].item() for name, c in columns.items()}, **shared} for i in range(len(x))]


def _network(model: Any) -> nn.Module | None:
    """The network of a reconstructor, whose passes are counted; None: it has none."""
    modules = list(getattr(model, "modules", list)())
    if prior := next((m for m in modules if isinstance(m, DiffusionPrior)), None):
        return prior.network
    return next((m for m in modules if isinstance(m, Denoiser) and any(True for _ in m.parameters())), None)


def registered(x_hat: Tensor, x: Tensor) -> Tensor:
    """
    Images, each shifted to its highest PSNR: the shift of an image with an unknown blur is arbitrary.

    :param torch.Tensor x_hat: images (B, C, H, W), shifted with a periodic boundary.
    :param torch.Tensor x: the truth, (B, C, h, w), of all of them, or of their middle, the field of view of y.
    :return: the shifted images, cropped to the size of x, (B, C, h, w).
    """
    rows, columns = (torch.fft.fftfreq(side, device=x.device) for side in x_hat.shape[2:])
    seen = partial(center_crop, output_size=list(x.shape[2:]))
    spectrum, best = torch.fft.fft2(x_hat), seen(x_hat)
    highest = PSNR()(best, x)
    for dy, dx in itertools.product(SHIFTS.tolist(), repeat=2):
        phase = torch.exp(-2j * torch.pi * (dy * rows[:, None] + dx * columns))
        moved = seen(torch.fft.ifft2(spectrum * phase).real.clamp(0, 1))
        value = PSNR()(moved, x)
        best = torch.where((value > highest).view(-1, 1, 1, 1), moved, best)
        highest = torch.maximum(value, highest)
    return best


class Meter:
    """
    Counts inside a ``with`` block; read it afterwards.

    A pass is a forward and backward pass of the network that an image takes part in, a call a forward pass alone.

    :param torch.nn.Module network: the network whose passes are counted; None: there is none.
    :param torch.device device: where the work is done.
    """

    passes: int  # of all images together
    calls: int  # forward alone, and further backward passes of one, of all images together
    seconds: float
    peak: float  # bytes: resident on a CPU (Linux), allocated on a GPU
    memory: float  # megabytes that the peak lies above the start

    def __init__(self, network: nn.Module | None, device: torch.device) -> None:
        self.network, self.device = network, device

    def __enter__(self) -> Meter:
        self.passes = self.calls = 0
        self._handle = self.network.register_forward_hook(self._count) if self.network is not None else None
        self._base = _start_of_peak(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self.peak = _peak(self.device)
        self.memory = (self.peak - self._base) / 1e6
        if self._handle is not None:
            self._handle.remove()

    def _count(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:  # checkpointing: the backward pass computes the forward one again
            return
        z = args[0]
        # deepinv's PiGDM differentiates inside torch.func, where tensors do not say that they require a gradient
        if z.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(z):
            self.passes += len(z)
            self._count_backward(output if isinstance(output, torch.Tensor) else output[0])
        else:
            self.calls += len(z)

    def _count_backward(self, output: torch.Tensor) -> None:
        """Count further backward passes of one forward pass as calls."""
        backward = itertools.count()

        def hook(gradient: torch.Tensor) -> None:
            if next(backward):
                self.calls += len(gradient)

        if output.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output):
            output.register_hook(hook)


def _start_of_peak(device: torch.device) -> float:
    """Forget earlier peaks; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is no use of memory
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    return float("nan")


def _peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    """Bytes of a line of /proc/self/status; NaN where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024.0 * int(line.split()[1])
    return float("nan")
