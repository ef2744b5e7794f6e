"""deepinv's benchmarks with our methods and its own, in CSV files with the columns that its leaderboard reads."""

from __future__ import annotations

import argparse
import csv
from io import StringIO
from pathlib import Path
from typing import Any

from deepinv_dmilo.benchmarks.own_networks import OWN_NETWORKS, unreachable, weight_files
from deepinv_dmilo.benchmarks.problems import PROBLEMS, SolverMaker, metrics_of, pictures, solve, solvers
from deepinv_dmilo.benchmarks.report import chosen_methods, claim_folder
from deepinv_dmilo.benchmarks.studies import Case, Preset
from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.folder import write_whole
from deepinv_dmilo.tools.options import open_prior
from deepinv_dmilo.tools.provenance import provenance, sentence

PICTURE_SIDE = 256  # of the pictures there
WEIGHT = 7.0  # of DiffPIR, deepinv's default
QUICK_LEADERBOARD = {
    "tasks": ["div2k_inpainting_easy", "div2k_super_resolution_2x"],
    "methods": ["DMILO", "DMILO-PGD", "DiffPIR"],  # none with a network of its own
    "size": 64,
    "limit": 1,
}


def run_leaderboard(args: argparse.Namespace, device: str) -> None:
    """Run what is missing: a line of a problem's CSV file for each method."""
    if args.quick:
        vars(args).update({name: value for name, value in QUICK_LEADERBOARD.items() if getattr(args, name) is None})
    limit = args.limit
    with door():
        if args.noises:
            raise InputError("--noises: each problem has its noise; leave it out")
        preset = Preset(
            "", args.prior or "photos", args.images or "", args.size or PICTURE_SIDE, bfloat16=args.bfloat16
        )
        names, files = _problems(args.tasks), weight_files(args.weights or [])
        images = {name: pictures(PROBLEMS[name], args.images, args.size or PICTURE_SIDE, limit) for name in names}
        prior = open_prior(preset.prior, device, bfloat16=preset.bfloat16)
        if prior.image_shape is not None and prior.image_shape[0] != 3:
            raise InputError(f"--prior {preset.prior} is not of colour images; type another, such as --prior photos")
        args.out.mkdir(parents=True, exist_ok=True)
        claim_folder(preset, args.out, limit=limit)
    case = Case(prior, (3, args.size or PICTURE_SIDE, args.size or PICTURE_SIDE), "", 0.0, WEIGHT, weights=files)
    text = ["# deepinv's benchmarks", "", f"Prior `{preset.prior}`; {sentence(provenance(device))}."]
    absent: dict[str, str] = {}
    networks: dict[str, None] = {}
    for name in names:
        makers = _chosen(solvers(PROBLEMS[name], preset.prior), args.methods)
        networks |= {own: None for _, own in makers.values() if own}
        new = unreachable([own for _, own in makers.values() if own and own not in absent], 3, files)
        absent |= new
        print(*new.values(), sep="\n", end="\n" * bool(new))
        having = {method: make for method, (make, own) in makers.items() if own not in absent}
        rows = _run(name, having, case, images[name], _facts(name, args, limit), args.out / f"{name}.csv")
        count = len(images[name])
        text += ["", f"## {name}, {count} picture{'s' * (count > 1)}", "", _table(rows, list(makers))]
    text += ["", *absent.values(), "", *(f"{own} has {OWN_NETWORKS[own].about}." for own in networks)]
    (args.out / "results.md").write_text("\n".join(text) + "\n")
    print("\n".join(text), f"wrote {args.out}", sep="\n")


def _problems(wanted: list[str] | None) -> list[str]:
    """The problems of these names; None: all."""
    if unknown := sorted(set(wanted or ()) - PROBLEMS.keys()):
        raise InputError(f"no problem {unknown[0]!r}; type some of {', '.join(PROBLEMS)}")
    return [name for name in PROBLEMS if wanted is None or name in wanted]


def _chosen(makers: dict[str, tuple[SolverMaker, str]], wanted: list[str] | None) -> dict[str, tuple[SolverMaker, str]]:
    """Those whose name, less what is in brackets, is wanted."""
    names = chosen_methods(wanted, dict.fromkeys(method.partition("[")[0] for method in makers))
    return {method: maker for method, maker in makers.items() if method.partition("[")[0] in names}


def _facts(name: str, args: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """The problem of a line; results of some pictures, or of others, do not belong to the leaderboard."""
    problem = PROBLEMS[name]
    data = problem.data if args.images is None else Path(args.images).name
    facts = {**problem.facts, "img_size": args.size or PICTURE_SIDE, "debug": limit is not None}
    columns = {f"p_dataset_{fact}": value for fact, value in facts.items()}
    return {"objective_name": problem.title, "dataset_name": data, **columns}


def _run(
    name: str, makers: dict[str, SolverMaker], case: Case, images: Any, facts: dict[str, Any], file: Path
) -> list[dict[str, Any]]:
    """The lines of a problem's file, once what is missing is run."""
    rows: list[dict[str, Any]] = list(csv.DictReader(StringIO(file.read_text()))) if file.exists() else []
    missing = [method for method in makers if method not in {row["solver_name"] for row in rows}]
    metrics = metrics_of(PROBLEMS[name].crop, str(case.prior.device)) if missing else []
    for method in missing:
        try:
            scores = solve(PROBLEMS[name], makers[method], case, images, metrics)
        except FloatingPointError as error:
            print(f"{name}, {method}: left out: {error}")
            continue
        found = {f"objective_{score}": value for score, value in scores.items()}
        rows.append({**facts, "solver_name": method, **found})
        _write(rows, file)
    return rows


def _write(rows: list[dict[str, Any]], file: Path) -> None:
    text = StringIO()
    lines = csv.DictWriter(text, dict.fromkeys(column for row in rows for column in row), lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    write_whole(file, text.getvalue())


def _table(rows: list[dict[str, Any]], methods: list[str]) -> str:
    """Means, and standard deviations over the pictures, of the methods of a problem; one that was not run has none."""
    done = {row["solver_name"]: row for row in rows}
    scores = [s for s in ("PSNR", "LPIPS") if any(row.get(f"objective_{s}") for row in rows)]
    table = [f"| | {' | '.join(scores)} |", f"|---|{'---|' * len(scores)}"]
    for method in methods:
        cells = [_cell(done.get(method, {}), f"objective_{score}") for score in scores]
        table.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(table)


def _cell(row: dict[str, Any], column: str) -> str:
    if not row.get(column):
        return "-"
    return f"{float(row[column]):.2f} ± {float(row[f'{column}_std']):.2f}"
