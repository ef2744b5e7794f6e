"""Faults that disturb a run of ``deepinv-dmilo evaluate``, and how it then differs from an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepinv_dmilo.__main__ import main as deepinv_dmilo
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.prior import Prior

OPTIONS = "--task inpainting --method dmplug --num-layers 1 --max-passes 2 --batch-size 1 --device cpu"
SCORES = ("name", "psnr", "ssim", "residual", "passes", "calls")
FEW = 12  # images of all faults but the soak
KILLS = 10  # in the mean; each after some images more, and up to so many seconds
SECONDS_BEFORE_A_KILL = 0.2
OUT_OF_MEMORY_EVERY = 10  # calls of the network, in the mean
ATTEMPTS = 1000  # before a run that never ends is given up
START_FROM_HERE = multiprocessing.get_context("fork")  # a new process without the seconds that imports take


class NotTried(Exception):
    """The machine does not let us."""


@dataclass
class Bench:
    """Folders, the undisturbed run, and chance."""

    root: Path
    chance: random.Random
    images: int

    def argv(self, out: Path, count: int, pictures: Path | None = None) -> list[str]:
        given = ["evaluate", str(pictures or self.root / "pictures"), "--prior", str(self.root / "prior")]
        return [*given, *OPTIONS.split(), "--limit", str(count), "--out", str(out)]

    def start(self, argv: list[str], before: Callable[[], None] | None = None, told: str = "told") -> Any:
        """A process that runs the command line, after ``before``; it tells what it has to say in a file."""
        process = START_FROM_HERE.Process(target=_run, args=(argv, self.root / told, before))
        process.start()
        return process

    def run(self, argv: list[str], before: Callable[[], None] | None = None) -> tuple[int, str]:
        """Exit code, and the last line that is told."""
        process = self.start(argv, before)
        process.join()
        lines = (self.root / "told").read_text().splitlines()
        return process.exitcode, lines[-1] if lines else ""

    def differences(self, out: Path, count: int) -> str:
        """How a run differs from the undisturbed one; empty where it does not."""
        if not (out / "results.jsonl").exists():
            return "no results"
        whole, found = (
            [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
            for folder in (self.root / "undisturbed", out)
        )
        scores, expected = ([[r[k] for k in SCORES] for r in records] for records in (found, whole[:count]))
        told = [] if scores == expected else [f"{len(scores)} records for {count} images, or other scores"]
        for record in whole[:count]:
            one, two = (folder / "images" / f"{record['name']}.png" for folder in (self.root / "undisturbed", out))
            same = two.exists() and one.read_bytes() == two.read_bytes()
            told += [] if same else [f"another picture of {record['name']}, or none"]
        kept = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file() and f.suffix != ".damaged"}
        files = {"settings.json", "summary.json", "results.jsonl"}
        files |= {f"{room}.{end}" for n in whole[:count] for room, end in _files(n["name"])}
        return "; ".join(told + [f"files left or lost: {sorted(kept ^ files)}"] * (kept != files))


def _files(name: str) -> list[tuple[str, str]]:
    return [(f"images/{name}", "png"), (f"records/{name}", "json")]


def shortened(line: str, folder: Path, name: str = "OUT") -> str:
    """A line without the temporary path of a folder."""
    return line.replace(str(folder), name)


def _run(argv: list[str], told: Path, before: Callable[[], None] | None) -> None:
    torch.set_num_threads(1)
    with told.open("w") as stream, redirect_stdout(stream), redirect_stderr(stream):
        os.dup2(stream.fileno(), 2)  # for what holds on to the stderr of before, such as a logger
        if before is not None:
            before()
        code = deepinv_dmilo(argv)
        stream.flush()
    os._exit(code)


def _wait(seconds: float, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the run does not get to work")
        time.sleep(0.02)


def _records(out: Path) -> int:
    return len(list((out / "records").glob("*.json")))


def killed(bench: Bench, out: Path) -> tuple[str, int]:
    """Killed (SIGKILL) at random moments."""
    kills = inside = 0
    while True:
        process, before = bench.start(bench.argv(out, bench.images)), _records(out)
        enough = before + bench.chance.randint(0, 2 * bench.images // KILLS)
        _wait(300, lambda p=process, n=enough: p.exitcode is not None or _records(out) >= n)  # type: ignore[misc]
        process.join(bench.chance.uniform(0, SECONDS_BEFORE_A_KILL))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills, inside = kills + 1, inside + (_records(out) > before)
    return f"{kills} kills, {inside} of them after new images; the last run: exit code {process.exitcode}", bench.images


def second_run(bench: Bench, out: Path) -> tuple[str, int]:
    """A second run into the folder of one that is at work."""
    first = bench.start(bench.argv(out, FEW), told="told by the first")
    _wait(60, lambda: _records(out) > 0)
    code, told = bench.run(bench.argv(out, FEW))
    first.join()
    return f"the second: exit code {code}, `{shortened(told, out)}`; the first: exit code {first.exitcode}", FEW


@contextmanager
def _disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotTried("nothing can be mounted here") from error
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)


def full_disk(bench: Bench, out: Path) -> tuple[str, int]:
    """A disk of 96 KiB that fills up, then has room again."""
    return _on_a_disk(bench, out, size="96k", mended="size=4m")


def read_only(bench: Bench, out: Path) -> tuple[str, int]:
    """A folder that is read-only, then writable again."""
    return _on_a_disk(bench, out, size="4m", spoiled="ro", mended="rw")


def _on_a_disk(bench: Bench, out: Path, *, size: str, spoiled: str | None = None, mended: str) -> tuple[str, int]:
    """A run on a disk of its own that is mended after the run has ended; spoiled, after half of the images."""
    with _disk(out, size):
        if spoiled is not None:
            bench.run(bench.argv(out / "run", FEW // 2))
            _remount(out, spoiled)
        code, told = bench.run(bench.argv(out / "run", FEW))
        done = _records(out / "run")
        _remount(out, mended)
        again, _ = bench.run(bench.argv(out / "run", FEW))
        shutil.copytree(out / "run", out.with_name("copy of the run"))
    out.rmdir()
    out.with_name("copy of the run").rename(out)
    return f"{done} images, then exit code {code}, `{shortened(told, out)}`; mended: exit code {again}", FEW


def damaged_records(bench: Bench, out: Path) -> tuple[str, int]:
    """Records that are cut off, empty, of another image, or no text."""
    bench.run(bench.argv(out, FEW))
    contents = [b"", b'{"name": "000', b'{"name": "00001"}', b"\xff\xfe\x00", b"[" * 100000]
    chosen = bench.chance.sample(sorted((out / "records").iterdir()), len(contents))
    for file, content in zip(chosen, contents, strict=True):
        file.write_bytes(content)
    code, _ = bench.run(bench.argv(out, FEW))
    aside = len(list(out.rglob("*.damaged")))
    return f"{aside} of {len(contents)} moved aside as `NAME.json.damaged`, exit code {code}", FEW


def unreadable_pictures(bench: Bench, out: Path) -> tuple[str, int]:
    """Pictures that are cut off, empty, or text; mended later."""
    pictures = out.with_name("some unreadable")
    shutil.copytree(bench.root / "pictures", pictures)
    files = bench.chance.sample(sorted(pictures.iterdir())[:FEW], 3)
    for file, content in zip(files, (files[0].read_bytes()[:60], b"", b"no picture"), strict=True):
        file.write_bytes(content)
    code, _ = bench.run(bench.argv(out, FEW, pictures))
    told, done = len(json.loads((out / "summary.json").read_text())["unreadable"]), _records(out)
    for file in files:
        shutil.copy(bench.root / "pictures" / file.name, file)
    again, _ = bench.run(bench.argv(out, FEW, pictures))
    return f"{done} images, {told} told in the summary, exit code {code}; mended: exit code {again}", FEW


def out_of_memory(bench: Bench, out: Path) -> tuple[str, int]:
    """Out of memory at random calls of the network (injected)."""
    codes = []
    for attempt in range(ATTEMPTS):
        chance = random.Random(f"{bench.chance.random()} {attempt}")
        code, _ = bench.run(bench.argv(out, FEW), lambda chance=chance: _inject(chance))  # type: ignore[misc]
        codes.append(code)
        if code == 0:
            break
    return f"{codes.count(2)} of {len(codes)} runs ended so, with exit code 2; the last: exit code {codes[-1]}", FEW


def _inject(chance: random.Random) -> None:
    denoise: Any = DiffusionPrior.denoise

    def hungry(self: Prior, *args: Any, **settings: Any) -> Any:
        if chance.random() < 1 / OUT_OF_MEMORY_EVERY:
            raise torch.OutOfMemoryError("out of memory (injected)")
        return denoise(self, *args, **settings)

    DiffusionPrior.denoise = hungry  # type: ignore[method-assign]


def dead_worker(bench: Bench, out: Path) -> tuple[str, int]:
    """One of two workers of torchrun killed (SIGKILL)."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deepinv_dmilo"]
    argv = [sys.executable, *launch, *bench.argv(out, FEW)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    run = start()
    _wait(300, lambda: _records(out) > 1)
    workers = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    os.kill(bench.chance.choice(workers), signal.SIGKILL)
    code, done = run.wait(), _records(out)
    again = start().wait()
    return f"{done} of {FEW} images, then exit code {code}; started again: exit code {again}", FEW


FAULTS = (killed, second_run, full_disk, read_only, damaged_records, unreadable_pictures, out_of_memory, dead_worker)
