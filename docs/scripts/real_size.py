r"""
Memory and time at real size, each measurement in a process of its own: a few passes of each method on a network of
google/ddpm-celebahq-256's configuration (113.7 million parameters, random weights, 256 x 256 x 3), and 4x
super-resolution of a photograph of 256 x 256 with the bundled prior, as a user runs it.

    python docs/scripts/real_size.py --out docs/real_size.md

The weights are random, so the images are nothing to look at; passes, memory and seconds do not depend on them. What a
GPU adds is measured by examples/priors/gpu_check.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Downsampling, Physics
from torch import Tensor

from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmplug import DMPlug
from deepinv_dmilo.optim.solvers import LBFGS
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.schedules.levels import Levels
from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.tools.scoring import Meter
from deepinv_dmilo.tools.tasks import make_physics

CELEBAHQ: dict[str, Any] = {
    "sample_size": 256,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
TINY: dict[str, Any] = {
    "sample_size": 32,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "norm_num_groups": 4,
}

Reconstruct = Callable[[Tensor, Any], object]


def _bare(prior: DiffusionPrior, passes: int, *, frozen: bool) -> Reconstruct:
    """Forward and backward passes of one layer, nothing else; unfrozen, the weights take gradients as well."""

    def run(y: Tensor, physics: Downsampling) -> None:
        prior.eval().requires_grad_(not frozen)
        z = torch.randn(len(y), *prior.image_shape, device=prior.device).requires_grad_()  # type: ignore[misc]
        for _ in range(passes):
            prior.step(z, *prior.levels(3)[2:]).square().sum().backward()

    return run


def _short_published(prior: DiffusionPrior, passes: int, num_layers: int = 3) -> Reconstruct:
    settings = {"num_layers": num_layers, "outer_steps": 1, "inner_steps": max(1, passes // num_layers)}
    return DMILO.from_preset("super_resolution", prior, **settings)


def _short_dmilo(prior: DiffusionPrior, passes: int) -> Reconstruct:
    return DMILO(prior, schedule=Levels((1.0,)), solver=LBFGS(passes, tolerance=0.0))


def _short_dmplug(prior: DiffusionPrior, passes: int) -> Reconstruct:
    return DMPlug(prior, num_layers=3, steps=max(1, passes // 3))


# name -> (method, settings of the prior)
CONFIGURATIONS: dict[str, tuple[Callable[..., Reconstruct], dict[str, Any]]] = {
    "bare passes, weights frozen": (partial(_bare, frozen=True), {}),
    "bare passes, weights not frozen (as the authors' code)": (partial(_bare, frozen=False), {}),
    "DMPlug, 3 layers": (_short_dmplug, {}),
    "DMILO published, 3 layers": (_short_published, {}),
    "DMILO published, 6 layers": (partial(_short_published, num_layers=6), {}),
    "DMILO": (_short_dmilo, {}),
    "DMILO, checkpointing": (_short_dmilo, {"checkpointing": True}),
}
#: the bundled prior as a user runs it: passes, and settings of the prior
PHOTOGRAPH: dict[str, tuple[int, dict[str, Any]]] = {
    "photograph, 25 passes": (25, {}),
    "photograph, 25 passes, bfloat16": (25, {"autocast": torch.bfloat16}),
    "photograph, 100 passes": (100, {}),
    "photograph, 100 passes, bfloat16": (100, {"autocast": torch.bfloat16}),
}


def cost_of(name: str, device: str, batch: int, passes: int, tiny: bool) -> dict[str, float]:
    """Seconds per pass and image, and per image, passes, and peak memory in gigabytes; in this process."""
    if name in PHOTOGRAPH:
        return _cost_of_a_photograph(*PHOTOGRAPH[name], device, batch, tiny)
    from diffusers import DDPMScheduler, UNet2DModel

    method, settings = CONFIGURATIONS[name]
    torch.manual_seed(0)
    configuration: dict[str, Any] = TINY if tiny else CELEBAHQ
    unet: Any = UNet2DModel(in_channels=3, out_channels=3, **configuration)
    prior = DiffusionPrior(unet, DDPMScheduler(), **settings).to(device)
    size = configuration["sample_size"]
    physics = Downsampling((3, size, size), filter="bicubic", factor=4, device=device)
    y = physics.A(torch.rand(batch, 3, size, size, device=device))
    return _measured(method(prior, passes), prior, y, physics)


def _cost_of_a_photograph(
    passes: int, settings: dict[str, Any], device: str, batch: int, tiny: bool
) -> dict[str, float]:
    prior = DiffusionPrior.from_pretrained("photos", device=device, **settings)
    x = held_out_images("photos").repeat(batch, 1, 1, 1)[:batch].to(device)
    x = x[..., :64, :64] if tiny else x
    physics = make_physics("super-resolution", (3, *x.shape[2:]), device=device)
    return _measured(DMILO(prior, max_passes=1 if tiny else passes), prior, physics(x), physics)


def _measured(run: Reconstruct, prior: DiffusionPrior, y: Tensor, physics: Physics) -> dict[str, float]:
    if prior.device.type != "cpu":
        run(y, physics)  # kernels are chosen and compiled at the first call
    with Meter(prior.network, prior.device) as meter:
        run(y, physics)
    return {
        "seconds": meter.seconds / (meter.passes + meter.calls / CALLS_OF_A_PASS),
        "whole": meter.seconds / len(y),
        "passes": meter.passes / len(y),
        "memory": meter.peak / 1e9,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure every configuration and write the table."""
    parser = argparse.ArgumentParser(prog="python docs/scripts/real_size.py")
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--passes", type=int, default=6, help="network passes of each method (default: 6)")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--only", nargs=2, metavar=("NAME", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.only:
        print(json.dumps(cost_of(args.only[0], args.device, int(args.only[1]), args.passes, args.tiny)))
        return
    names = [*CONFIGURATIONS, *PHOTOGRAPH]
    header = [
        "| | batch | seconds per pass and image | relative | seconds per image | peak memory (GB) | relative |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = {False: [*header], True: [*header]}  # by whether it is the photograph
    for batch in args.batches:
        first: dict[bool, dict[str, float]] = {}
        for name in names:
            started = time.perf_counter()
            table = name in PHOTOGRAPH
            command = [sys.executable, __file__, "--out", str(args.out), "--only", name, str(batch)]
            command += ["--device", args.device, "--passes", str(args.passes), *(["--tiny"] if args.tiny else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                lines[table].append(f"| {name} | {batch} | {said[-1][:80]} | | | | |")
                continue
            cell = json.loads(done.stdout.splitlines()[-1])
            to = first.setdefault(table, cell)
            lines[table].append(
                f"| {name} | {batch} | {cell['seconds']:.3g} | {cell['seconds'] / to['seconds']:.2f} | "
                f"{cell['whole']:.3g} | {cell['memory']:.2f} | {cell['memory'] / to['memory']:.2f} |"
            )
            print(lines[table][-1], f"({time.perf_counter() - started:.0f} s)", flush=True)
    heading = f"# At real size\n\n{' '.join(str(__doc__).split(chr(10) * 2)[0].split())}\n\n"
    where = (
        f"`python docs/scripts/real_size.py {' '.join(sys.argv[1:] if argv is None else argv)}` ; "
        f"{sentence(provenance(args.device))}. A pass is a forward "
        "and backward pass; a forward pass alone counts half of one. Memory is that of the whole process on a CPU "
        "(weights, libraries and all), what torch allocated on a GPU. Relative: to the first line of the same "
        "table and batch. Of the large network an image gets a few passes only.\n\n"
    )
    args.out.write_text(heading + where + "\n".join([*lines[False], "", *lines[True]]) + "\n")


if __name__ == "__main__":
    main()
