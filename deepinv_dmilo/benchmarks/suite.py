"""The benchmark command: benchopt over a suite of the package, then its table and pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deepinv_dmilo import registry
from deepinv_dmilo.benchmarks.figures import bars, cost_table, picture, psnr_table
from deepinv_dmilo.benchmarks.methods import RIVALS
from deepinv_dmilo.benchmarks.records import Row
from deepinv_dmilo.benchmarks.report import NOISES, TASKS
from deepinv_dmilo.provenance import provenance, sentence

if TYPE_CHECKING:
    import pandas

#: folders of benchopt benchmarks inside the package, by name
SUITES = {"digits": Path(__file__).parent / "digits"}
#: benchopt solver for every reconstructor of the registry; also what deepinv's own benchmarks take
SOLVER = SUITES["digits"] / "solvers" / "registry.py"
BUDGETS = (25, 50, 100)
QUICK = {"tasks": ("super-resolution", "inpainting-70"), "noises": (0.005,), "images": 1, "budgets": (25,)}


def run_suite(
    suite: str,
    out: Path,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    noises: Sequence[float] = NOISES,
    images: int = 8,
    budgets: Sequence[int] = BUDGETS,
    solvers: Sequence[str] = (),
    parallel_config: Path | None = None,
) -> list[Row]:
    """
    Run a suite, or what of it is not yet in the cache below ``out``, and write results, table and pictures there.

    A solver that fails is missing from the results; benchopt prints why.

    :param str suite: one of ``SUITES``.
    :param pathlib.Path out: folder for ``results.parquet``, ``results.csv``, ``results.md``, two pictures, the cache.
    :param tasks: tasks of the suite.
    :param noises: standard deviations of the noise, images in [0, 1].
    :param int images: how many of the prior's held-out images, from the first on.
    :param budgets: ``max_passes`` of the reconstructors of the registry.
    :param solvers: more benchopt solvers: names or files, with parameters in brackets.
    :param pathlib.Path parallel_config: benchopt's YAML file for running on many workers or machines.
    :return: a row per image.
    """
    try:
        import pandas
        from benchopt import run_benchmark
    except ImportError as error:
        raise ImportError("benchmarks need benchopt; type: pip install 'deepinv-dmilo[bench]'") from error

    out.mkdir(parents=True, exist_ok=True)
    os.environ["BENCHOPT_CACHE"] = str((out / "cache").resolve())
    methods, passes = ",".join(registry.available()), ",".join(map(str, budgets))
    file = (out / "results.parquet").resolve()
    file.unlink(missing_ok=True)
    run_benchmark(
        SUITES[suite],
        solver_names=[f"registry[method=[{methods}],prior={suite},max_passes=[{passes}]]", "deepinv", *solvers],
        dataset_names=[
            f"{suite}[task=[{','.join(tasks)}],noise=[{','.join(map(str, noises))}],images={images}]",
        ],
        plot_result=False,
        timeout=math.inf,
        parallel_config=parallel_config,
        output_file=str(file),
    )
    if not file.exists():
        raise RuntimeError("the benchmark has no result; benchopt's messages above say why")
    table = pandas.read_parquet(file)
    table.to_csv(out / "results.csv", index=False)
    rows = _rows(table)
    _write(rows, images, int(table["base_seed"].iloc[0]), out)
    return rows


def _rows(table: pandas.DataFrame) -> list[Row]:
    """The parquet's lines as rows of the report's tables."""
    rows = []
    for line in table.to_dict("records"):
        method = line["p_solver_method"] if str(line.get("p_solver_method", "nan")) != "nan" else line["solver_name"]
        budget = line.get("p_solver_max_passes", math.nan)
        weight = line.get("p_solver_weight", math.nan)
        rows.append(
            Row(
                task=line["p_dataset_task"],
                noise=line["p_dataset_noise"],
                method=method if math.isnan(budget) else f"{method}, {budget:.0f} passes",
                weight=weight if isinstance(weight, float) else math.nan,
                image=int(line["objective_image"]),
                **{
                    name: line.get(f"objective_{name}", math.nan)
                    for name in ("psnr", "ssim", "passes", "calls", "seconds", "memory_mb", "residual", "lpips")
                },
            )
        )
    return rows


def _write(rows: list[Row], images: int, seed: int, out: Path) -> None:
    """The table of each noise level, with where it comes from, and the pictures."""
    text = ["# Benchmark", "", f"{sentence(provenance())}; benchopt seed {seed}.", ""]
    text.append(
        f"Held-out digits 0 to {images - 1} of the bundled prior; the weights of {', '.join(RIVALS)} were tuned for "
        "each task on digits 240 to 243, the defaults of ours for all tasks on 248 to 255."
    )
    for noise in sorted({r.noise for r in rows}):
        level = [r for r in rows if r.noise == noise]
        methods, tasks = list(dict.fromkeys(r.method for r in level)), list(dict.fromkeys(r.task for r in level))
        text += ["", f"## Noise {noise}", "", psnr_table(level, tasks, methods), "", cost_table(level, methods)]
        for draw in (bars, picture):
            name = f"{'bars' if draw is bars else 'convergence'}-{noise}.png"
            draw(level, tasks, methods, out / name)
            text += ["", f"![{name}]({name})"]
    (out / "results.md").write_text("\n".join(text) + "\n")
