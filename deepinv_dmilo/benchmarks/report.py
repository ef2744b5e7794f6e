"""
The report: every method on the same prior, pictures and measurements, in one command.

It tunes the rivals on other pictures, and goes on where it was when it is cut off.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from deepinv.loss.metric import Metric
from torch import Tensor
from tqdm import tqdm

from deepinv_dmilo.benchmarks.figures import (
    convergence_figure,
    cost_table,
    gain_table,
    perceptual_tables,
    quality_table,
    save_figure,
)
from deepinv_dmilo.benchmarks.methods import METHODS, Method, method_of, own_network
from deepinv_dmilo.benchmarks.own_networks import OWN_NETWORKS, unreachable
from deepinv_dmilo.benchmarks.records import Row, Trial, append_lines, read_lines
from deepinv_dmilo.benchmarks.studies import BLIND_TASKS, REPORT_TASKS, Case, Preset, Study, measurements
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.tools.scoring import SHIFTS, score
from deepinv_dmilo.tools.tasks import GUESS_STD

OURS = "DMILO, 100 passes"  # the default, which the others are compared with
TUNED_ON = 10_000  # numbers of the tuning pictures, from which their noise follows, start here
FLAT = 0.02  # dB that make no difference
MOST_TRIALS = 12  # of a rival's weight: some methods hardly depend on theirs
QUICK_REPORT = {
    "methods": ("pseudo-inverse", "DMILO, 25 passes", "DMILO-PGD, 25 passes", "DiffPIR"),  # none that is tuned
    "tasks": ("super-resolution", "inpainting-70"),
    "noises": (0.005,),
    "limit": 1,
}
INTRO = """All methods reconstruct the same pictures from the same measurements. All have the same prior, except those
with a network of their own. The other methods were tuned on other pictures."""
CAVEAT = """A tuned method has one weight for each task and noise level, found on other pictures. DMILO and DMILO-PGD
with a number of passes have the same settings for all tasks. "2 x 100 passes" is the mean of two samples. A pass is a
forward and a backward pass of the network for an image, a call is a forward pass alone; "calls in all" counts a pass as
two calls. Calls of different networks do not compare: compare their seconds. "-": not run on so many pictures, or the
method does not support the operator."""
BLIND = f"""The blind tasks have the measurements of `deblurring` and `motion-deblurring`, but the methods get a
Gaussian kernel of a standard deviation of {GUESS_STD} pixels in place of the true one. A blind problem does not
determine the shift between image and kernel, so the images are registered, by up to {SHIFTS.max():.0f} pixels, before
the PSNR is computed. The blurs are periodic, which makes the kernel easier to find; docs/data_terms.md has open
boundaries, as a camera has."""
COST = """Cost per image, averaged over the tasks that the method was run on (their number is in the first column).
Seconds and memory compare only where nothing else ran on the machine."""
GAIN = "The gain of the default over each method: mean and standard error of the PSNR differences, in dB."
PAPER = "As the paper reports them, on its own pictures and network (Zheng et al., 2025); not measured here."


def reconstruct(
    study: Study,
    method: Method,
    task: str,
    noise: float,
    weight: float,
    x: Tensor,
    first: int,
    metrics: Mapping[str, Metric] | None = None,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Reconstructions of pictures x, numbered from ``first`` on, and what each is worth and costs."""
    physics = study.physics(task, noise)
    y = measurements(x, range(first, first + len(x)), physics)
    shape: tuple[int, int, int] = tuple(x.shape[1:])  # type: ignore[assignment]
    guess = study.guess(task)
    model = method.make(Case(study.prior, shape, task, noise, weight, guess, study.weights))
    guessed = None if guess is None else study.physics(task, noise, kernel=guess)
    x_hat, scores = score(model, x, y, physics, guessed=guessed, seed=first, metrics=metrics)
    return x_hat, [{**values, "calls": values["calls"] + method.products * values["passes"]} for values in scores]


def applies(study: Study, method: Method, task: str) -> bool:
    """Whether a method takes the physics of a task."""
    return task in method.tasks and isinstance(study.physics(task, 0.0), method.physics)


def tune(study: Study, method: str, task: str, noise: float, file: Path) -> float:
    """
    The rival's best weight; the grid grows until the best is inside it, or it has a dozen.

    What the package has on record is not tried again; what is new is appended to ``file``.
    """
    rival, record = METHODS[method], study.preset.record
    known = ([] if record is None else read_lines(Trial, record)) + read_lines(Trial, file)
    trials = {t.weight: _worth(t.psnr) for t in known if (t.task, t.noise, t.method) == (task, noise, method)}
    while missing := _untried(rival, trials):
        for weight in missing:
            scores = []
            for start in range(0, len(study.tuning), study.preset.batch_size):
                x = study.tuning[start : start + study.preset.batch_size]
                scores += reconstruct(study, rival, task, noise, weight, x, TUNED_ON + start)[1]
            trials[weight] = _worth(mean(s["psnr"] for s in scores))
            append_lines([Trial(task, noise, method, weight, trials[weight])], file)
    return max(trials, key=lambda w: trials[w])


def _worth(psnr: float) -> float:
    """The mean PSNR of a weight; with one that made a method diverge on some picture, the least."""
    return -math.inf if math.isnan(psnr) else psnr


def _untried(rival: Method, trials: dict[float, float]) -> list[float]:
    """What of the grid is not tried yet; when all is, the weight beyond the edge that the best one lies at."""
    missing = sorted(set(rival.grid) - trials.keys())
    if missing or not rival.scale or len(trials) >= MOST_TRIALS:
        return missing
    weights = sorted(trials)
    best = max(weights, key=lambda w: trials[w])
    # At an edge where the last step changed nothing, no other will.
    if best == weights[-1] and trials[best] > trials[weights[-2]] + FLAT:
        return [best * rival.scale]
    return [best / rival.scale] if best == weights[0] and trials[best] > trials[weights[1]] + FLAT else []


def cells(study: Study, names: Sequence[str]) -> Iterator[tuple[str, str, float, slice]]:
    """What is to be run, (method, task, noise, pictures): all methods on the first pictures before any on the next."""
    preset, count = study.preset, len(study.pictures)
    for start in range(0, count, preset.batch_size):
        for name in names:
            for noise in preset.noises:
                for task in preset.tasks:
                    if name in METHODS and METHODS[name].first_only and (start or noise != preset.noises[0]):
                        continue
                    yield name, task, noise, slice(start, min(start + preset.batch_size, count))


def run(study: Study, names: Sequence[str], out: Path, metrics: Mapping[str, Metric] | None = None) -> None:
    """Run what is missing and append it to ``results.csv``."""
    results, trials = out / "results.csv", out / "tuning.csv"
    done = {(r.method, r.task, r.noise, r.image) for r in read_lines(Row, results)}
    bar = tqdm(list(cells(study, names)), desc="report", unit="cell")
    for name, task, noise, chosen in bar:
        bar.set_postfix_str(f"{name}, {task}, {noise}, images {chosen.start}-{chosen.stop - 1}")
        method, numbers = METHODS[name], range(chosen.start, chosen.stop)
        for label, weight in _settings(name, method):
            if not applies(study, method, task) or {(label, task, noise, i) for i in numbers} <= done:
                continue
            if weight is None:
                weight = tune(study, name, task, noise, trials)
            x = study.pictures[chosen]
            _, scores = reconstruct(study, method, task, noise, weight, x, chosen.start, metrics)
            rows = [Row(task, noise, label, weight, i, **s) for i, s in zip(numbers, scores, strict=True)]
            append_lines([row for row in rows if (label, task, noise, row.image) not in done], results)


def absent_methods(study: Study, names: Sequence[str]) -> dict[str, str]:
    """Of these methods those whose network has no weights that can be had, and why."""
    own = {name: METHODS[name].own_network for name in names if METHODS[name].own_network}
    reasons = unreachable(own.values(), study.pictures.shape[1], study.weights)
    return {name: reasons[network] for name, network in own.items() if network in reasons}


def note_absent(absent: dict[str, str], out: Path) -> dict[str, str]:
    """Add these to the methods that were absent in earlier runs of a folder, and tell all."""
    note = out / "absent.json"
    noted = (json.loads(note.read_text()) if note.exists() else {}) | absent
    if noted:
        note.write_text(json.dumps(noted, indent=1) + "\n")
    return noted


def _settings(name: str, method: Method) -> list[tuple[str, float | None]]:
    """The lines that a method has in the report, and their weights; None: the one that tuning finds."""
    if not method.grid:
        return [(name, method.recommended or 0.0)]
    tuned: list[tuple[str, float | None]] = [(f"{name}, tuned", None)]
    return tuned if method.recommended is None else [(f"{name}, recommended", method.recommended), *tuned]


def write(
    preset: Preset,
    rows: list[Row],
    out: Path,
    command: str,
    device: str = "cpu",
    *,
    absent: Mapping[str, str] | None = None,
) -> None:
    """
    The tables and pictures of what has been run, after the remarks of ``remarks.md`` in that folder.

    :param absent: methods that could not be run, and why: lines without numbers, unless a row is from before.
    """
    size = "" if preset.size is None else f", {preset.size} x {preset.size}"
    text = [f"# {preset.title}", "", INTRO, ""]
    text.append(f"Prior `{preset.prior}`, pictures `{preset.images}`{size}. Run by `{command}`.")
    text += [f"Tables written {sentence(provenance(device))}.", "", CAVEAT]
    if any(r.task in BLIND_TASKS for r in rows):
        text += ["", BLIND]
    lacking = {m: why for m, why in (absent or {}).items() if m not in {method_of(r.method) for r in rows}}
    networks = {own_network(m) for m in [*(r.method for r in rows), *lacking]}
    if about := [f"{name} has {network.about}." for name, network in OWN_NETWORKS.items() if name in networks]:
        text += ["", *about, *dict.fromkeys(lacking.values())]
    if (remarks := out / "remarks.md").exists():
        text += ["", remarks.read_text().strip()]
    for noise in sorted({r.noise for r in rows}):
        for blind in (False, True):
            level = [r for r in rows if r.noise == noise and (r.task in BLIND_TASKS) == blind]
            title = f"Blind, noise {noise}" if blind else f"Noise {noise}"
            text += _sections(level, title, out, [m for m in lacking if (METHODS[m].tasks[0] in BLIND_TASKS) == blind])
    if preset.paper:
        text += ["", "## The paper", "", PAPER, "", "| method | task | PSNR (dB) | SSIM |", "|---|---|---|---|"]
        text += [
            f"| {method}, as reported | {task} | {psnr:.2f} | {ssim:.3f} |" for method, task, psnr, ssim in preset.paper
        ]
    (out / "report.md").write_text("\n".join(text) + "\n")


def _sections(rows: list[Row], title: str, out: Path, absent: list[str]) -> list[str]:
    """Tables and pictures of some tasks: of what was run on most pictures, then with what was run on fewer."""
    text: list[str] = []
    done = Counter((r.method, r.task) for r in rows)  # pictures
    for count in sorted(set(done.values()), reverse=True):
        shared = [r for r in rows if r.image < count <= done[r.method, r.task]]
        methods = list(dict.fromkeys(r.method for r in shared))
        tasks = [t for t in REPORT_TASKS if any(r.task == t for r in shared)]
        own, lines = {m for m in [*methods, *absent] if own_network(m)}, [*methods, *absent]
        psnr, ssim = (quality_table(shared, tasks, lines, metric, own) for metric in ("psnr", "ssim"))
        text += ["", f"## {title}, {count} picture{'s' * (count > 1)}", "", psnr]
        if OURS in methods:
            text += ["", GAIN, "", gain_table(shared, tasks, methods, OURS)]
        text += ["", ssim, *perceptual_tables(shared, tasks, methods, own)]
        text += ["", COST, "", cost_table(shared, methods, own)]
        for against in ("calls", "seconds"):
            stem = title.lower().replace(", ", "-").replace(" ", "-")
            name = f"{stem}-{count}{'' if against == 'calls' else '-seconds'}.png"
            save_figure(convergence_figure(shared, tasks, methods, against), out / name)
            text += ["", f"![PSNR against {against}]({name})"]
    return text


def claim_folder(preset: Preset, out: Path, **more: Any) -> None:
    """Refuse a folder with results of another prior, other pictures, size, precision or more; else note these there."""
    ours = {name: getattr(preset, name) for name in ("prior", "images", "size", "bfloat16")} | more
    note = out / "study.json"
    theirs = json.loads(note.read_text()) if note.exists() else ours
    if theirs != ours:
        raise InputError(f"{out} holds results of {theirs}, not of {ours}; type another --out")
    note.write_text(json.dumps(ours) + "\n")


def chosen_methods(wanted: Sequence[str] | None, known: Collection[str] = METHODS) -> list[str]:
    """The known methods of these names, or whose names start so; None: all."""
    names = [m for m in known if wanted is None or any(m == w or (w not in known and m.startswith(w)) for w in wanted)]
    if not names:
        raise InputError(f"no method starts with {' or '.join(wanted or ())}; type one of: {'; '.join(known)}")
    return names
