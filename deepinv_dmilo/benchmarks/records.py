"""The lines of the report's CSV files, written so that an interrupted run can resume."""

from __future__ import annotations

import csv
import math
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path

from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS
from deepinv_dmilo.tools.folder import write_whole


@dataclass
class Row:
    """The result of a method on one image; passes, calls, seconds are per image, memory is the batch's peak."""

    task: str
    noise: float
    method: str
    weight: float
    image: int
    psnr: float
    ssim: float
    passes: float
    calls: float
    seconds: float
    memory_mb: float
    residual: float = math.nan
    lpips: float = math.nan
    stlpips: float = math.nan

    @property
    def calls_in_all(self) -> float:
        """What the network did, in forward passes: a pass, forward and backward, is two."""
        return CALLS_OF_A_PASS * self.passes + self.calls


@dataclass
class Trial:
    """The mean PSNR that a rival reaches with a weight on the tuning digits."""

    task: str
    noise: float
    method: str
    weight: float
    psnr: float


def read_lines(kind: type, file: Path) -> list:
    """The rows of a CSV file, none if there is no file; a truncated line is left out."""
    if not file.exists():
        return []
    types = {f.name: {"str": str, "float": float, "int": int}[str(f.type)] for f in fields(kind)}
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [kind(**{name: types[name](value) for name, value in line.items()}) for line in csv.DictReader(whole)]


def append_lines(rows: list, file: Path) -> None:
    """Add rows to a CSV file, new or of fewer columns as well; a truncated line is dropped first."""
    header = ",".join(f.name for f in fields(rows[0])) + "\n"
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if not whole.startswith(header):
        write_whole(file, header + _as_csv(read_lines(type(rows[0]), file)))
    elif whole != text:
        file.write_text(whole)
    with file.open("a", newline="") as lines:
        lines.write(_as_csv(rows))


def _as_csv(rows: list) -> str:
    """Lines without a header."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(astuple(row) for row in rows)
    return text.getvalue()
