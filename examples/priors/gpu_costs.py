"""Parts of gpu_check.py: bfloat16, torch.compile, memory, methods side by side, and what a pass waits for."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_setup import LARGE, NEEDS_CUDA, Record, Setup, attempt, few_passes, measured, pictures, precision
from torch import Tensor

import deepinv_dmilo
from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DMILOSampler, DMPlug, Levels
from deepinv_dmilo.benchmarks.methods import METHODS, tuned_weight
from deepinv_dmilo.benchmarks.studies import KNOWN_TASKS, TUNING, Case
from deepinv_dmilo.likelihood.measurements import Measurements
from deepinv_dmilo.optim.lbfgs import CHECK_EVERY
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.tools.scoring import score
from deepinv_dmilo.tools.tasks import make_physics

NOISE = 0.005
PRECISIONS: dict[str, tuple[bool, dict[str, Any]]] = {  # TF32, settings of the prior
    "float32": (False, {}),
    "float32, TF32": (True, {}),
    "bfloat16": (True, {"autocast": torch.bfloat16}),
}
CHAINS = (3, 10, 30, 100)  # layers, which are sampling steps
OURS = tuple(f"{method}, {passes} passes" for passes in (25, 100) for method in ("DMILO", "DMILO-PGD"))
OTHERS = ("DiffPIR, zeta 1", "DiffPIR", "FAST-DIPS, 75 calls")
TASKS = ("super-resolution", "inpainting-70", "motion-deblurring")


def problem(setup: Setup, x: Tensor) -> tuple[Measurements, Any]:
    """Measurements of pictures, four times fewer pixels in height and width, and their physics."""
    physics = make_physics("super-resolution", tuple(x.shape[1:]), noise=NOISE, device=setup.device)  # type: ignore[arg-type]
    return physics(x), physics


def bfloat16(setup: Setup, record: Record) -> None:
    """The precision of the network."""
    x = pictures(setup, record)
    y, physics = problem(setup, x)
    record.note("Super-resolution, in one batch; seconds of an image, after a first call.")
    record.table("network", "passes", "precision", "PSNR (dB)", "seconds")
    budgets = [(setup.prior, n) for n in ((2,) if setup.quick else (25, 100))] + [(LARGE, 2 if setup.quick else 10)]
    for network, passes in budgets:
        for name in PRECISIONS:
            record.row(network, passes, name, cells=partial(cost, setup, network, passes, name, x, y, physics))


def cost(
    setup: Setup, network: str, passes: int, name: str, x: Tensor, y: Measurements, physics: Any
) -> tuple[str, ...]:
    """PSNR, unless the weights are random, and seconds of an image, of the second call."""
    tf32, settings = PRECISIONS[name]
    with precision(tf32):
        prior = setup.network(network, **settings)
        model = few_passes(prior, passes) if network == LARGE else DMILO(prior, max_passes=passes)
        measured(model, y, physics)
        x_hat, meter = measured(model, y, physics)
    return "" if network == LARGE else f"{psnr(x_hat, x):.2f}", f"{meter.seconds / len(x):.3f}"


def psnr(x_hat: Tensor, x: Tensor) -> float:
    """Mean PSNR of images in dB."""
    return (-10 * (x_hat.clamp(0, 1) - x).square().mean((1, 2, 3)).log10()).mean().item()


def compiled(setup: Setup, record: Record) -> None:
    """What torch.compile costs and saves."""
    if not setup.is_cuda:
        record.note(f"{NEEDS_CUDA}: on a CPU it takes minutes.")
        return
    x = pictures(setup, record, 1)
    y, physics = problem(setup, x)
    record.note("Super-resolution of one image: seconds of a call; relative to that without compiling.")
    record.table("network", "precision", "not compiled", "first call", "second", "third", "third, relative")
    for network in (setup.prior, LARGE):
        for name in ("float32, TF32", "bfloat16"):
            record.row(network, name, cells=partial(compile_times, setup, network, name, y, physics))


def compile_times(setup: Setup, network: str, name: str, y: Tensor, physics: Any) -> tuple[str, ...]:
    """Cells of a row."""
    tf32, settings = PRECISIONS[name]
    passes = 2 if setup.quick else 25

    def seconds(calls: int, compile: bool) -> list[float]:
        model = few_passes(setup.network(network, compile=compile, **settings), passes)
        return [measured(model, y, physics)[1].seconds for _ in range(calls)]

    with precision(tf32):
        plain, times = seconds(2, False)[1], seconds(3, True)
    return *(f"{t:.2f}" for t in (plain, *times)), f"{times[2] / plain:.2f}"


def memory(setup: Setup, record: Record) -> None:
    """Peaks of DMILO and of DMPlug by the layers of the chain."""
    x = pictures(setup, record, 1)
    y, physics = problem(setup, x)
    what = "allocated by torch" if setup.is_cuda else "of the process, not of a GPU"
    record.note(
        f"Peak memory in GB, {what}, weights included; chains from pure noise as published, one image. The paper has "
        "37 % less for DMILO than for DMPlug, at three layers."
    )
    record.table("network", "layers", "DMILO", "DMPlug", "DMILO has less by")
    for network in (setup.prior, LARGE):
        for layers in (2, 3) if setup.quick else CHAINS:
            record.row(network, layers, cells=partial(peaks, setup, network, layers, y, physics))
    record.note("DMILO as it is by default, and with the inside of the network's blocks computed again:")
    record.table("network", "checkpointing", "peak")
    for network in (setup.prior, LARGE):
        for checkpointing in (False, True):
            cells = partial(default_peak, setup, network, checkpointing, y, physics)
            record.row(network, "yes" if checkpointing else "no", cells=cells)


def peaks(setup: Setup, network: str, layers: int, y: Tensor, physics: Any) -> tuple[str, ...]:
    """Cells of a row."""
    settings = {"num_layers": layers, "outer_steps": 1, "inner_steps": 2}
    makes = (
        lambda prior: DMILO.from_preset("super_resolution", prior, **settings),
        lambda prior: DMPlug(prior, num_layers=layers, steps=2),
    )
    ours, theirs = (attempt(lambda m=make: peak(m(setup.network(network)), y, physics)) for make in makes)
    both = isinstance(ours, float) and isinstance(theirs, float)
    shown = [f"{p:.2f}" if isinstance(p, float) else p for p in (ours, theirs)]
    return *shown, f"{100 * (1 - ours / theirs):.0f} %" if both else ""


def default_peak(setup: Setup, network: str, checkpointing: bool, y: Measurements, physics: Any) -> tuple[str]:
    """The cell of a row."""
    return (f"{peak(few_passes(setup.network(network, checkpointing=checkpointing), 2), y, physics):.2f}",)


def peak(model: Any, y: Tensor, physics: Any) -> float:
    """Peak memory of a call, in GB."""
    return measured(model, y, physics)[1].peak / 1e9


def side_by_side(setup: Setup, record: Record) -> None:
    """Our methods and others on the same prior and measurements."""
    x = pictures(setup, record)
    record.note(
        "Mean PSNR, passes and calls of the network, and seconds of an image in this batch; alone: seconds of the "
        f"first picture by itself. Noise {NOISE:g}; the others have the weights of `deepinv_dmilo/benchmarks/tuning`."
    )
    record.table("task", "method", "PSNR (dB)", "passes", "calls", "seconds", "alone")
    prior = setup.network(setup.prior)
    for task in TASKS[:1] if setup.quick else TASKS:
        name, options = KNOWN_TASKS[task]
        physics = make_physics(name, tuple(x.shape[1:]), noise=NOISE, device=setup.device, **options)  # type: ignore[arg-type]
        y = physics(x)
        for row in (*OURS[:1], *OTHERS[::2]) if setup.quick else (*OURS, *OTHERS):
            record.row(task, row, cells=partial(scored, setup, prior, task, row, x, y, physics))


def scored(
    setup: Setup, prior: DiffusionPrior, task: str, row: str, x: Tensor, y: Tensor, physics: Any
) -> tuple[str, ...]:
    """Cells of a row."""
    weight = tuned_weight(row, task, NOISE, TUNING / "photos.csv")
    model: Any = METHODS[row].make(Case(prior, tuple(x.shape[1:]), task, NOISE, weight))  # type: ignore[arg-type]
    if setup.quick and isinstance(model, DMILO):
        model.max_passes = 2
    calls = 2 if setup.is_cuda else 1  # kernels are chosen at the first
    alone = [score(model, x[:1], y[:1], physics)[1][0]["seconds"] for _ in range(calls)][-1]
    _, columns = score(model, x, y, physics)
    mean = {name: sum(c[name] for c in columns) / len(columns) for name in ("psnr", "passes", "calls", "seconds")}
    shown = f"{mean['psnr']:.2f}", f"{mean['passes']:.0f}", f"{mean['calls']:.0f}", f"{mean['seconds']:.3f}"
    return *shown, f"{alone:.3f}"


def waits(setup: Setup, record: Record) -> None:
    """How often the CPU waits for the GPU."""
    if not setup.is_cuda:
        record.note(f"{NEEDS_CUDA}: its sync debug mode counts.")
        return
    record.note(
        "Synchronisations that CUDA's debug mode reports. `tests/methods/test_host_syncs.py` allows one for a pass on "
        f"a CPU, where each step looks whether rows have ended; elsewhere every {CHECK_EVERY}th does. Of a level of "
        "the sampler it allows 41."
    )
    record.table("method", "short run", "longer run", "more of", "for each", "allowed", "")
    waits_of(setup, record)


def waits_of(setup: Setup, record: Record) -> None:
    """The rows of a short and of a longer run, and where the longer one waits."""
    prior = setup.network(setup.prior)
    x = torch.rand(2, 3, setup.size, setup.size, device=setup.device)
    physics = make_physics("inpainting", tuple(x.shape[1:]), noise=0.05, device=setup.device)  # type: ignore[arg-type]
    y, levels, places = physics(x), Levels((0.5, 0.2), skip=False), Counter[str]()

    def of_steps(method: type[DMILO], steps: int) -> DMILO:
        return method(prior, schedule=levels, solver=LBFGS(steps=steps, tolerance=0.0))

    def row(
        name: str, unit: str, more: int, allowed: float, make: Callable[[int], Any], sizes: tuple[int, int]
    ) -> None:
        def cells() -> tuple[object, ...]:
            make(sizes[0])(y, physics)  # what is made at the first call
            few, many = (counted(make(size), y, physics, places) for size in sizes)
            each = (many - few) / more
            return few, many, f"{more} {unit}", f"{each:.2f}", f"{allowed:g}", "ok" if each <= allowed else "**look**"

        record.row(name, cells=cells)

    for method in (DMILO, DMILOPGD):
        row(method.__name__, "passes", 20, 1.0, partial(of_steps, method), (4, 14))
    row("DMILOSampler", "levels", 10, 41.0, lambda n: DMILOSampler(prior, num_samples=2, max_calls=2 * 5 * n), (6, 16))
    record.note("Where the runs above wait most:")
    record.table("place", "times")
    for place, times in places.most_common(8):
        record.row(place, times)


def counted(model: Any, y: Tensor, physics: Any, places: Counter[str]) -> int:
    """The synchronisations of a call, also added to ``places`` by the line that waits."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(y, physics)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing CUDA" in str(w.message)]
    places.update(f"{_short(w.filename)}:{w.lineno}" for w in found)
    return len(found)


def _short(file: str) -> str:
    """A file as it is named in its package."""
    root = Path(deepinv_dmilo.__file__).parent.parent
    path = Path(file)
    return str(path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-3:]))
