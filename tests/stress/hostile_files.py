r"""
Files that mean harm, each put before the command line in a process of its own.

A hostile picture lies beside a good one in the folder that ``evaluate`` reads; a hostile prior is given to
``reconstruct``. The column "executed" has code that left a mark: code of the file, a program in Ghostscript's place, a
call of ``os.system``. A picture counts as refused if the exit code is 1, the summary has the reason, and score and
result of the good picture are those of an undisturbed run. A prior counts as refused if the exit code is 2, the last
line has the error, and no picture is written. Neither may write control characters to the terminal. A process is killed
after 60 seconds. MiB is its peak memory, Python and torch included. Messages are cut off after 250 characters.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from faults import OPTIONS, Bench, shortened
from PIL import Image
from safetensors.torch import load_file, save_file

from deepinv_dmilo.tools.folder import shown

TIME_LIMIT = 60  # seconds of a process
MOST_TOLD = 250  # characters of what is told, in the table
GOOD = "00000"  # the picture beside the bad ones
WEIGHTS = "diffusion_pytorch_model"
Spoil = Callable[[Path, Path], object]  # of a folder, so that a file in it would make the mark


class Trap:
    """Makes the mark when it is called, loaded as a part of a pipeline, or unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, *_: Any, **__: Any) -> None:
        self.mark.touch()

    from_pretrained = from_config = __call__

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


def set_traps(folder: Path, mark: Path) -> None:
    """In the process that reads a file: a ``gs``, an ``os.system`` and modules of the folder that make the mark."""
    program = folder / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    os.system = Trap(mark)  # type: ignore[assignment]
    sys.path[:0] = [str(folder), str(folder / "prior")]


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes with a header of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def postscript(mark: Path) -> str:
    """PIL would start Ghostscript on it, whatever its name."""
    code = f"({mark}) (w) file closefile"
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{code}\nshowpage\n"


def lying_weights(content: bytes, lie: str) -> bytes:
    """Safetensors whose header lies about "length", "offsets", "shape" or "overlap"."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    if lie == "offsets":
        header[first]["data_offsets"] = [0, 10**15]
    if lie == "shape":
        header[first]["shape"] = [2**40, 2**20]
    if lie == "overlap":
        header[first]["data_offsets"] = header[second]["data_offsets"]
    packed = json.dumps(header).encode()
    return struct.pack("<Q", 2**62 if lie == "length" else len(packed)) + packed + data


def drop_tensor(file: Path) -> str:
    """Take the first tensor, by name, out of a file of weights; return its name."""
    tensors = load_file(file)
    dropped = sorted(tensors)[0]
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, file)
    return dropped


def change_json(file: Path, **changes: Any) -> None:
    """Put other values into a file of JSON."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _weights(prior: Path) -> Path:
    return prior / "unet" / f"{WEIGHTS}.safetensors"


def _claims(width: int, height: int) -> Spoil:
    return lambda folder, mark: (folder / "claims.png").write_bytes(png_that_claims(width, height))


def _named(name: str) -> Spoil:
    return lambda folder, mark: (folder / f"{name}.png").write_bytes(b"no picture")


def _lies(lie: str) -> Spoil:
    return lambda prior, mark: _weights(prior).write_bytes(lying_weights(_weights(prior).read_bytes(), lie))


def _module(part: str, library: str, kind: str) -> Spoil:
    def spoil(prior: Path, mark: Path) -> None:
        for folder in (prior.parent, prior, prior / part):
            (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
        change_json(prior / "model_index.json", **{part: [library, kind]})

    return spoil


def _config(part: str, **changes: Any) -> Spoil:
    return lambda prior, mark: change_json(next((prior / part).glob("*config.json")), **changes)


def _code(prior: Path, mark: Path) -> None:
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    change_json(prior / "scheduler" / "scheduler_config.json", beta_schedule=code)


def _pickled(ending: str) -> Spoil:
    def spoil(prior: Path, mark: Path) -> None:
        _weights(prior).unlink()
        torch.save({"a": Trap(mark)}, prior / "unet" / f"{WEIGHTS}.{ending}")

    return spoil


def _nothing(folder: Path, mark: Path) -> None:
    """What is harmless is not refused."""


BAD_PICTURES: dict[str, Spoil] = {
    "None: a good picture": _nothing,
    "A PNG of a few bytes that claims 50000 x 20000 pixels": _claims(50_000, 20_000),
    "The same, 13000 x 13000 pixels": _claims(13_000, 13_000),
    "PostScript named .png": lambda folder, mark: (folder / "script.png").write_text(postscript(mark)),
    "A strip of 60000 x 1 pixels": lambda folder, mark: Image.new("L", (60_000, 1)).save(folder / "strip.png"),
    "A FIFO named .png": lambda folder, mark: os.mkfifo(folder / "pipe.png"),
    "A link to /dev/zero": lambda folder, mark: (folder / "endless.png").symlink_to("/dev/zero"),
    "A name with a line break": _named("two\nlines"),
    "A name that clears the terminal": _named("\x1b[2Jgone"),
    "A name that is no text": _named(os.fsdecode(b"\xff")),
}
BAD_PRIORS: dict[str, Spoil] = {
    "None: a good prior": _nothing,
    "Safetensors: a header of 2^62 bytes": _lies("length"),
    "Safetensors: a tensor that ends at 10^15": _lies("offsets"),
    "Safetensors: a shape of 2^60 numbers": _lies("shape"),
    "Safetensors: two tensors of the same bytes": _lies("overlap"),
    "Weights that lack a tensor": lambda prior, mark: drop_tensor(_weights(prior)),
    "Pickled weights that run code": _pickled("bin"),
    "The same, named .safetensors": _pickled("safetensors"),
    "An index that names os.system": _module("unet", "os", "system"),
    "An index that names a class of a module in the folder": _module("scheduler", "evil", "Evil"),
    "An index that names ../evil": _module("unet", "../evil", "Evil"),
    "An index whose class name clears the terminal": _module("unet", "os", "\x1b[2Jsystem"),
    "An index nested 100000 deep": lambda prior, mark: (prior / "model_index.json").write_text("[" * 100_000),
    "A config with code for a noise schedule": _code,
    "A config with os.system for a block": _config("unet", down_block_types=["os.system", "DownBlock2D"]),
    "A config with a word for a number": _config("scheduler", num_train_timesteps="many"),
}


def try_all(bench: Bench) -> tuple[list[str], int]:
    """A row for each file, and how many of them ran something or were not refused."""
    rows = ["| file | exit code | message | result | executed | MiB | seconds |", "|---|---|---|---|---|---|---|"]
    failures = 0
    for give, files in ((_in_a_folder, BAD_PICTURES), (_as_a_prior, BAD_PRIORS)):
        for what, spoil in files.items():
            folder = bench.root / f"{give.__name__} {len(rows)}"
            folder.mkdir()
            mark, start = folder / "mark", time.perf_counter()
            code, mebibytes, told, end = give(bench, folder, spoil, mark)
            seconds = time.perf_counter() - start
            failures += mark.exists() or not end
            told = shorten(shown(shortened(told, folder, "FOLDER")), MOST_TOLD, placeholder=" ...")
            told = told.replace("`", "'").replace("|", "/")
            cells = [what, str(code), f"`{told}`" if told else "-", end or "**not refused**"]
            cells += ["**something**" if mark.exists() else "nothing", str(mebibytes), f"{seconds:.1f}"]
            rows.append(f"| {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows, failures


def _in_a_folder(bench: Bench, folder: Path, spoil: Spoil, mark: Path) -> tuple[int, int, str, str]:
    """Exit code, MiB, what is told and how ``evaluate`` ends; the last is empty where it is not as it should be."""
    pictures, out = folder / "pictures", folder / "out"
    pictures.mkdir()
    shutil.copy(bench.root / "pictures" / f"{GOOD}.png", pictures)
    spoil(pictures, mark)
    bad = {file.stem for file in pictures.iterdir()} - {GOOD}
    code, mebibytes, lines = _process(bench, bench.argv(out, 1 + len(bad), pictures), folder, mark)
    reasons: dict[str, str] = {}
    with suppress(OSError, ValueError):
        reasons = json.loads((out / "summary.json").read_text())["unreadable"]
    refused = code == bool(bad) and reasons.keys() == bad and not bench.differences(out, 1) and _is_plain(lines)
    end = "refused, the good picture done" if bad else "done"
    return code, mebibytes, "; ".join(reasons.values()), end if refused else ""


def _as_a_prior(bench: Bench, folder: Path, spoil: Spoil, mark: Path) -> tuple[int, int, str, str]:
    """Exit code, MiB, what is told and how ``reconstruct`` ends; the last is empty where it is not as it should be."""
    prior, out = folder / "prior", folder / "x.png"
    shutil.copytree(bench.root / "prior", prior)
    spoil(prior, mark)
    options = OPTIONS.replace("--batch-size 1 ", "").split()
    argv = ["reconstruct", str(bench.root / "pictures" / f"{GOOD}.png"), "--simulate", *options]
    code, mebibytes, lines = _process(bench, [*argv, "--prior", str(prior), "--out", str(out)], folder, mark)
    told = lines[-1] if lines else ""
    if spoil is _nothing:
        return code, mebibytes, "", "done" if code == 0 and out.exists() else ""
    refused = code == 2 and told.startswith("deepinv-dmilo: error: ") and not out.exists() and _is_plain(lines)
    return code, mebibytes, told, "refused" if refused else ""


def _process(bench: Bench, argv: list[str], folder: Path, mark: Path) -> tuple[int, int, list[str]]:
    """Exit code, peak memory in MiB and the lines that are told."""

    def before() -> None:
        signal.alarm(TIME_LIMIT)
        set_traps(folder, mark)

    process = bench.start(argv, before)
    _, status, usage = os.wait4(process.pid, 0)
    lines = (bench.root / "told").read_text().split("\n")
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024, [line for line in lines if line]


def _is_plain(lines: list[str]) -> bool:
    """Whether nothing is told that a terminal would obey; progress bars go back in their line."""
    return all(line.replace("\r", "").isprintable() for line in lines)
