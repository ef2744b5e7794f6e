"""The command ``deepinv-dmilo benchmark``."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.options import add_bfloat16, add_device, open_device

# Options that have no effect in the other suites.
_OF_STUDIES = ("preset", "prior", "images", "size", "methods", "batch_size", "bfloat16", "only_write")
_OF_SUITE = {
    "digits": ("budgets", "solver", "parallel_config"),
    "report": (*_OF_STUDIES, "weights"),
    "calibration": (*_OF_STUDIES, "samples", "drawn"),
    "deepinv": ("prior", "images", "size", "methods", "bfloat16", "weights"),
}


def add_benchmark(commands: Any) -> None:
    """Add the command to those of the command line."""
    benchmark = commands.add_parser("benchmark", help="compare methods on the same prior, pictures and measurements")
    benchmark.add_argument(
        "--suite",
        default="digits",
        choices=tuple(_OF_SUITE),
        help="digits: all installed methods but the sampler, with benchopt; report: ours and tuned rivals on any prior "
        "and pictures; calibration: whether the spread of posterior samples is their error, on the same; deepinv: the "
        "four problems of deepinv's benchmarks, for its leaderboard",
    )
    benchmark.add_argument("--out", type=Path, default=Path("benchmark"), help="folder (default: benchmark)")
    benchmark.add_argument("--quick", action="store_true", help="one picture, two tasks, few methods: a minute or two")
    benchmark.add_argument("--limit", type=int, help="pictures, the first (default: 8; report: the preset's)")
    benchmark.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="of the report; problems of deepinv (default: all)"
    )
    benchmark.add_argument("--noises", nargs="+", type=float, metavar="SIGMA", help="default: 0.005 0.05")
    report = benchmark.add_argument_group("report, calibration, deepinv")
    report.add_argument(
        "--preset", help="digits, photos (default), faces: the paper's settings; calibration: gaussian, in closed form"
    )
    report.add_argument("--prior", help="installed or bundled name, pipeline folder or hub id (default: the preset's)")
    report.add_argument("--images", help="folder of pictures or deepinv data set; rivals are tuned on the last four")
    report.add_argument("--size", type=int, help="pictures are resized and cropped to it")
    report.add_argument("--methods", nargs="+", metavar="METHOD", help="names, or how they start (default: all)")
    report.add_argument(
        "--weights",
        nargs="+",
        action="extend",
        metavar="NAME=FILE",
        help="report, deepinv: weights of RAM, DRUNet, KernelIdentificationNetwork or MPRNet, as RAM=ram.pth.tar, "
        "where deepinv cannot download them",
    )
    report.add_argument("--batch-size", type=int, help="pictures reconstructed together")
    report.add_argument("--samples", type=int, help="of the calibration, for each picture (default: 8)")
    report.add_argument(
        "--drawn",
        action="store_true",
        help="calibration: draw the pictures from the prior, so that faults are the sampler's alone; kept in --out",
    )
    add_bfloat16(report)
    report.add_argument("--only-write", action="store_true", help="run nothing, write tables and pictures again")
    suite = benchmark.add_argument_group("digits")
    suite.add_argument("--budgets", nargs="+", type=int, metavar="PASSES", help="default: 25 50 100")
    suite.add_argument("-s", "--solver", nargs="+", help="more benchopt solvers: name[...] or file[...]")
    suite.add_argument("--parallel-config", type=Path, metavar="YAML", help="benchopt's, for dask, SLURM, ...")
    suite.add_argument("--solver-path", action="store_true", help="print the solver file for benchopt -s, and end")
    add_device(benchmark)
    benchmark.set_defaults(run=_benchmark)


def _benchmark(args: argparse.Namespace) -> None:
    from deepinv_dmilo.benchmarks.suite import QUICK, SOLVER_FILE, run_suite

    if args.solver_path:
        print(SOLVER_FILE)
        return
    for name in dict.fromkeys(name for names in _OF_SUITE.values() for name in names):
        if name not in _OF_SUITE[args.suite] and getattr(args, name):
            suites = [suite for suite, names in _OF_SUITE.items() if name in names]
            told = f"--{name.replace('_', '-')} is of the suite{'s' * (len(suites) > 1)} {', '.join(suites)}"
            raise InputError(f"{told}; type --suite {suites[0]}, or leave it out")
    if args.suite == "calibration":
        from deepinv_dmilo.benchmarks.calibration_report import benchmark

        with door():
            benchmark(args, open_device(args.device), _command(args))
        return
    if args.suite == "deepinv":
        from deepinv_dmilo.benchmarks import leaderboard

        with door():
            device = open_device(args.device)
        leaderboard.run_leaderboard(args, device)
        return
    if args.suite == "report":
        _report(args)
        return
    given = {name: getattr(args, name) for name in ("tasks", "noises", "limit", "budgets")}
    settings = {**(QUICK if args.quick else {}), **{name: value for name, value in given.items() if value is not None}}
    if args.parallel_config is not None and not args.parallel_config.is_file():
        raise InputError(f"--parallel-config {args.parallel_config}: no such file")
    run_suite(args.suite, args.out, solvers=args.solver or [], parallel_config=args.parallel_config, **settings)
    print((args.out / "results.md").read_text())
    print(f"wrote {args.out}")


def _report(args: argparse.Namespace) -> None:
    from deepinv_dmilo.benchmarks.methods import METHODS
    from deepinv_dmilo.benchmarks.own_networks import weight_files
    from deepinv_dmilo.benchmarks.records import Row, read_lines
    from deepinv_dmilo.benchmarks.report import (
        QUICK_REPORT,
        absent_methods,
        chosen_methods,
        claim_folder,
        note_absent,
        run,
        write,
    )
    from deepinv_dmilo.benchmarks.studies import PRESETS, Study
    from deepinv_dmilo.tools.metrics import perceptual_metrics

    with door():
        name = args.preset or "photos"
        if name not in PRESETS:
            raise ValueError(f"--preset {name}: type one of {', '.join(PRESETS)}")
        device = open_device(args.device)
        options = ("methods", "prior", "images", "size", "limit", "tasks", "noises", "batch_size")
        given = {option: getattr(args, option) for option in options if getattr(args, option) is not None}
        given |= {"bfloat16": True} if args.bfloat16 else {}
        settings = {**(QUICK_REPORT if args.quick else {}), **given}
        methods = chosen_methods(settings.pop("methods", None))
        preset = PRESETS[name].with_settings(**settings)
        args.out.mkdir(parents=True, exist_ok=True)
        claim_folder(preset, args.out)
        weights = weight_files(args.weights or [])
        study = None if args.only_write else replace(Study.open(preset, device), weights=weights)
    absent = {} if study is None else absent_methods(study, methods)
    for reason in dict.fromkeys(absent.values()):
        print(reason, file=sys.stderr)
    if study is not None:
        methods = [name for name in methods if name not in absent]
        run(study, methods, args.out, perceptual_metrics(tuple(study.pictures.shape[1:]), device))
    rows = read_lines(Row, args.out / "results.csv")
    order = [label for name in METHODS for label in (name, f"{name}, recommended", f"{name}, tuned")]
    rows.sort(key=lambda row: order.index(row.method) if row.method in order else len(order))
    write(preset, rows, args.out, _command(args), device, absent=note_absent(absent, args.out))
    print((args.out / "report.md").read_text())
    print(f"wrote {args.out}")


def _command(args: argparse.Namespace) -> str:
    """The command line of a suite of a preset, as it is to be typed again."""
    command = shlex.join(["deepinv-dmilo", "benchmark", "--suite", args.suite, "--preset", args.preset or "photos"])
    for option in (
        "methods",
        "weights",
        "prior",
        "images",
        "drawn",
        "size",
        "limit",
        "samples",
        "tasks",
        "noises",
        "batch_size",
        "bfloat16",
        "quick",
    ):
        if value := getattr(args, option):
            command += f" --{option.replace('_', '-')}"
            command += "" if value is True else f" {shlex.join(map(str, value)) if isinstance(value, list) else value}"
    return command
