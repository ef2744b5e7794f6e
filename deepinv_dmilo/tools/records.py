"""The records of ``evaluate``: an image's scores next to its picture, and whether they are still valid for it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepinv.datasets import ImageFolder
from torch import Tensor

from deepinv_dmilo.tools.folder import few, shown, write_whole
from deepinv_dmilo.tools.pictures import UNREADABLE, png_bytes
from deepinv_dmilo.tools.provenance import digest

LABELS = ("name", "picture")  # of a record, beside its scores


def finished_records(
    out: Path, images: Sequence[Any], names: Sequence[str], share: list[int], folders: Sequence[str]
) -> dict[int, dict[str, Any]]:
    """The records of an earlier run by index, of the same pictures and with all results; prints how many are not."""
    found = {i: record for i in share if (record := _finished(out, names[i])) is not None}
    same = {
        i: record
        for i, record in found.items()
        if all((out / folder / f"{names[i]}.png").is_file() for folder in folders)
        and ("std" not in folders or "std_max" in record)
        and record.get("picture") == picture_digest(images, i)
    }
    if others := [names[i] for i in found if i not in same]:
        print(f"done again, since picture or result is another: {few(others)} ({len(others)} in all)", file=sys.stderr)
    return same


def keep(
    out: Path, name: str, pictures: dict[str, Tensor], values: dict[str, float], picture: str | None
) -> dict[str, Any]:
    """Write the pictures, by folder, then the record that says that the image is done."""
    for folder, image in pictures.items():
        write_whole(out / folder / f"{name}.png", png_bytes(image))
    scores = {key: value if math.isfinite(value) else None for key, value in values.items()}
    record = {"name": name, "picture": picture, **scores}
    write_whole(_record(out, name), json.dumps(record))
    return record


def picture_digest(images: Sequence[Any], i: int, x: Tensor | None = None) -> str | None:
    """A hash of an image: in a folder of pictures of its file, else of its values x; None: it cannot be read."""
    with suppress(*UNREADABLE):
        if isinstance(images, ImageFolder) and images.x_paths is not None:
            file = images.x_paths[i]
            return digest(file.read_bytes()) if file.is_file() else None
        return digest(image_of(images, i) if x is None else x)
    return None


def image_of(images: Sequence[Any], i: int) -> Tensor:
    """An image of a data set, (C, H, W), without its label."""
    item = images[i]
    return item[0] if isinstance(item, tuple | list) else item


def _record(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.json"


def _finished(out: Path, name: str) -> dict[str, Any] | None:
    """The record of an earlier run; a damaged one is moved aside."""
    file = _record(out, name)
    if not file.exists():
        return None
    with suppress(ValueError, RecursionError):  # no JSON, or no text
        record = json.loads(file.read_text())
        if isinstance(record, dict) and record.get("name") == name and _are_scores(record):
            return record
    told = f"{file} is damaged: moved to {file.name}.damaged, and its image done again"
    print(shown(told), file=sys.stderr)
    file.replace(file.with_name(f"{file.name}.damaged"))
    return None


def _are_scores(record: dict[str, Any]) -> bool:
    """Whether there are values, each a finite number or null."""
    values = [value for key, value in record.items() if key not in LABELS]
    return bool(values) and all(
        value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in values
    )
