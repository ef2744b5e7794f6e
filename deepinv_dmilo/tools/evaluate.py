"""A whole data set, on one or many devices: a record and a picture for each image, kept when the run is cut off."""

from __future__ import annotations

import inspect
import json
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import deepinv
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from deepinv.datasets import ImageFolder
from deepinv.physics import Physics
from torch import Tensor, nn
from torchvision import transforms
from tqdm import tqdm

from deepinv_dmilo.core.measurements import Measurements, join
from deepinv_dmilo.core.noise import seeded
from deepinv_dmilo.priors.pretrained import bundled_priors, held_out_images
from deepinv_dmilo.tools.pictures import as_png, read_picture
from deepinv_dmilo.tools.provenance import provenance
from deepinv_dmilo.tools.scoring import score


def open_images(source: str, shape: tuple[int, int, int], root: Path | None = None) -> tuple[Any, list[str]]:
    """
    The images of a folder, of a data set of deepinv, or those that a bundled prior never saw.

    :param str source: folder of pictures; class of ``deepinv.datasets`` such as ``"Set14HR"``, which is downloaded; or
        bundled prior such as ``"digits"``.
    :param tuple shape: (C, H, W) that pictures are resized and cropped to; made grey where C is 1.
    :param pathlib.Path root: where ``deepinv.datasets`` keeps its files (default: ``datasets/``).
    :return: images in [0, 1] by index, each (C, H, W); their names, unique.
    """
    grey = [transforms.Grayscale()] if shape[0] == 1 else []
    fit = transforms.Compose([*grey, transforms.Resize(max(shape[1:])), transforms.CenterCrop(shape[1:])])
    if Path(source).is_dir():
        images = ImageFolder(source, loader=read_picture, transform=fit)
        images.x_paths = sorted(images.x_paths)
        names = [path.relative_to(source).with_suffix("").as_posix() for path in images.x_paths]
        if not names:
            raise ValueError(f"{source} has no pictures; give a folder of PNG or JPEG files")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{source} has two pictures named {twice[0]} but for their ending; rename one")
        return images, names
    kind: Any = getattr(deepinv.datasets, source, None)
    known = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if {"root", "download"} <= known.keys():
        held_out = {name: value for name, value in {"mode": "val", "train": False}.items() if name in known}
        to_tensor = transforms.Compose([transforms.ToTensor(), fit])
        images = kind(root=str(root or Path("datasets") / source), download=True, transform=to_tensor, **held_out)
        return images, [f"{i:05d}" for i in range(len(images))]
    if source in bundled_priors():
        digits = held_out_images(source)
        return digits, [f"{i:05d}" for i in range(len(digits))]
    raise FileNotFoundError(
        f"{source!r} is neither a folder of pictures, nor a data set of deepinv.datasets such as 'Set14HR', nor a "
        f"bundled prior ({', '.join(bundled_priors())})"
    )


def evaluate(
    model: nn.Module,
    images: Sequence[Tensor],
    names: Sequence[str],
    physics: Physics,
    out: Path,
    *,
    settings: dict[str, Any],
    seed: int = 0,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    halve_on_out_of_memory: bool = False,
) -> list[dict[str, Any]]:
    """
    Measure every image, reconstruct it, score it; write ``images/NAME.png``, ``records/NAME.json`` and, when all are
    done, ``results.jsonl`` and ``summary.json``.

    Under ``accelerate launch`` or ``torchrun`` each process takes its share of the batches. An image whose record is
    there is not done again. The noise of an image follows from ``seed`` and its name alone, so that its result does
    not depend on order, batch or process but for rounding, and not at all where batches and threads are the same.

    :param torch.nn.Module model: reconstructor, called as ``model(y, physics)``.
    :param images: images in [0, 1] by index, each (C, H, W).
    :param names: their names.
    :param deepinv.physics.Physics physics: forward operator, the same for all images, with its noise.
    :param pathlib.Path out: folder; it may hold an earlier run with the same settings.
    :param dict settings: what the results depend on; written to ``settings.json`` and compared with what is there.
    :param int seed: of the noise, and of the samplers that draw from the global random state.
    :param int batch_size: images that are reconstructed together.
    :param str, torch.device device: where model and physics are.
    :param bool halve_on_out_of_memory: halve ``model.micro_batch`` until the reconstruction fits.
    :return: the records of all images, by name.
    """
    model.eval()
    state = PartialState()
    if state.is_main_process:
        _check_settings(out, settings)
    state.wait_for_everyone()
    batches = [range(i, min(i + batch_size, len(names))) for i in range(0, len(names), batch_size)]
    share = batches[state.process_index :: state.num_processes]
    todo = [[i for i in batch if not _record(out, names[i]).exists()] for batch in share]
    bar = tqdm(
        total=sum(map(len, share)),
        initial=sum(map(len, share)) - sum(map(len, todo)),
        desc="evaluate" if state.num_processes == 1 else f"evaluate, process 1 of {state.num_processes}",
        unit="image",
        disable=not state.is_main_process,
    )
    for batch in filter(None, todo):
        x = torch.stack([_tensor(images[i]) for i in batch]).to(device)
        y = join([measure(x[k : k + 1], physics, names[i], seed) for k, i in enumerate(batch)])

        def run(x: Tensor = x, y: Measurements = y) -> tuple[Tensor, list[dict[str, float]]]:
            return score(model, x, y, physics, seed=seed)

        x_hat, scores = _halving(model, len(batch), run) if halve_on_out_of_memory else run()
        for i, image, values in zip(batch, x_hat, scores, strict=True):
            png = BytesIO()
            as_png(image).save(png, "PNG")
            _write(out / "images" / f"{names[i]}.png", png.getvalue())
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            _write(_record(out, names[i]), json.dumps({"name": names[i], **finite}))
            bar.update()
    bar.close()
    mine = [json.loads(_record(out, names[i]).read_text()) for batch in share for i in batch]
    records = sorted(gather_object(mine), key=lambda record: record["name"])
    if state.is_main_process:
        _summarise(records, settings, out, str(device))
    state.wait_for_everyone()
    return records


def measure(x: Tensor, physics: Physics, name: str, seed: int) -> Measurements:
    """Measurements of one image (1, C, H, W); their noise follows from seed and name."""
    with seeded(x, physics, zlib.crc32(f"{seed}/{name}".encode())), torch.no_grad():
        return physics(x)


def _tensor(image: Any) -> Tensor:
    return image[0] if isinstance(image, tuple | list) else image


def _record(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.json"


def _halving(model: Any, rows: int, run: Callable[[], Any]) -> Any:
    """Run, halving ``model.micro_batch`` after each failure for want of memory, until one at a time does not fit."""
    while True:
        try:
            return run()
        except RuntimeError as error:
            fits = min(rows * getattr(model, "num_samples", 1), model.micro_batch or sys.maxsize)
            if not should_reduce_batch_size(error) or fits == 1:
                raise
        print(f"out of memory with {fits} reconstructions at once, trying {fits // 2}", file=sys.stderr)
        model.micro_batch = fits // 2
        clear_device_cache(garbage_collection=True)


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with results of other settings; start a new one."""
    file = out / "settings.json"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(settings, indent=1))
        return
    before = json.loads(file.read_text())
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if changed:
        told = ", ".join(f"{name} was {before.get(name)!r} and is {settings.get(name)!r}" for name in changed)
        raise ValueError(f"{out} holds results of other settings ({told}); give another --out, or remove it")


def _summarise(records: list[dict[str, Any]], settings: dict[str, Any], out: Path, device: str) -> None:
    _write(out / "results.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    columns = {name: [r[name] for r in records if r[name] is not None] for name in records[0] if name != "name"}
    columns = {name: values for name, values in columns.items() if values}
    summary = {
        "images": len(records),
        "mean": {name: mean(values) for name, values in columns.items()},
        "std": {name: stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()},
        "settings": settings,
        "provenance": provenance(device),
    }
    _write(out / "summary.json", json.dumps(summary, indent=1))


def _write(file: Path, content: str | bytes) -> None:
    """All of a file or nothing of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)
