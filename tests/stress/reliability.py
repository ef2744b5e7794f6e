r"""
What a disturbed run of ``deepinv-dmilo evaluate`` loses, and what hostile files do to the command line.

    python tests/stress/reliability.py --out docs/reliability.md

Each run of ``deepinv-dmilo evaluate`` is disturbed, then started again with the same command until it ends. The result
is compared with that of an undisturbed run: every image must be there once, with the same scores and the same picture,
byte for byte, and no temporary file or lock may be left. The test is of the command, not of the images: 32 x 32 digits
as PNG files, one at a time, a network of 30 thousand untrained weights and two passes. Linux only. Full and read-only
disks are small file systems in memory; without the right to mount these two are reported as not tried.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hostile_files
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from faults import FAULTS, FEW, OPTIONS, Bench, NotTried

from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.pictures import as_png
from deepinv_dmilo.tools.provenance import provenance, sentence

HOSTILE = "hostile_files"  # the second table, among the names of the faults


def main(argv: list[str] | None = None) -> int:
    """Try each and write the tables; the exit code tells whether a result was lost, or a file not refused."""
    parser = argparse.ArgumentParser(prog="python tests/stress/reliability.py")
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--images", type=int, default=500, help="of the run that is killed, 12 to 500 (500)")
    names = [*(fault.__name__ for fault in FAULTS), HOSTILE]
    parser.add_argument("--faults", nargs="+", choices=names, default=names, help="(all)")
    args = parser.parse_args(argv)
    if not FEW <= args.images <= 500:
        parser.error(f"--images {args.images}: type a number from {FEW} to 500")
    torch.set_num_threads(1)
    command = f"`python tests/stress/reliability.py {' '.join(sys.argv[1:] if argv is None else argv)}`"
    parts = ["# What a disturbed run loses", _text(__doc__), f"Options: `{OPTIONS}`."]
    parts.append(f"{command}; {sentence(provenance())}.")
    with TemporaryDirectory() as root:
        bench = _bench(Path(root), args.images)
        rows, failures = _disturbed(bench, args.faults)
        parts.append("\n".join(rows))
        if HOSTILE in args.faults:
            rows, not_refused = hostile_files.try_all(bench)
            parts += ["## Hostile files", _text(hostile_files.__doc__), "\n".join(rows)]
            failures += not_refused
    args.out.write_text("\n\n".join(parts) + "\n")
    return 1 if failures else 0


def _text(docstring: str | None) -> str:
    """The last paragraph of a module's docstring."""
    return " ".join(str(docstring).split("\n\n")[-1].split())


def _bench(root: Path, images: int) -> Bench:
    """Digits as PNG files, and a small network."""
    bench = Bench(root, random.Random(0), images)
    (bench.root / "pictures").mkdir()
    _save_prior(bench.root / "prior")
    DiffusionPrior.from_pretrained(str(bench.root / "prior"))  # what it imports, processes from here have
    for i, image in enumerate(held_out_images("digits")[:images]):
        as_png(image).save(bench.root / "pictures" / f"{i:05d}.png")
    return bench


def _save_prior(folder: Path) -> None:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    network = UNet2DModel(sample_size=32, in_channels=1, out_channels=1, **kinds, **sizes)
    pipeline: Any = DDPMPipeline(network, DDPMScheduler())
    pipeline.save_pretrained(folder)


def _disturbed(bench: Bench, names: list[str]) -> tuple[list[str], int]:
    """The undisturbed run, then one for each fault: rows of the table, and how many lost something."""
    rows, lost = ["| fault | what happened | at the end | seconds |", "|---|---|---|---|"], 0
    start = time.perf_counter()
    code, told = bench.run(bench.argv(bench.root / "undisturbed", bench.images))
    rows.append(f"| None | exit code {code} | {bench.images} images | {time.perf_counter() - start:.0f} |")
    print(rows[-1], told, flush=True)
    faults = {fault.__name__: fault for fault in FAULTS}
    for fault in (faults[name] for name in names if name in faults):
        out, start = bench.root / fault.__name__, time.perf_counter()
        try:
            happened, count = fault(bench, out)
            differs = bench.differences(out, count)
            lost += bool(differs)
            end = differs or f"all {count} images once, scores and pictures equal, nothing left over"
        except NotTried as error:
            happened, end = f"not tried: {error}", "-"
        row = [str(fault.__doc__), happened, end, f"{time.perf_counter() - start:.0f}"]
        rows.append(f"| {' | '.join(row)} |")
        print(rows[-1], flush=True)
    return rows, lost


if __name__ == "__main__":
    sys.exit(main())
