"""A whole data set, on one or many devices: a record and a picture for each image, kept if the run is interrupted."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from deepinv.loss.metric import Metric
from deepinv.physics import Physics
from torch import Tensor, nn
from tqdm import tqdm

from deepinv_dmilo.likelihood.measurements import Measurements, join
from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.folder import check_names, locked, remove_unfinished, shown, write_whole
from deepinv_dmilo.tools.pictures import UNREADABLE, scaled_to_white
from deepinv_dmilo.tools.provenance import provenance
from deepinv_dmilo.tools.records import LABELS, finished_records, image_of, keep, picture_digest
from deepinv_dmilo.tools.scoring import score
from deepinv_dmilo.utils.memory import is_out_of_memory
from deepinv_dmilo.utils.private import seeded

# Pictures to write, by folder, and scores
_Done = tuple[int, dict[str, Tensor], dict[str, float]]
# Images by index, to what is done of them
_Batch = Callable[[dict[int, Tensor]], list[_Done]]


class _WithSamples(nn.Module):
    """A sampler that keeps the samples of its last call, (B, S, C, H, W)."""

    samples: Tensor

    def __init__(self, sampler: nn.Module) -> None:
        super().__init__()
        self.sampler = sampler

    def forward(self, y: Measurements, physics: Physics) -> Tensor:
        x_hat, self.samples = self.sampler(y, physics, return_samples=True)
        return x_hat


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
    metrics: Mapping[str, Metric] | None = None,
    uncertainty: bool = False,
    save_samples: bool = False,
) -> list[dict[str, Any]]:
    """
    Measure every image, reconstruct it, score it; write ``images/NAME.png``, ``records/NAME.json`` and, when all are
    done, ``results.jsonl`` and ``summary.json``.

    Under ``accelerate launch`` or ``torchrun`` each process takes its share of the batches. An image whose record is
    there is not done again, if the record is of this picture (a hash of the file, of what is no folder of pictures of
    the values) and ``images/NAME.png`` is there; a damaged record is moved to ``NAME.json.damaged``. A picture that
    cannot be read, or whose reconstruction diverges, is reported at the end, on stderr and under ``unreadable`` in the
    summary, and tried again by the next run. The noise of an image follows from ``seed`` and its name alone, so that
    its result does not depend on order, batch or process but for rounding, and not at all where batches and threads are
    the same.

    Another run into the same folder is refused while this one is at work. A file is written whole or not at all.

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
    :param metrics: metrics of colour images in addition to PSNR and SSIM, by name, on the device.
    :param bool uncertainty: also write ``std/NAME.png``, the standard deviation over the samples of the model, called
        with ``return_samples=True``; white is ``std_max`` of the record.
    :param bool save_samples: also write these samples, ``sample-1/NAME.png``, ``sample-2/NAME.png``, ...
    :return: the records of all images that could be read, by name.
    """
    model.eval()
    state = PartialState()
    folders = ["images"] + ["std"] * uncertainty
    if save_samples:
        folders += [f"sample-{k + 1}" for k in range(model.num_samples)]  # type: ignore[arg-type]
    with ExitStack() as stack:
        if state.is_main_process:  # on behalf of all
            with door():
                check_names(names)
                stack.enter_context(locked(out))
                _check_settings(out, settings)
            remove_unfinished(out)
        state.wait_for_everyone()
        run = partial(_reconstruct, model, names, physics, seed, device, halve_on_out_of_memory, metrics, folders)
        records, unreadable = _evaluate_share(run, images, names, out, batch_size, folders)
        gathered = sorted(gather_object(list(records.values())), key=lambda record: record["name"])
        missing = dict(sorted(gather_object(list(unreadable.items()))))
        if state.is_main_process:
            _summarise(gathered, missing, settings, out, str(device))
        state.wait_for_everyone()
    return gathered


def _evaluate_share(
    run: _Batch, images: Sequence[Tensor], names: Sequence[str], out: Path, batch_size: int, folders: Sequence[str]
) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    """The batches of this process: records by index, and why which images could not be read."""
    state = PartialState()
    batches = [range(i, min(i + batch_size, len(names))) for i in range(0, len(names), batch_size)]
    share = batches[state.process_index :: state.num_processes]
    records = finished_records(out, images, names, list(chain.from_iterable(share)), folders)
    unreadable: dict[str, str] = {}
    with tqdm(
        total=sum(map(len, share)),
        initial=len(records),
        desc="evaluate" if state.num_processes == 1 else f"evaluate, process 1 of {state.num_processes}",
        unit="image",
        disable=not state.is_main_process,
    ) as bar:
        for batch in share:
            todo = [i for i in batch if i not in records]
            x = _read_batch(images, names, todo, unreadable)
            made_of = {i: picture_digest(images, i, x[i]) for i in x}
            for i, pictures, values in _one_by_one_where_it_fails(run, x, names, unreadable) if x else ():
                records[i] = keep(out, names[i], pictures, values, made_of[i])
            bar.update(len(todo))
    return records, unreadable


def _reconstruct(
    model: nn.Module,
    names: Sequence[str],
    physics: Physics,
    seed: int,
    device: str | torch.device,
    halve_on_out_of_memory: bool,
    metrics: Mapping[str, Metric] | None,
    folders: Sequence[str],
    x: dict[int, Tensor],
) -> list[_Done]:
    """Reconstructions of a batch of images by index, and their scores."""
    y = join([noisy_measurements(x[i][None].to(device), physics, names[i], seed) for i in x])
    called = _WithSamples(model) if len(folders) > 1 else model
    run = partial(score, called, torch.stack(list(x.values())).to(device), y, physics, seed=seed, metrics=metrics)
    x_hat, scores = _halving(model, len(x), run) if halve_on_out_of_memory else run()
    done = [(i, {"images": image}, values) for i, image, values in zip(x, x_hat, scores, strict=True)]
    kept = called.samples if isinstance(called, _WithSamples) else ()
    for (_, pictures, values), samples in zip(done, kept, strict=False):
        if "std" in folders:
            pictures["std"], values["std_max"] = scaled_to_white(samples.std(0))
        pictures |= zip([folder for folder in folders if folder not in ("images", "std")], samples, strict=False)
    return done


def _one_by_one_where_it_fails(
    run: _Batch, x: dict[int, Tensor], names: Sequence[str], failed: dict[str, str]
) -> list[_Done]:
    """A batch; where an image of it diverges the others are done alone, and the reason goes to ``failed``."""
    try:
        return run(x)
    except FloatingPointError as error:
        if len(x) > 1:
            return [done for i in x for done in _one_by_one_where_it_fails(run, {i: x[i]}, names, failed)]
        failed[names[next(iter(x))]] = shown(str(error))
        return []


def noisy_measurements(x: Tensor, physics: Physics, name: str, seed: int) -> Measurements:
    """Measurements of one image (1, C, H, W); their noise follows from seed and name."""
    number = zlib.crc32(f"{seed}/{name}".encode(errors="surrogateescape"))
    with seeded(physics, number) as of_image, torch.no_grad():
        return of_image(x)


def _read_batch(
    images: Sequence[Any], names: Sequence[str], todo: list[int], unreadable: dict[str, str]
) -> dict[int, Tensor]:
    """Images by index; those that cannot be read go to ``unreadable``, with the reason."""
    x = {}
    for i in todo:
        try:
            x[i] = image_of(images, i)
        except UNREADABLE as error:
            unreadable[names[i]] = shown(str(error)) or type(error).__name__
            continue
        if x[i].ndim != 3:
            raise ValueError(
                f"{shown(names[i])} has shape {tuple(x[i].shape)}, and evaluate scores and writes pictures (C, H, W); "
                "reconstruct volumes by model(y, physics)"
            )
    return x


def _halving(model: Any, rows: int, run: Callable[[], Any]) -> Any:
    """Run, halving ``model.micro_batch`` after each failure for want of memory, until one at a time does not fit."""
    while True:
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            fits = min(rows * getattr(model, "num_samples", 1), model.micro_batch or sys.maxsize)
            if not is_out_of_memory(error) or fits == 1:
                raise
        print(f"out of memory with {fits} reconstructions at once, trying {fits // 2}", file=sys.stderr)
        model.micro_batch = fits // 2
        clear_device_cache(garbage_collection=True)


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with results of other settings; start a new one."""
    file = out / "settings.json"
    if not file.exists():
        write_whole(file, json.dumps(settings, indent=1))
        return
    try:
        before = json.loads(file.read_text())
        if not isinstance(before, dict):
            raise ValueError("no settings")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); give another --out, or remove {out}") from error
    if untold := [name for name in settings if name not in before]:
        what = f"do not tell their {' and '.join(untold)}, as those of an earlier version"
        raise ValueError(f"{out} holds results that {what}; give another --out, or remove it")
    changed = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    if changed:
        told = ", ".join(f"{name} was {before.get(name)!r} and is {settings.get(name)!r}" for name in changed)
        raise ValueError(f"{out} holds results of other settings ({told}); give another --out, or remove it")


def _summarise(
    records: list[dict[str, Any]], unreadable: dict[str, str], settings: dict[str, Any], out: Path, device: str
) -> None:
    """Write all records and their summary; report what could not be done."""
    write_whole(out / "results.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    columns: dict[str, list[float]] = {}
    for name, value in chain.from_iterable(record.items() for record in records):
        if name not in LABELS and value is not None:
            columns.setdefault(name, []).append(value)
    summary = {
        "images": len(records),
        "mean": {name: mean(values) for name, values in columns.items()},
        "std": {name: stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()},
        "unreadable": unreadable,
        "settings": settings,
        "provenance": provenance(device),
    }
    write_whole(out / "summary.json", json.dumps(summary, indent=1))
    if unreadable:
        told = "".join(f"\n  {shown(name)}: {reason}" for name, reason in unreadable.items())
        print(f"{len(unreadable)} of {len(records) + len(unreadable)} images could not be done:{told}", file=sys.stderr)
