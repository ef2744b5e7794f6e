"""The calibration suite: a run that resumes after an interruption, and its tables and pictures."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from deepinv_dmilo.benchmarks.calibration import (
    BETWEEN,
    DEFAULT_SAMPLER,
    INTERVALS,
    SAMPLED_TASKS,
    SAMPLINGS,
    Calibration,
    check_samples,
    draw,
    measured,
    weight_of,
)
from deepinv_dmilo.benchmarks.closed_form import ClosedForm, run_closed_form
from deepinv_dmilo.benchmarks.figures import known_mean, reliability_figure, sample_figure, save_figure
from deepinv_dmilo.benchmarks.methods import METHODS
from deepinv_dmilo.benchmarks.records import append_lines, read_lines
from deepinv_dmilo.benchmarks.report import cells, chosen_methods, claim_folder
from deepinv_dmilo.benchmarks.studies import DRAWN, KNOWN_TASKS, PRESETS, Case, Study, measurements
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.metrics import perceptual_metrics
from deepinv_dmilo.tools.provenance import provenance, sentence

HELD = ("coverage50", "coverage80", "coverage95")
#: columns of quality: title, digits
QUALITY = {
    "psnr": ("PSNR of mean", 2),
    "psnr_one": ("PSNR of one sample", 2),
    "ssim": ("SSIM of mean", 3),
    "ssim_one": ("SSIM of one sample", 3),
    "stlpips": ("ST-LPIPS of mean", 3),
    "stlpips_one": ("ST-LPIPS of one sample", 3),
}
MEANING = f"""S samples of each image by each method. *Ratio*: the squared error of their mean over (1 + 1/S) times
their variance; 1 is calibrated, above 1 the samples are too narrow. *Coverage*: the share of pixels of the truth
between {BETWEEN[0]} and {BETWEEN[1]} in the intervals of 50, 80 and 95 % of Student's t with S - 1 degrees of freedom,
exact if samples and truth are Gaussian draws of the same distribution. *One sample*: the mean over the samples. Network
calls and seconds are for one sample; a forward pass and a backward pass count as one call each."""
EXACT = """Images of a Gaussian prior with a 1/f spectrum, whose posterior has a closed form. *Variance*: that of the
samples over the exact one (ideal: 1); *error*: the squared error of their mean over the exact variance (ideal: 1/S);
*coverage*: the share of the exact posterior in the intervals. Each is the minimum and the maximum over the operators
that the method supports."""
#: default settings of the calibration: pictures, their size, the side of their central crop, tasks
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"limit": 16, "tasks": SAMPLED_TASKS},
    "photos": {"limit": 4, "size": 256, "crop": 64, "tasks": SAMPLED_TASKS[:3]},
}
QUICK_SETTINGS: dict[str, Any] = {"limit": 1, "tasks": SAMPLED_TASKS[:1], "noises": (0.05,)}
QUICK_METHODS = ("DMILOSampler, 40 calls", "DiffPIR, recommended")


def benchmark(args: argparse.Namespace, device: str, command: str) -> None:
    """The suite for the options of the command line."""
    names = chosen_methods(args.methods or (QUICK_METHODS if args.quick else None), SAMPLINGS)
    options = ("prior", "images", "limit", "size", "tasks", "noises", "batch_size")
    settings = dict(QUICK_SETTINGS) if args.quick else {}
    settings |= {option: getattr(args, option) for option in options if getattr(args, option) is not None}
    settings |= {"bfloat16": True} if args.bfloat16 else {}
    name, is_exact = args.preset or "photos", args.preset == "gaussian"
    if args.samples is not None and args.samples < 2:
        raise InputError(f"--samples {args.samples}: type at least 2, of which there is a variance")
    args.out.mkdir(parents=True, exist_ok=True)
    own = [option for option in (*options, "drawn") if option not in ("tasks", "noises")]
    given = [option for option in own if getattr(args, option) not in (None, False)]
    if is_exact and given:
        raise InputError(f"--preset gaussian has its own images; leave --{given[0].replace('_', '-')} out")
    if args.drawn and args.images is not None:
        raise InputError("--drawn draws the pictures from the prior; leave --images out, or --drawn")
    if is_exact and not args.only_write:
        chosen = {option: settings[option] for option in ("tasks", "noises") if option in settings}
        run_closed_form(names, args.out, count=args.samples or (8 if args.quick else 64), **chosen)
    elif not args.only_write:
        study = open_study(name, device, settings, args.out, drawn=args.drawn)
        run_calibration(study, names, args.samples or 8, args.out)
    (write_closed_form if is_exact else write_calibration)(args.out, command, device)
    print((args.out / "calibration.md").read_text())
    print(f"wrote {args.out}")


def open_study(name: str, device: str, settings: dict[str, Any], out: Path, *, drawn: bool = False) -> Study:
    """
    A preset, or the same on other pictures; what its rivals were tuned on may be of another size.

    Pictures that are drawn from the prior are of the size of the preset's crop, or of the prior's, and are kept in out.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: type one of gaussian, {', '.join(PRESETS)}")
    own = PRESETS[name]
    is_own = not {"prior", "images"} & settings.keys()
    defaults = dict(DEFAULTS.get(name, {})) if is_own else {"tasks": SAMPLED_TASKS}
    crop = defaults.pop("crop", None)
    crop = None if "size" in settings else crop
    if drawn:
        settings, crop = {"size": crop, **settings, "images": DRAWN}, None
    preset = own.with_settings(**{**defaults, **settings})
    preset = replace(preset, record=own.record) if is_own else preset
    if unknown := [task for task in preset.tasks if task not in KNOWN_TASKS]:
        raise InputError(f"no task {unknown[0]!r} in the calibration; type some of {', '.join(KNOWN_TASKS)}")
    claim_folder(preset, out, crop=crop)
    if drawn:
        return Study.drawn(preset, device, out / "drawn.pt")
    study = Study.open(preset, device)
    return study if crop is None else replace(study, pictures=center_crop(study.pictures, [crop, crop]))


def run_calibration(study: Study, names: Sequence[str], count: int, out: Path) -> None:
    """Run what is missing and append it to ``results.csv``; plot the default sampler's first image of each problem."""
    results = out / "results.csv"
    check_samples(known := read_lines(Calibration, results), count, out)
    done = {(r.method, r.task, r.noise, r.image) for r in known}
    shape = tuple(study.pictures.shape[1:])
    metrics = perceptual_metrics(shape, study.prior.device, ("stlpips",)) if shape[0] == 3 else {}
    bar = tqdm(list(cells(study, names)), desc="calibration", unit="cell")
    for name, task, noise, chosen in bar:
        bar.set_postfix_str(f"{name}, {task}, {noise}, images {chosen.start}-{chosen.stop - 1}")
        sampling, numbers = SAMPLINGS[name], range(chosen.start, chosen.stop)
        physics = study.physics(task, noise)
        if sampling.method is not None and not isinstance(physics, METHODS[sampling.method].physics):
            continue
        weight = weight_of(sampling, task, noise, study.preset.record)
        if weight is None or {(name, task, noise, i) for i in numbers} <= done:
            continue
        x = study.pictures[chosen]
        y: Any = measurements(x, numbers, physics)
        case = Case(study.prior, shape, task, noise, weight)  # type: ignore[arg-type]
        samples, calls, seconds = draw(sampling, case, y, physics, count, chosen.start)
        samples = samples.clamp(0, 1).to(x.dtype)
        rows = [
            Calibration(task, noise, name, i, count, calls=calls, seconds=seconds, **measured(of_image, truth, metrics))
            for i, of_image, truth in zip(numbers, samples, x, strict=True)
        ]
        append_lines([row for row in rows if (name, task, noise, row.image) not in done], results)
        if name == DEFAULT_SAMPLER and chosen.start == 0:
            save_figure(sample_figure(x[0], samples[0]), out / f"{task}-{noise}.png")


def write_calibration(out: Path, command: str, device: str = "cpu") -> None:
    """``calibration.md``, of what has been run."""
    study = json.loads(note.read_text()) if (note := out / "study.json").exists() else {}
    title = f"# Calibration: pictures {DRAWN}" if study.get("images") == DRAWN else "# Calibration"
    text = [title, "", f"`{command}`; tables of {sentence(provenance(device))}."]
    rows = read_lines(Calibration, out / "results.csv")
    text += ["", MEANING]
    for noise in sorted({r.noise for r in rows}):
        level = [r for r in rows if r.noise == noise]
        text += ["", f"## Noise {noise}", "", calibration_table(level)]
        save_figure(reliability_figure(level, _ordered(level, "method"), INTERVALS), out / f"reliability-{noise}.png")
        text += ["", f"![Reliability diagram, noise {noise}](reliability-{noise}.png)"]
        for task in _ordered(level, "task"):
            if (out / (name := f"{task}-{noise}.png")).exists():
                text += ["", f"{task}: truth, mean, standard deviation, absolute error", "", f"![{task}]({name})"]
    (out / "calibration.md").write_text("\n".join(text) + "\n")


def write_closed_form(out: Path, command: str, device: str = "cpu") -> None:
    """``calibration.md`` of the closed form."""
    rows = read_lines(ClosedForm, out / "results.csv")
    text = ["# Calibration: closed form", "", f"`{command}`; tables of {sentence(provenance(device))}.", "", EXACT]
    for noise in sorted({r.noise for r in rows}):
        text += ["", f"## Noise {noise}", "", closed_form_table([r for r in rows if r.noise == noise])]
    (out / "calibration.md").write_text("\n".join(text) + "\n")


def calibration_table(rows: Sequence[Calibration]) -> str:
    """A line for each task and method: its statistics over the images, which share a squared error and a variance."""
    titles = " | ".join(title for title, _ in QUALITY.values())
    table = [f"| task | method | images | {titles} | ratio | 50 % | 80 % | 95 % | calls | seconds |"]
    table.append("|---|---|" + "---|" * (len(QUALITY) + 7))
    for task in _ordered(rows, "task"):
        for method in _ordered(rows, "method"):
            if not (of := [r for r in rows if (r.task, r.method) == (task, method)]):
                continue
            quality = [_mean(of, name, digits) for name, (_, digits) in QUALITY.items()]
            held = [f"{100 * known_mean([getattr(r, name) for r in of]):.0f}" for name in HELD]
            values = [str(len(of)), *quality, f"{ratio(of):.2f}", *held, _mean(of, "calls", 0), _mean(of, "seconds", 2)]
            table.append(f"| {task} | {method} | {' | '.join(values)} |")
    return "\n".join(table)


def closed_form_table(rows: Sequence[ClosedForm]) -> str:
    """A line for each method: the minimum and the maximum of its statistics over the tasks."""
    table = ["| method | operators | variance | error | 50 % | 80 % | 95 % | calls |", "|---|" + "---|" * 7]
    for method in _ordered(rows, "method"):
        of = [r for r in rows if r.method == method]
        spans = [
            _span([getattr(r, name) for r in of], 3 if name == "error" else 2) for name in ("variance", "error", *HELD)
        ]
        table.append(f"| {method} | {len(of)} | {' | '.join(spans)} | {mean(r.calls for r in of):.0f} |")
    return "\n".join(table)


def ratio(rows: Sequence[Calibration]) -> float:
    """The squared error of the means over what the samples predict for it."""
    return sum(r.error for r in rows) / max(sum(r.predicted for r in rows), 1e-12)


def _mean(rows: Sequence[Calibration], name: str, digits: int) -> str:
    """The mean of a column as text; a dash where an image lacks it."""
    value = mean(getattr(r, name) for r in rows)
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _span(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _ordered(rows: Sequence[Any], name: str) -> list[str]:
    """The different values of a column: methods in their order, others as they come."""
    values = list(dict.fromkeys(getattr(r, name) for r in rows))
    return [m for m in SAMPLINGS if m in values] if name == "method" else values
