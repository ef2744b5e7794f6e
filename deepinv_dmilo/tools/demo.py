"""The demo: DMILO-PGD and DMILO beside deepinv's own samplers, on the same prior and measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import torch
from deepinv.optim import L2
from deepinv.sampling import DPS, DiffPIR
from deepinv.utils import plot
from torch import Tensor

from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.reconstructors.dmilo import DMILO
from deepinv_dmilo.reconstructors.dmilo_pgd import DMILOPGD
from deepinv_dmilo.tools.scoring import score
from deepinv_dmilo.tools.tasks import make_physics

DEMO_TASKS = {"4x super-resolution": "super-resolution", "70 % inpainting": "inpainting"}
# deepinv's defaults are 1000 steps of weight 1, and zeta 0.1. The weight is the best on other digits
# (benchmarks/tuning.csv); zeta 1 is ahead of 0.1 on every task of docs/report/report.md.
DPS_STEPS, DPS_WEIGHT, DIFFPIR_ZETA = 200, 200.0, 1.0


@dataclass
class DemoLine:
    """One line of the demo's table."""

    task: str
    method: str
    psnr: float  # dB, mean over the images
    seconds: float
    evaluations: int  # of the network, forward, per image


def demo_methods(prior: DiffusionPrior, device: str | torch.device, verbose: bool) -> dict[str, Callable[..., Tensor]]:
    """The methods compared, by name; DPS and DiffPIR with their main weights tuned on other digits."""
    denoiser = prior.denoiser()
    return {
        "DMILO-PGD": DMILOPGD(prior, verbose=verbose),
        "DMILO": DMILO(prior, verbose=verbose),
        f"DPS, {DPS_STEPS} steps": DPS(
            denoiser, num_steps=DPS_STEPS, weight=DPS_WEIGHT, device=device, dtype=torch.float32
        ),
        "DiffPIR": DiffPIR(denoiser, data_fidelity=L2(), zeta=DIFFPIR_ZETA, device=device),
    }


def run_demo(prior: DiffusionPrior, x: Tensor, *, seed: int = 0, verbose: bool = True) -> tuple[list[DemoLine], dict]:
    """The table, and the images by column title: all tasks below one another, (tasks * B, C, H, W)."""
    rows: list[DemoLine] = []
    columns: dict[str, list[Tensor]] = {}
    for title, task in DEMO_TASKS.items():
        physics = make_physics(task, tuple(x.shape[1:]), seed=seed, device=x.device)  # type: ignore[arg-type]
        y = physics(x)
        methods: dict[str, Callable[..., Tensor]] = {"pseudo-inverse": lambda y, physics: physics.A_dagger(y)}
        for name, method in {**methods, **demo_methods(prior, x.device, verbose)}.items():
            if verbose:
                print(f"{title}: {name} ...", flush=True)
            x_hat, scores = score(method, x, y, physics, seed=seed)
            psnr, passes, calls, seconds = (
                mean(s[key] for s in scores) for key in ("psnr", "passes", "calls", "seconds")
            )
            rows.append(DemoLine(title, name, psnr, len(x) * seconds, round(passes + calls)))
            columns.setdefault(name, []).append(x_hat)
        columns.setdefault("ground truth", []).append(x)
    return rows, {name: torch.cat(images) for name, images in columns.items()}


def format_table(rows: list[DemoLine]) -> str:
    """The rows as a markdown table."""
    lines = ["| task | method | PSNR (dB) | seconds | network evaluations |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row.task} | {row.method} | {row.psnr:.2f} | {row.seconds:.1f} | {row.evaluations} |")
    return "\n".join(lines)


def save_picture(columns: dict[str, Tensor], file: str) -> None:
    """All columns beside one another, as a PNG."""
    count = len(columns["ground truth"])
    plot(columns, save_fn=file, show=False, rescale_mode="clip", close=True, max_imgs=count, dpi=200)
