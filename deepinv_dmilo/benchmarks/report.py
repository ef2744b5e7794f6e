r"""
The side-by-side report: every method on the same prior, held-out digits and measurements, in one command.

    python -m deepinv_dmilo.benchmarks.report --out docs/report

tunes the rivals' weights on digits that are not reported, runs what is still missing, appends one line per image to
``results.csv`` and writes ``report.md`` and a picture of PSNR against passes for each noise level. Stop it at any
moment and start it again: finished lines are kept. ``--quick`` is a size for continuous integration.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from torch import Tensor
from tqdm import tqdm

from deepinv_dmilo.benchmarks.figures import DPI, convergence_figure, cost_table, gain_table, quality_table
from deepinv_dmilo.benchmarks.methods import METHODS, TUNING, Method
from deepinv_dmilo.benchmarks.records import Row, Trial, append_lines, read_lines
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.tools.scoring import score
from deepinv_dmilo.tools.tasks import make_physics

NOISES = (0.005, 0.05)
REPORT_TASKS = {
    "super-resolution": ("super-resolution", {}),
    "inpainting-70": ("inpainting", {"missing": 0.7}),
    "inpainting-90": ("inpainting", {"missing": 0.9}),
    "box-inpainting": ("box-inpainting", {}),
    "deblurring": ("deblurring", {}),
    "motion-deblurring": ("motion-deblurring", {}),
    "nonlinear-deblurring": ("nonlinear-deblurring", {}),
    "compressed-sensing": ("compressed-sensing", {"ratio": 100 / 1024}),
    "denoising": ("denoising", {}),
    "phase-retrieval": ("phase-retrieval", {}),
}
TUNING_DIGITS = slice(240, 244)  # held-out digits that no report uses
CHUNK = 8  # images in a batch
OURS = "DMILO, 100 passes"  # the default, which the others are compared with
CAVEAT = """A tuned rival has a weight for each task and noise level, found on four other digits; DMILO and DMILO-PGD at
a number of passes have one setting for all. "2 x 100 passes" is the mean of two samples. Passes + calls are forward and
backward passes of the network, and forward passes alone, that an image takes part in."""
COST = """What an image costs, on average over the tasks that the method was run on (their number in the first column).
Compare seconds and memory only where nothing else ran on the machine."""
GAIN = "The gain of the default over each method, image by image: mean PSNR difference in dB, ± its standard error."
MOST_TRIALS = 12  # of a rival's weight: some methods hardly depend on theirs


def reconstruct(
    prior: DiffusionPrior, method: Method, task: str, noise: float, weight: float, images: slice
) -> tuple[Tensor, list[dict[str, float]]]:
    """Reconstructions of some held-out digits, and what each is worth and costs."""
    name, options = REPORT_TASKS[task]
    digits = held_out_images("digits").to(prior.device)
    physics = make_physics(name, (1, 32, 32), noise=noise, device=prior.device, **options)  # type: ignore[arg-type]
    # All measurements are drawn at once, so that an image's do not depend on the chunk it is in.
    y = physics(digits)[images]
    return score(method.make(prior, task, noise, weight), digits[images], y, physics, seed=images.start)


def applies(method: Method, task: str) -> bool:
    """Whether a method takes the physics of a task."""
    name, options = REPORT_TASKS[task]
    return isinstance(make_physics(name, (1, 32, 32), **options), method.physics)  # type: ignore[arg-type]


def tune(prior: DiffusionPrior, method: str, task: str, noise: float, file: Path, images: slice) -> float:
    """
    The rival's best weight; the grid grows until the best is inside it, or it has a dozen.

    What the package has on record is not tried again; what is new is appended to ``file``.
    """
    rival = METHODS[method]
    known = read_lines(Trial, TUNING) + read_lines(Trial, file)
    trials = {t.weight: t.psnr for t in known if (t.task, t.noise, t.method) == (task, noise, method)}
    while missing := _untried(rival, trials):
        for weight in missing:
            _, scores = reconstruct(prior, rival, task, noise, weight, images)
            trials[weight] = mean(s["psnr"] for s in scores)
            append_lines([Trial(task, noise, method, weight, trials[weight])], file)
    return max(trials, key=lambda w: trials[w])


def _untried(rival: Method, trials: dict[float, float]) -> list[float]:
    """What of the grid is not tried yet; when all is, the weight beyond the edge that the best one lies at."""
    missing = sorted(set(rival.grid) - trials.keys())
    if missing or not rival.scale or len(trials) >= MOST_TRIALS:
        return missing
    best = max(trials, key=lambda w: trials[w])
    if best == max(trials):
        return [best * rival.scale]
    return [best / rival.scale] if best == min(trials) else []


def cells(
    names: list[str], tasks: list[str], noises: list[float], count: int
) -> Iterator[tuple[str, str, float, slice]]:
    """What is to be run, (method, task, noise, images): all methods on the first images before any on the next."""
    for start in range(0, count, CHUNK):
        for method in names:
            for noise in noises:
                for task in tasks:
                    chunk = slice(start, min(start + CHUNK, count))
                    if METHODS[method].first_only and (start or noise != NOISES[0]):
                        continue
                    yield method, task, noise, chunk


def run(prior: DiffusionPrior, todo: list[tuple[str, str, float, slice]], out: Path, tuning: slice) -> None:
    """Run what is missing and append it to ``results.csv``."""
    results, trials = out / "results.csv", out / "tuning.csv"
    done = {(r.method, r.task, r.noise, r.image) for r in read_lines(Row, results)}
    bar = tqdm(todo, desc="report", unit="cell")
    for name, task, noise, images in bar:
        bar.set_postfix_str(f"{name}, {task}, {noise}, images {images.start}-{images.stop - 1}")
        method = METHODS[name]
        for label, weight in _settings(name, method):
            if not applies(method, task) or {(label, task, noise, i) for i in _numbers(images)} <= done:
                continue
            if weight is None:
                weight = tune(prior, name, task, noise, trials, tuning)
            _, scores = reconstruct(prior, method, task, noise, weight, images)
            rows = [Row(task, noise, label, weight, i, **s) for i, s in zip(_numbers(images), scores, strict=True)]
            append_lines([row for row in rows if (label, task, noise, row.image) not in done], results)


def _settings(name: str, method: Method) -> list[tuple[str, float | None]]:
    """The lines that a method has in the report, and their weights; None: the one that tuning finds."""
    if not method.grid:
        return [(name, method.recommended or 0.0)]
    tuned: list[tuple[str, float | None]] = [(f"{name}, tuned", None)]
    return tuned if method.recommended is None else [(f"{name}, recommended", method.recommended), *tuned]


def _numbers(images: slice) -> range:
    return range(images.start, images.stop)


def write(rows: list[Row], out: Path, device: str = "cpu") -> None:
    """The tables and pictures of what has been run."""
    text = ["# Report", "", __doc__.split("\n\n")[0].strip(), ""]
    text.append(
        f"Run by `python -m deepinv_dmilo.benchmarks.report --out {out}`, in as many sittings as it took; tables of"
    )
    text += [f"{sentence(provenance(device))}.", "", CAVEAT]
    for noise in sorted({r.noise for r in rows}):
        level = [r for r in rows if r.noise == noise]
        done: dict[str, dict[str, int]] = {}  # images by method and task
        for r in level:
            counts = done.setdefault(r.method, {})
            counts[r.task] = counts.get(r.task, 0) + 1
        finished = {method: min(counts.values()) for method, counts in done.items()}
        for count in sorted(set(finished.values()), reverse=True):
            # every method on the images that this group of methods did: the few of the longest runs, then all
            methods = [m for m, images in finished.items() if images >= count]
            shared = [r for r in level if r.image < count and r.method in methods]
            tasks = [t for t in REPORT_TASKS if any(r.task == t for r in shared)]
            text += ["", f"## Noise {noise}, {count} digits", "", quality_table(shared, tasks, methods)]
            if OURS in methods:
                text += ["", GAIN, "", gain_table(shared, tasks, methods, OURS)]
            text += ["", quality_table(shared, tasks, methods, "ssim"), "", COST, "", cost_table(shared, methods)]
            name = f"noise-{noise}-{count}.png"
            convergence_figure(shared, tasks, methods).savefig(out / name, dpi=DPI)
            text += ["", f"![PSNR against passes]({name})"]
    (out / "report.md").write_text("\n".join(text) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Run the report."""
    parser = argparse.ArgumentParser(
        prog="python -m deepinv_dmilo.benchmarks.report", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the results (default: report)")
    parser.add_argument("--images", type=int, default=32, help="held-out digits (default: 32)")
    parser.add_argument("--methods", nargs="+", help="only these methods, or those whose names start so")
    parser.add_argument("--tasks", nargs="+", choices=REPORT_TASKS, default=list(REPORT_TASKS))
    parser.add_argument("--noises", nargs="+", type=float, default=list(NOISES))
    parser.add_argument("--quick", action="store_true", help="one digit, two tasks, one noise level, five methods")
    parser.add_argument("--only-write", action="store_true", help="run nothing, write tables and pictures again")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = list(METHODS) if args.methods is None else args.methods
    names = [m for m in METHODS if any(m == w or (w not in METHODS and m.startswith(w)) for w in wanted)]
    if not names:
        parser.error(f"no method starts with {' or '.join(wanted)}; type one of: {'; '.join(METHODS)}")
    tuning = TUNING_DIGITS
    if args.quick:
        names = ["pseudo-inverse", "DMILO, 25 passes", "DMILO-PGD, 25 passes", "DiffPIR", "DDRM"]
        args.images, args.tasks, args.noises, tuning = (
            1,
            ["super-resolution", "inpainting-70"],
            [0.005],
            slice(240, 241),
        )
    if not args.only_write:
        prior = DiffusionPrior.from_pretrained("digits", device=args.device)
        run(prior, list(cells(names, args.tasks, args.noises, args.images)), args.out, tuning)
    write(read_lines(Row, args.out / "results.csv"), args.out, args.device)


if __name__ == "__main__":
    main()
