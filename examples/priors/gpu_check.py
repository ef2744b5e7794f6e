"""
Checks that need a GPU, in one run: correctness, speed, memory; and the training of a larger prior of photographs.

    python examples/priors/gpu_check.py --photos PICTURES --minutes 25      # writes docs/gpu.md
    python examples/priors/gpu_check.py --device cpu --quick --out page.md  # tries the script, at toy sizes

Each part runs in its own process (not with --quick), so that the failure of one does not stop the others. Results are
in ``--folder`` after each row, and the page is written after each part. After an interruption the same command resumes:
finished parts are not run again, and the training continues. A new folder starts from the beginning. With the internet,
``--prior google/ddpm-celebahq-256 --images FACES`` takes that prior and pictures of faces.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent / "docs" / "scripts")]

import torch  # noqa: E402
from gpu_correctness import correctness  # noqa: E402
from gpu_costs import bfloat16, compiled, memory, side_by_side, waits  # noqa: E402
from gpu_setup import Record, Setup, told  # noqa: E402
from gpu_training import training  # noqa: E402

from deepinv_dmilo.tools.provenance import provenance, sentence  # noqa: E402

DONE = "done"
GRACE = 45.0  # seconds to save what a part has, once its time is over
WRITING = 90.0  # seconds that a trained prior takes to be written and compared
TOY = 0.05  # minutes of training, at least


class Part(NamedTuple):
    """A part of the page."""

    title: str
    run: Callable[[Setup, Record], None]
    share: float  # of the minutes, at most


PARTS = {
    "correctness": Part("Beside the CPU", correctness, 0.15),
    "waits": Part("What a pass waits for", waits, 0.05),
    "memory": Part("Memory", memory, 0.12),
    "methods": Part("Beside other methods", side_by_side, 0.15),
    "bfloat16": Part("bfloat16", bfloat16, 0.1),
    "compile": Part("torch.compile", compiled, 0.15),
    "training": Part("A larger prior", training, 1.0),
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=str(__doc__).strip().split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"), help="page to write")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu_check"), help="of what is found, to go on from")
    parser.add_argument("--minutes", type=float, default=25.0, help="of the whole run (default: 25)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="some of them (default: all)")
    parser.add_argument("--train-minutes", type=float, help="over all runs (default: what is left of the first)")
    parser.add_argument("--photos", type=Path, help="folder of pictures to train on")
    parser.add_argument("--images", type=Path, help="folder of pictures to reconstruct (default: bundled ones)")
    parser.add_argument("--prior", default="photos", help="bundled prior, folder or hub id (default: photos)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args(argv)
    for folder in (args.photos, args.images):
        if folder is not None and not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; type --device cpu --quick to try the script")
    return args


def run_here(name: str, args: argparse.Namespace) -> None:
    """A part, in this process; what ends it early is in its record."""
    record, device = Record(args.folder / f"{name}.json"), torch.device(args.device)
    setup = Setup(device, args.quick, args.folder, args.prior, args.images, args.photos, args.train_minutes or TOY)
    try:
        PARTS[name].run(setup, record)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # a training that is stopped exits
        traceback.print_exc()
        record.end(told(error))
    else:
        record.end(DONE)


def run_apart(name: str, args: argparse.Namespace, argv: Sequence[str], seconds: float) -> None:
    """A part in a process of its own, for so many seconds at most."""
    minutes = args.train_minutes or max(TOY, (seconds - WRITING) / 60)
    command = [sys.executable, __file__, *argv, "--only", name, "--train-minutes", str(minutes)]
    child, late = subprocess.Popen(command, env={**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}), ""
    for how, patience in ((None, seconds), (signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        if how is not None:
            child.send_signal(how)
            late = f"cut off after {seconds:.0f} seconds; the same command goes on"
        try:
            child.wait(patience)
            break
        except subprocess.TimeoutExpired:
            continue
    file = args.folder / f"{name}.json"
    found = read(file)
    if found.get("ended") != DONE:
        ended = late or found.get("ended") or f"exit code {child.returncode}"
        file.write_text(json.dumps({"blocks": [], "seconds": 0.0, **found, "ended": ended}))


def read(file: Path) -> dict[str, Any]:
    """What a part found; nothing where it did not run."""
    return json.loads(file.read_text()) if file.exists() else {}


def page(args: argparse.Namespace, argv: Sequence[str]) -> str:
    """The page of what was found so far."""
    lines = ["---", "orphan: true", "---", "", "# On a GPU", ""]
    lines += [f"`python examples/priors/gpu_check.py {' '.join(argv)}` ; {sentence(provenance(args.device))}.", ""]
    if args.quick:
        lines += ["**Toy sizes, to try the script: these are no measurements.**", ""]
    for name, part in PARTS.items():
        found = read(args.folder / f"{name}.json")
        lines += [f"## {part.title}", ""]
        for block in found.get("blocks", []):
            lines += [block["text"], ""] if "text" in block else table(block)
        if found.get("ended") != DONE:
            lines += [f"Not at its end: {found.get('ended') or 'not run'}.", ""]
        lines += [f"({found['seconds']:.0f} seconds)", ""] if found else []
    return "\n".join(lines).rstrip() + "\n"


def table(block: dict[str, Any]) -> list[str]:
    """A table in markdown."""
    width = len(block["columns"])
    rows = [[*row, *[""] * (width - len(row))] for row in block["rows"]]
    return [*(f"| {' | '.join(row)} |" for row in (block["columns"], ["---"] * width, *rows)), ""]


def main(argv: Sequence[str] | None = None) -> None:
    """All parts that did not come to their end before, one after the other."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(argv)
    for folder in (args.folder, args.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if args.only:
        # As Ctrl-C, which a process in the background may ignore.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run_here(args.only, args)
        return
    end = time.monotonic() + 60 * args.minutes
    for name in args.parts:
        left = end - time.monotonic() - GRACE
        if read(args.folder / f"{name}.json").get("ended") == DONE or left < GRACE:
            continue
        print(f"-- {PARTS[name].title}", flush=True)
        if args.quick:
            run_here(name, args)
        else:
            run_apart(name, args, argv, min(left, 60 * args.minutes * PARTS[name].share))
        args.out.write_text(page(args, argv))
    args.out.write_text(page(args, argv))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
