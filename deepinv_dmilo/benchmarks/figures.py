"""The report's markdown tables and pictures, from its rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from deepinv_dmilo.benchmarks.records import Row


def quality_table(rows: Sequence[Row], tasks: list[str], methods: list[str], measure: str = "psnr") -> str:
    """Mean PSNR or SSIM by method (lines) and task (columns), the best in bold; the passes in the last column."""
    digits = {"psnr": 2, "ssim": 3}[measure]
    table = [f"| {measure.upper()} | {' | '.join(tasks)} | passes |", f"|---|{'---|' * (len(tasks) + 1)}"]
    best = {t: max(_mean(rows, measure, task=t, method=m) for m in methods) for t in tasks}
    for method in methods:
        values = [_mean(rows, measure, task=t, method=method) for t in tasks]
        texts = [
            "-" if v == -math.inf else f"**{v:.{digits}f}**" if v >= best[t] - 0.5 * 10**-digits else f"{v:.{digits}f}"
            for t, v in zip(tasks, values, strict=True)
        ]
        passes = _range([_mean(rows, "passes", task=t, method=method) for t in tasks])
        calls = _range([_mean(rows, "calls", task=t, method=method) for t in tasks])
        table.append(f"| {method} | {' | '.join(texts)} | {passes} + {calls} |")
    return "\n".join(table)


def gain_table(rows: Sequence[Row], tasks: list[str], methods: list[str], ours: str) -> str:
    """PSNR of a method less that of the others on the same images, mean and standard error, by method and task."""
    psnr = {(r.method, r.task, r.image): r.psnr for r in rows}
    table = [f"| {ours}, less | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for method in methods:
        if method == ours:
            continue
        cells = []
        for task in tasks:
            images = [i for m, t, i in psnr if (m, t) == (method, task) and (ours, task, i) in psnr]
            gains = [psnr[ours, task, i] - psnr[method, task, i] for i in images]
            error = f" ± {stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
            cells.append(f"{mean(gains):+.2f}{error}" if gains else "-")
        table.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(table)


def cost_table(rows: Sequence[Row], methods: list[str]) -> str:
    """What a method costs over the tasks that it did, and the other measures; a column that a row lacks is left out."""
    columns = {
        "lpips": ("LPIPS", "{:.3f}"),
        "residual": ("residual", "{:.4f}"),
        "passes": ("passes", "{:.0f}"),
        "calls": ("calls", "{:.0f}"),
        "seconds": ("seconds per image", "{:.2f}"),
    }
    columns = {name: c for name, c in columns.items() if not any(math.isnan(getattr(r, name)) for r in rows)}
    table = [f"| | tasks | {' | '.join(title for title, _ in columns.values())} | peak memory (MB) |"]
    table.append(f"|---|---|{'---|' * (len(columns) + 1)}")
    for method in methods:
        tasks = {r.task for r in rows if r.method == method}
        cells = [pattern.format(_mean(rows, name, method=method)) for name, (_, pattern) in columns.items()]
        memory = max(r.memory_mb for r in rows if r.method == method)
        table.append(f"| {method} | {len(tasks)} | {' | '.join(cells)} | {memory:.0f} |")
    return "\n".join(table)


def bars(rows: Sequence[Row], tasks: list[str], methods: list[str], file: Path) -> None:
    """Mean PSNR as groups of bars, a group for each task, of a method's largest budget."""
    from matplotlib import pyplot as plt

    families = _families(methods)
    figure, ax = plt.subplots(figsize=(2 + 1.6 * len(tasks), 4))
    width = 0.85 / len(families)
    for n, (family, members) in enumerate(families.items()):
        heights = [max(0.0, _mean(rows, "psnr", task=t, method=members[-1])) for t in tasks]
        places = [k + (n - (len(families) - 1) / 2) * width for k in range(len(tasks))]
        ax.bar(places, heights, width, color=f"C{n % 10}", label=family)
    ax.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right", fontsize=8)
    ax.set_ylabel("PSNR (dB)")
    ax.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def picture(rows: Sequence[Row], tasks: list[str], methods: list[str], file: Path) -> None:
    """PSNR against network passes (forward calls count a third of one), a panel for each task."""
    from matplotlib import pyplot as plt

    columns = 5
    lines = math.ceil(len(tasks) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.2 * columns, 3.0 * lines), squeeze=False)
    families = _families(methods)
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    for ax, task in zip(axes.flat, tasks, strict=False):
        for n, (family, members) in enumerate(families.items()):
            points = [
                (_mean(rows, "passes", task=task, method=m) + _mean(rows, "calls", task=task, method=m) / 3, value)
                for m in members
                if (value := _mean(rows, "psnr", task=task, method=m)) > -math.inf
            ]
            if points:
                x, y = zip(*sorted(points), strict=True)
                marker = "os^vDPX*<>"[n % 10]
                ax.plot([max(v, 1) for v in x], y, marker=marker, color=f"C{n % 10}", label=family)
        ax.set_title(task, fontsize=9)
        ax.set_xscale("log")
        ax.grid(alpha=0.3)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.supxlabel("network passes per image (log)")
    figure.supylabel("PSNR (dB)")
    figure.tight_layout(rect=(0.01, 0.09, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=5, fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _families(methods: list[str]) -> dict[str, list[str]]:
    """Methods that differ in their budget of passes alone, by their common name."""
    families: dict[str, list[str]] = {}
    for method in methods:
        families.setdefault(re.sub(r", (\d+ x )?\d+ passes$", "", method), []).append(method)
    return families


def _mean(rows: Sequence[Row], name: str, **where: str) -> float:
    """Mean of a column over the rows that match; minus infinity where there are none."""
    values = [getattr(r, name) for r in rows if all(getattr(r, k) == v for k, v in where.items())]
    return mean(values) if values else -math.inf


def _range(values: list[float]) -> str:
    values = [v for v in values if v > -math.inf]
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"
