"""Part of gpu_check.py: a larger prior of photographs, by examples/train_prior.py."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
import train_prior  # examples/, which gpu_check.py puts on the path
from gpu_setup import Record, Setup
from PIL import Image

from deepinv_dmilo import DiffusionPrior

NAME = "photos-large"
LARGE = "--size 64 128 --channels 64 128 256 256 --batch 64 --lr 5e-4 --hold-out-every 15 --bfloat16"  # 17.3 million
TOY = "--size 16 32 --channels 8 16 --batch 4 --hold-out-every 5"
ALWAYS = "--scales --low-noise 2"


def training(setup: Setup, record: Record) -> None:
    """Train, or go on; write the prior, and on its card and the page its loss beside the bundled prior's."""
    photos = toy_pictures(setup.folder) if setup.quick and setup.photos is None else setup.photos
    if photos is None:
        record.note("No `--photos FOLDER` was given to train on.")
        return
    argv = arguments(setup, photos)
    args = train_prior.parse_arguments(argv)
    state = args.out / "training_state.pt"
    train_prior.main([*argv, *(["--resume"] if state.exists() else [])])
    record.note(f"`{NAME}`, trained for {60 * args.hours:.1f} minutes: its card is `{args.out / 'README.md'}`.")
    compare(setup, record, args)


def arguments(setup: Setup, photos: Path) -> list[str]:
    """Those of train_prior.py; the minutes are those of the first run."""
    kept = setup.folder / "train_minutes.txt"
    if not kept.exists():
        kept.write_text(str(setup.train_minutes))
    hours = float(kept.read_text()) / 60
    argv = ["--data", str(photos), "--out", str(setup.folder / NAME), "--device", str(setup.device)]
    argv += [*(TOY if setup.quick else LARGE).split(), *ALWAYS.split(), "--hours", f"{hours:.4f}"]
    return [*argv, "--workers", str(max(1, (os.cpu_count() or 2) - 4))]


def compare(setup: Setup, record: Record, args: argparse.Namespace) -> None:
    """The denoising loss on the same held-out crops as the bundled prior's."""
    _, held_out = train_prior.load_split(args)
    record.note(
        f"Denoising loss on crops of the {len(held_out)} held-out pictures. Those are held out of the bundled prior's "
        "training, too, if this is the folder that it was trained on."
    )
    record.table("prior", *(f"{size} x {size}" for size in args.size))
    for name in (args.out, "photos"):
        prior = DiffusionPrior.from_pretrained(name, device=setup.device)
        record.row(Path(name).name, cells=partial(losses, prior, args, held_out))
    text, table = record.found["blocks"][-2:]
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    with (args.out / "README.md").open("a") as card:
        card.write(f"\n## Beside the bundled prior\n\n{text['text']}\n\n")
        card.write("".join(f"| {' | '.join(row)} |\n" for row in rows))


def losses(prior: DiffusionPrior, args: argparse.Namespace, held_out: list[torch.Tensor]) -> tuple[str, ...]:
    """At each size."""
    scheduler = train_prior.DDPMScheduler(num_train_timesteps=1000)
    each = (argparse.Namespace(**{**vars(args), "size": [size]}) for size in args.size)
    crops = (train_prior.fixed_images(one, held_out) for one in each)
    return tuple(f"{train_prior.evaluation_loss(prior.network, scheduler, x, args.device):.5f}" for x in crops)


def toy_pictures(folder: Path) -> Path:
    """Ten pictures of noise, to try the script."""
    pictures, rng = folder / "pictures", np.random.default_rng(0)
    pictures.mkdir(exist_ok=True)
    for number in range(10):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    return pictures
