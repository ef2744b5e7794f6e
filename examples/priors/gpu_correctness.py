"""Part of gpu_check.py: whether a GPU gives the images of a CPU, and finds the same operators."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from deepinv.physics import GaussianNoise
from gpu_setup import Record, Setup, attempt, precision
from torch import Tensor

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior, DMILOSampler, DMPlug
from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.tasks import gaussian_kernel, make_physics

NOISE = 0.02
PASSES = 6
#: prior -> size of its images, tasks
TASKS = {
    "digits": (32, ("inpainting", "super-resolution", "phase-retrieval")),
    "photos": (64, ("super-resolution", "motion-deblurring", "nonlinear-deblurring", "compressed-sensing")),
}
# The noise level is given: a simulated one differs, as each device and dtype draws other numbers.
METHODS = {
    "DMILO": lambda prior: DMILO(prior, max_passes=PASSES, noise_level=NOISE),
    "DMILO-PGD": lambda prior: DMILOPGD(prior, max_passes=PASSES, noise_level=NOISE),
    "DMILOSampler": lambda prior: DMILOSampler(prior, num_samples=2, max_calls=60, noise_level=NOISE),
    "DMPlug": lambda prior: DMPlug(prior, num_layers=3, steps=2),
}
KINDS = (
    "super-resolution",
    "inpainting",
    "deblurring",
    "nonlinear-deblurring",
    "compressed-sensing",
    "phase-retrieval",
)
OWN_KERNELS = "a kernel for each image"
ROUNDING = 10.0  # a GPU may differ by so many times what float32 does from float64,
LEAST = 1e-3  # or by so much, in pixels of [0, 1]


def correctness(setup: Setup, record: Record) -> None:
    """Both tables."""
    agreement(setup, record)
    same_operators(setup, record)


def agreement(setup: Setup, record: Record) -> None:
    """Images of the same seed and measurements on CPU and device."""
    record.note(
        "Largest difference of a pixel from float32 on the CPU, relative to the largest pixel. Float64 on the CPU is "
        f"what rounding alone does. `ok`: without TF32 at most {ROUNDING:g} times that, or {LEAST:g}."
    )
    record.table("prior, task, method", "CPU, float64", "device", "device, TF32", "")
    for name, (size, tasks) in TASKS.items():
        size, tasks = (32, tasks[:1]) if setup.quick else (size, tasks)
        for task in tasks:
            for method in ("DMILO",) if setup.quick and name == "photos" else METHODS:
                record.row(f"{name}, {task}, {method}", cells=partial(differences, setup, name, size, task, method))


def differences(setup: Setup, name: str, size: int, task: str, method: str) -> tuple[str, ...]:
    """Cells of a row."""
    x = held_out_images(name)[:2, :, :size, :size]
    y = operator(task, tuple(x.shape[1:]))(x)

    def image(device: str | torch.device, dtype: torch.dtype, tf32: bool) -> Tensor:
        physics = operator(task, tuple(x.shape[1:])).to(device)  # built on the CPU: a GPU draws other masks
        physics.set_noise_model(GaussianNoise(NOISE).to(device))  # without a generator, which would stay on the CPU
        physics = physics.double() if dtype is torch.float64 else physics
        prior = DiffusionPrior.from_pretrained(name, device=device, dtype=dtype)
        with precision(tf32):
            return METHODS[method](prior)(y.to(device, dtype), physics).cpu().double()

    expected = image("cpu", torch.float32, False)
    runs = [("cpu", torch.float64, False), (setup.device, torch.float32, False), (setup.device, torch.float32, True)]
    found = [attempt(lambda run=run: relative(image(*run), expected)) for run in runs]
    wide, plain = found[:2]
    bound = max(LEAST, ROUNDING * wide) if isinstance(wide, float) else LEAST
    verdict = "ok" if isinstance(plain, float) and plain <= bound else "**look**"
    return *(f"{d:.1e}" if isinstance(d, float) else d for d in found), verdict


def relative(x: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest pixel."""
    return ((x - expected).abs().max() / expected.abs().max()).item()


def operator(task: str, shape: tuple[int, ...], device: str | torch.device = "cpu", batch: int = 1) -> Any:
    """The physics of a task; with ``OWN_KERNELS`` one blur for each image."""
    if task != OWN_KERNELS:
        return make_physics(task, shape, noise=NOISE, device=device)  # type: ignore[arg-type]
    kernels = torch.cat([gaussian_kernel(1 + 0.1 * k, 9) for k in range(batch)])
    return make_physics("deblurring", shape, noise=NOISE, kernel=kernels, device=device)  # type: ignore[arg-type]


def same_operators(setup: Setup, record: Record) -> None:
    """What is found of each physics by probing, in a batch of three."""
    record.note(
        f"What probing finds of a physics of three images of 3 x {setup.size} x {setup.size}: one operator for all, or "
        "tensors for each. `ok`: the same on the device, with TF32 and without."
    )
    record.table("physics", "CPU", "device", "device, TF32", "")
    for task in (*KINDS[: 2 if setup.quick else None], OWN_KERNELS):
        record.row(task, cells=partial(found_operators, setup, task))


def found_operators(setup: Setup, task: str) -> tuple[str, ...]:
    """Cells of a row."""
    shape = (3, 3, setup.size, setup.size)

    def found(device: str | torch.device, tf32: bool) -> str:
        physics = operator(task, shape[1:], device, batch=3)
        with precision(tf32):
            forward = forward_model(physics, shape, torch.empty(0, device=device), single=False)
            return f"{type(forward).__name__}, {'linear' if forward.is_linear else 'nonlinear'}"

    runs = [("cpu", False), (setup.device, False), (setup.device, True)]
    cells = [attempt(lambda run=run: found(*run)) for run in runs]
    return *cells, "ok" if len(set(cells)) == 1 else "**look**"
