"""The demo: DMILO and DMILO-PGD next to deepinv's own methods, on the same prior and measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from deepinv.optim import L2
from deepinv.sampling import DPS, DiffPIR
from deepinv.utils import plot
from torch import Tensor
from torchvision.transforms.functional import resize

from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmilo_pgd import DMILOPGD
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.folder import write_whole
from deepinv_dmilo.tools.scoring import score
from deepinv_dmilo.tools.tasks import make_physics

SIZE, PASSES = 128, 25  # of the photographs, and of the network for each
#: the tasks of the photographs, and the number of the held-out one that each is shown on
PHOTOGRAPHS = {
    "4x super-resolution": ("super-resolution", 9),
    "70 % inpainting": ("inpainting", 6),
    "motion deblurring": ("motion-deblurring", 3),
    "box inpainting": ("box-inpainting", 4),
}
DIGITS = {"4x super-resolution": "super-resolution", "70 % inpainting": "inpainting"}
# deepinv's defaults are 1000 steps of weight 1, and zeta 0.1. The weight is the best on other digits
# (benchmarks/tuning/digits.csv); zeta 1 is ahead of 0.1 on every task of docs/report/report.md.
DPS_STEPS, DPS_WEIGHT, DIFFPIR_ZETA = 200, 200.0, 1.0

Methods = dict[str, Callable[..., Tensor]]


class Scene(NamedTuple):
    """A task, and the images in [0, 1] that it is shown on, (B, C, H, W)."""

    title: str
    task: str
    x: Tensor


@dataclass
class DemoLine:
    """One line of the demo's table."""

    task: str
    method: str
    psnr: float  # dB, mean over the images
    seconds: float
    evaluations: int  # of the network, forward, per image


def demo_photographs(prior: DiffusionPrior, *, size: int = SIZE, verbose: bool = True) -> tuple[list[Scene], Methods]:
    """A held-out photograph for each of four tasks; DMILO at few passes next to DiffPIR."""
    x = resize(held_out_images("photos"), [size, size], antialias=True).clamp(0, 1).to(prior.device)
    scenes = [Scene(title, task, x[number : number + 1]) for title, (task, number) in PHOTOGRAPHS.items()]
    methods: Methods = {
        "pseudo-inverse": lambda y, physics: physics.A_dagger(y),
        "DiffPIR": _diffpir(prior),
        "DMILO": DMILO(prior, max_passes=PASSES, verbose=verbose),
        "DMILO-PGD": DMILOPGD(prior, max_passes=PASSES, verbose=verbose),
    }
    return scenes, methods


def demo_digits(prior: DiffusionPrior, *, count: int = 4, verbose: bool = True) -> tuple[list[Scene], Methods]:
    """Held-out digits; DMILO at its default number of passes next to DiffPIR and a tuned DPS."""
    x = held_out_images("digits")[:count].to(prior.device)
    settings = {"num_steps": DPS_STEPS, "weight": DPS_WEIGHT, "device": prior.device, "dtype": torch.float32}
    methods: Methods = {
        "pseudo-inverse": lambda y, physics: physics.A_dagger(y),
        "DMILO-PGD": DMILOPGD(prior, verbose=verbose),
        "DMILO": DMILO(prior, verbose=verbose),
        f"DPS, {DPS_STEPS} steps": DPS(prior.denoiser(), **settings),
        "DiffPIR": _diffpir(prior),
    }
    return [Scene(title, task, x) for title, task in DIGITS.items()], methods


def _diffpir(prior: DiffusionPrior) -> DiffPIR:
    return DiffPIR(prior.denoiser(), data_fidelity=L2(), zeta=DIFFPIR_ZETA, device=prior.device)


def run_demo(
    scenes: Sequence[Scene], methods: Methods, *, seed: int = 0, verbose: bool = True
) -> tuple[list[DemoLine], dict[str, Tensor]]:
    """The table, and the images by column title: all tasks below one another, (N, C, H, W)."""
    rows: list[DemoLine] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in (*methods, "ground truth")}
    for title, task, x in scenes:
        physics = make_physics(task, tuple(x.shape[1:]), seed=seed, device=x.device)  # type: ignore[arg-type]
        y = physics(x)
        for name, method in methods.items():
            if verbose:
                print(f"{title}: {name} ...", flush=True)
            x_hat, scores = score(method, x, y, physics, seed=seed)
            psnr, passes, calls, seconds = (
                mean(s[key] for s in scores) for key in ("psnr", "passes", "calls", "seconds")
            )
            rows.append(DemoLine(title, name, psnr, len(x) * seconds, round(passes + calls)))
            columns[name].append(x_hat)
        columns["ground truth"].append(x)
    return rows, {name: torch.cat(images) for name, images in columns.items()}


def format_table(rows: list[DemoLine]) -> str:
    """The rows as a markdown table."""
    lines = ["| task | method | PSNR (dB) | seconds | network evaluations |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.task} | {row.method} | {row.psnr:.2f} | {row.seconds:.1f} | {row.evaluations} |")
    return "\n".join(lines)


def save_picture(columns: dict[str, Tensor], file: str) -> None:
    """All columns side by side, as a PNG, written whole or not at all."""
    count, stream = len(columns["ground truth"]), BytesIO()
    plot(columns, save_fn=stream, show=False, rescale_mode="clip", close=True, max_imgs=count, dpi=200)
    write_whole(Path(file), stream.getvalue())
