"""The lines of the report's CSV files, written so that a run that is cut off can go on."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path


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


@dataclass
class Trial:
    """The mean PSNR that a rival reaches with a weight on the tuning digits."""

    task: str
    noise: float
    method: str
    weight: float
    psnr: float


def read_lines(kind: type, file: Path) -> list:
    """The rows of a CSV file, none where there is no file; a line that was cut off is left out."""
    if not file.exists():
        return []
    types = {f.name: {"str": str, "float": float, "int": int}[str(f.type)] for f in fields(kind)}
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1].splitlines()
    return [kind(**{name: types[name](value) for name, value in line.items()}) for line in csv.DictReader(whole)]


def append_lines(rows: list, file: Path) -> None:
    """Add rows to a CSV file, with a header where it is new; a line that was cut off is dropped first."""
    new = not file.exists()
    if not new and not (text := file.read_text()).endswith("\n"):
        file.write_text(text[: text.rfind("\n") + 1])
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, [f.name for f in fields(rows[0])], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
