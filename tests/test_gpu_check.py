"""The script of what only a GPU can show, at toy sizes on the CPU."""

import json
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPT = EXAMPLES / "priors" / "gpu_check.py"


@pytest.fixture
def script(monkeypatch):
    """Its names; the folders that it puts on the path are taken off again."""
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), str(EXAMPLES), *sys.path])
    return runpy.run_path(str(SCRIPT))


def sections(page):
    """The text, and the rows of the tables, headers first, below each heading of a page."""
    found = {}
    for part in page.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        found[title] = text, [row for row in rows if set(row) != {"---"}]
    return found


def test_the_page_of_a_quick_run_has_all_its_tables(script, tmp_path):
    argv = ["--device", "cpu", "--quick", "--out", str(tmp_path / "gpu.md"), "--folder", str(tmp_path / "found")]
    script["main"](argv)
    page = (tmp_path / "gpu.md").read_text()
    found = sections(page)
    assert list(found) == [part.title for part in script["PARTS"].values()]
    assert "Not at its end" not in page
    assert "Error" not in page

    _, rows = found["Beside the CPU"]
    same = [row for row in rows if row[-1] == "ok"]
    assert [row[0] for row in same][::4] == ["digits, inpainting, DMILO", "photos, super-resolution, DMILO"]
    assert len(same) == len(rows) - 2 == 4 + 1 + 3  # methods on digits, one on photos, physics
    assert all(0 < float(row[1]) < 1e-2 and float(row[2]) == 0 for row in same[:5])  # float64 is not float32
    assert same[-1][1] == "PerImageForward, linear"

    _, rows = found["Memory"]
    assert [row[:2] for row in rows[1:5]] == [["photos", "2"], ["photos", "3"], ["large", "2"], ["large", "3"]]
    assert all(0 < float(peak) < 50 for row in rows[1:5] for peak in row[2:4])
    _, rows = found["Beside other methods"]
    assert [row[1] for row in rows[1:]] == ["DMILO, 25 passes", "DiffPIR, zeta 1", "FAST-DIPS, 75 calls"]
    assert [int(row[4]) for row in rows[2:]] == [100, 75]
    assert all(10 < float(row[2]) < 40 for row in rows[1:])
    _, rows = found["bfloat16"]
    psnr = [float(row[3]) for row in rows[1:4]]
    assert max(psnr) - min(psnr) < 1
    assert all(float(row[4]) > 0 for row in rows[1:])
    for title in ("torch.compile", "What a pass waits for"):
        assert found[title][0].strip().startswith("needs CUDA")

    _, rows = found["A larger prior"]
    assert rows[0] == ["prior", "16 x 16", "32 x 32"]
    assert [row[0] for row in rows[1:]] == ["photos-large", "photos"]
    card = (tmp_path / "found" / "photos-large" / "README.md").read_text()
    assert f"| photos-large | {rows[1][1]} | {rows[1][2]} |" in card

    script["main"](argv)  # all parts came to their end: none runs again
    assert (tmp_path / "gpu.md").read_text() == page


def test_a_part_apart_that_is_cut_off_costs_no_other_and_is_run_again(script, tmp_path):
    argv = ["--device", "cpu", "--parts", "waits", "--out", str(tmp_path / "gpu.md"), "--folder", str(tmp_path)]
    argv += ["--minutes", "200"]  # of which the part has ten, also on a loaded machine
    args = script["parse_arguments"](argv)
    script["run_apart"]("waits", args, argv, 0.01)
    assert "cut off after 0 seconds" in script["page"](args, argv)
    script["main"](argv)
    found = json.loads((tmp_path / "waits.json").read_text())
    assert found["ended"] == "done", found
    text, _ = sections((tmp_path / "gpu.md").read_text())["Memory"]
    assert text.strip() == "Not at its end: not run."


def test_what_fails_is_one_row_or_one_line(script, tmp_path, monkeypatch):
    def fails(setup, record):
        record.table("what", "found")
        record.row("one", cells=lambda: torch.ones(2) + torch.ones(3))
        record.row("large", cells=lambda: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory")))
        record.row("two", cells=lambda: (2,))
        raise ValueError("no | more\nlines")

    monkeypatch.setitem(script["PARTS"], "memory", script["Part"]("Memory", fails, 1.0))
    argv = ["--device", "cpu", "--quick", "--parts", "memory", "--out", str(tmp_path / "gpu.md")]
    script["main"]([*argv, "--folder", str(tmp_path)])
    text, rows = sections((tmp_path / "gpu.md").read_text())["Memory"]
    assert rows[1][1].startswith("RuntimeError: The size of tensor a (2)")
    assert rows[2:] == [["large", "out of memory"], ["two", "2"]]
    assert "Not at its end: ValueError: no / more." in text


@pytest.mark.filterwarnings("ignore:called a synchronizing")
def test_waits_are_counted_by_the_lines_that_wait(script, tmp_path, monkeypatch):
    """Each look at a tensor is said to wait, as CUDA's debug mode says it of those on a GPU."""
    import gpu_costs

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def look(plain, t):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=3)
        return plain(t)

    for name in ("__bool__", "item", "tolist"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, plain=plain: look(plain, t))
    record = script["Record"](tmp_path / "waits.json")
    record.table("method", "short run", "longer run", "more of", "for each", "allowed", "")
    gpu_costs.waits_of(script["Setup"](torch.device("cpu"), True, tmp_path, gpu_costs.LARGE), record)
    methods, places = (block["rows"] for block in record.found["blocks"] if "rows" in block)
    assert [row[0] for row in methods] == ["DMILO", "DMILOPGD", "DMILOSampler"]
    assert all(row[-1] == "ok" and 0 < float(row[4]) <= float(row[5]) for row in methods)
    assert modes == ["warn", "default"] * 6
    assert places[0][0].startswith("deepinv_dmilo/")


def test_compiling_is_timed_against_not_compiling(script, tmp_path, monkeypatch):
    import gpu_costs

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    setup = script["Setup"](torch.device("cpu"), True, tmp_path, "photos")
    y, physics = gpu_costs.problem(setup, torch.rand(1, 3, 32, 32))
    cells = gpu_costs.compile_times(setup, gpu_costs.LARGE, "bfloat16", y, physics)
    assert len(compiled) == 1
    assert all(float(cell) > 0 for cell in cells)
