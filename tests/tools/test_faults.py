"""Faults of the disk and of other runs: one error, and the next run goes on where this one stopped."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import reliability
import torch
from test_evaluate import DIGITS, OPTIONS, Backprojection, names, psnrs, run

from deepinv_dmilo.__main__ import main
from deepinv_dmilo.tools import folder
from deepinv_dmilo.tools.errors import InputError

HOLD = "import sys, time, pathlib, deepinv_dmilo.tools.folder as f\n"
HOLD += "with f.locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """A process that is at work in tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_into_a_folder_is_refused_until_the_first_is_dead(tmp_path, holder, capsys):
    with pytest.raises(InputError, match=r"another run is at work in .*; wait for its end, or give another --out"):
        run(tmp_path)
    assert not (tmp_path / "settings.json").exists()
    assert main(["evaluate", "digits", *OPTIONS, "--limit", "1", "--out", str(tmp_path)]) == 2
    assert "another run is at work" in capsys.readouterr().err
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".lock").exists()  # which holds nobody up
    assert len(run(tmp_path)) == 6
    assert not list(tmp_path.rglob(".*"))


def test_a_run_that_fails_lets_the_next_one_in(tmp_path):
    with pytest.raises(RuntimeError, match="cut off"):
        run(tmp_path, Backprojection(fails_at=2))
    assert not (tmp_path / ".lock").exists()
    assert len(run(tmp_path)) == 6


def test_where_the_system_has_no_locks_it_is_told(tmp_path, monkeypatch, capsys):
    def no_locks(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder, "_lock", no_locks)
    assert len(run(tmp_path)) == 6
    assert "cannot be locked" in capsys.readouterr().err


@pytest.mark.parametrize("fails_at", [1, 2, 5, 14, 15])
def test_a_disk_that_fills_up(tmp_path, monkeypatch, fails_at):
    """At the settings, a picture, a record, the results and the summary: 15 files."""
    whole, count, fsync = run(tmp_path / "whole"), 0, os.fsync

    def full(handle):
        nonlocal count
        count += 1
        if count == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    told = r"cannot be written: No space left on device; what is done is kept"
    with pytest.raises((OSError, InputError), match=told):
        run(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*"))
    assert psnrs(run(tmp_path / "out")) == pytest.approx(psnrs(whole), abs=1e-4)  # in other batches


def test_a_folder_that_is_read_only_is_one_line(tmp_path, monkeypatch, capsys):
    opened = os.open

    def read_only(path, flags, *args, **kwargs):
        if Path(path).name == ".lock":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    assert main(["evaluate", "digits", *OPTIONS, "--limit", "1", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("deepinv-dmilo: error: [Errno 30] Read-only file system")


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    left = [tmp_path / ".summary.json.partial", tmp_path / "images" / "sub" / ".x.png.partial"]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    run(tmp_path)
    assert not any(file.exists() for file in left)


def test_out_of_memory_at_any_image_loses_none(tmp_path):
    class Hungry(Backprojection):
        def forward(self, y, physics):
            self.calls += 1
            if self.calls % 2:
                raise torch.OutOfMemoryError("out of memory (injected)")
            return physics.A_adjoint(y)

    whole, model = run(tmp_path / "whole", batch_size=1), Hungry()
    failures = 0
    while True:
        try:
            records = run(tmp_path / "out", model, batch_size=1)
            break
        except torch.OutOfMemoryError:
            failures += 1
            model.calls = failures  # fails at another image
            assert failures < 20
    assert failures
    assert psnrs(records) == psnrs(whole)
    assert len(records) == len(names()) == len(DIGITS)


def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path):
    """By the program that tries it on 500 images, and with other faults (docs/reliability.md)."""
    table = tmp_path / "table.md"
    command = [sys.executable, reliability.__file__, "--images", "40", "--faults", "killed"]
    subprocess.run([*command, "--out", str(table)], check=True, timeout=300)
    row = table.read_text().splitlines()[-1]
    assert "all 40 images once, scores and pictures equal, nothing left over" in row
    kills, inside = (int(part.split()[0]) for part in row.split("|")[2].split(", ")[:2])
    assert kills >= inside > 1
