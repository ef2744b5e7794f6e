"""The benchmark command: benchopt over a suite of the package, then its table and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import patch_environment

from deepinv_dmilo import registry
from deepinv_dmilo.benchmarks.figures import (
    bar_figure,
    convergence_figure,
    cost_table,
    perceptual_tables,
    quality_table,
    save_figure,
)
from deepinv_dmilo.benchmarks.records import Row
from deepinv_dmilo.benchmarks.studies import KNOWN_TASKS, NOISES
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.metrics import PERCEPTUAL
from deepinv_dmilo.tools.options import SAMPLER
from deepinv_dmilo.tools.provenance import provenance, sentence

if TYPE_CHECKING:
    import pandas

#: folders of benchopt benchmarks inside the package, by name
SUITES = {"digits": Path(__file__).parent / "digits"}
#: benchopt solver for every reconstructor of the registry; also what deepinv's own benchmarks take
SOLVER_FILE = SUITES["digits"] / "solvers" / "registry.py"
QUICK = {"tasks": ("super-resolution", "inpainting-70"), "noises": (0.005,), "limit": 1, "budgets": (25,)}


def run_suite(
    suite: str,
    out: Path,
    *,
    tasks: Sequence[str] = tuple(KNOWN_TASKS),
    noises: Sequence[float] = NOISES,
    limit: int = 8,
    budgets: Sequence[int] = (25, 50, 100),
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
    :param int limit: how many of the prior's held-out images, from the first on.
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

    if unknown := sorted(set(tasks) - KNOWN_TASKS.keys()):
        raise InputError(f"no task {unknown[0]!r}; type some of {', '.join(KNOWN_TASKS)}")
    most = len(held_out_images(suite))
    if not 1 <= limit <= most:
        raise InputError(f"--limit {limit}: type a number from 1 to {most}")
    facts = provenance("cuda" if torch.cuda.is_available() else "cpu")
    # Results of other versions are not taken from the cache.
    versions = "-".join(value for name, value in facts.items() if name not in ("date", "machine"))
    # The sampler takes 400 passes for its eight samples: of the report, or typed among ``solvers``.
    methods = ",".join(name for name in registry.available() if name != SAMPLER)
    passes = ",".join(map(str, budgets))
    file = (out / "new.parquet").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with patch_environment(BENCHOPT_CACHE=(out / "cache" / versions).resolve()):
        run_benchmark(
            SUITES[suite],
            solver_names=[f"registry[method=[{methods}],prior={suite},max_passes=[{passes}]]", "deepinv", *solvers],
            dataset_names=[f"{suite}[task=[{','.join(tasks)}],noise=[{','.join(map(str, noises))}],images={limit}]"],
            plot_result=False,
            timeout=math.inf,
            parallel_config=parallel_config,
            output_file=str(file),
        )
    if not file.exists():
        raise RuntimeError("the benchmark has no result; benchopt's messages above say why")
    file.replace(out / "results.parquet")
    table = pandas.read_parquet(out / "results.parquet")
    table.to_csv(out / "results.csv", index=False)
    rows = _rows(table)
    _write_results(rows, f"{sentence(facts)}; benchopt seed {int(table['base_seed'].iloc[0])}.", out)
    return rows


def _rows(table: pandas.DataFrame) -> list[Row]:
    """The parquet's lines as rows of the report's tables."""
    scores = ("psnr", "ssim", "passes", "calls", "seconds", "memory_mb", "residual", *PERCEPTUAL)
    return [
        Row(
            task=line["p_dataset_task"],
            noise=line["p_dataset_noise"],
            method=_label(line),
            weight=math.nan,
            image=int(line["objective_image"]),
            **{name: line.get(f"objective_{name}", math.nan) for name in scores},
        )
        for line in table.to_dict("records")
    ]


def _label(line: dict[str, Any]) -> str:
    """A short name of the solvers that the command runs itself, benchopt's with all parameters of any other."""
    name, method = str(line["solver_name"]), str(line.get("p_solver_method"))
    if name == f"registry[max_passes={line.get('p_solver_max_passes', 0):.0f},method={method},prior=digits]":
        return f"{method}, {line['p_solver_max_passes']:.0f} passes"
    return method if name == f"deepinv[method={method},prior=digits,weight=tuned]" else name


def _write_results(rows: list[Row], origin: str, out: Path) -> None:
    """The table of each noise level, with where it comes from, and the pictures."""
    text = ["# Benchmark", "", origin, ""]
    text.append(
        f"Held-out digits 0 to {max(r.image for r in rows)} of the bundled prior. The weights of deepinv's samplers "
        "were tuned for each task on digits 240 to 243, the defaults of DMILO and DMILO-PGD for all on 248 to 255."
    )
    for noise in sorted({r.noise for r in rows}):
        level = [r for r in rows if r.noise == noise]
        methods, tasks = list(dict.fromkeys(r.method for r in level)), list(dict.fromkeys(r.task for r in level))
        text += ["", f"## Noise {noise}"]
        for metric in ("psnr", "ssim"):
            text += ["", quality_table(level, tasks, methods, metric)]
        text += [*perceptual_tables(level, tasks, methods), "", cost_table(level, methods)]
        for draw in (bar_figure, convergence_figure):
            name = f"{'bars' if draw is bar_figure else 'convergence'}-{noise}.png"
            save_figure(draw(level, tasks, methods), out / name)
            text += ["", f"![{name}]({name})"]
    (out / "results.md").write_text("\n".join(text) + "\n")
