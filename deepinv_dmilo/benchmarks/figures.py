"""The report's markdown tables and pictures, from its rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from deepinv_dmilo.benchmarks.records import Row
from deepinv_dmilo.tools.folder import write_whole
from deepinv_dmilo.tools.metrics import PERCEPTUAL

WIDTH, DPI = 8.0, 110  # inches, and dots to each: a page's width, where letters keep their size
#: as narrow as all methods need to fit in the width
LEGEND: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "fontsize": 7.5}
LEGEND |= {"columnspacing": 1.0, "handlelength": 1.5}
#: our methods, by their names in small letters; where they agree, the second shows inside the first
OUR_LOOKS: dict[str, dict[str, Any]] = {
    "dmilo": {"color": "#d62728", "marker": "o", "linewidth": 4.5, "markersize": 9, "zorder": 4},
    "dmilo-pgd": {"color": "#1f4ed8", "marker": "s", "linewidth": 2.0, "markersize": 5, "zorder": 5},
    "dmilo, blurkernel, 200 calls": {"color": "#e8590c", "marker": "D", "linewidth": 2.0, "markersize": 5, "zorder": 5},
    "dmilosampler, 8 x 100 calls": {"color": "#a50f15", "marker": "D", "linewidth": 2.0, "markersize": 5, "zorder": 5},
}
#: the others': no two share a colour before there are sixteen, nor a colour and a marker before there are 166
COLOURS = (
    *("#000000", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22"),
    *("#ffbb78", "#98df8a", "#c5b0d5", "#c49c94", "#f7b6d2", "#9edae5", "#7f7f7f"),
)
MARKERS = "^vDPX*<>pHd"
#: metrics of a table of their own: the title, the digits, and whether more or less is better
METRIC_TABLES = {
    "psnr": ("PSNR", 2, 1),
    "ssim": ("SSIM", 3, 1),
    "lpips": ("LPIPS, less is better", 3, -1),
    "stlpips": ("ST-LPIPS, less is better", 3, -1),
}


def quality_table(
    rows: Sequence[Row], tasks: list[str], methods: list[str], metric: str = "psnr", own: Collection[str] = ()
) -> str:
    """
    Mean of a metric by method (lines) and task (columns), the best in bold; the calls in the last column.

    :param own: methods that have a network of their own, which come last.
    """
    title, digits, sign = METRIC_TABLES[metric]
    means = {(m, t): _mean(rows, metric, task=t, method=m) for m in methods for t in tasks}
    known = {t: [sign * means[m, t] for m in methods if means[m, t] > -math.inf] for t in tasks}  # nor is NaN more
    best = {t: max(values, default=math.inf) for t, values in known.items()}

    def cells(method: str) -> list[str]:
        texts = []
        for task in tasks:
            text = _number(value := means[method, task], f".{digits}f")
            good = value > -math.inf and sign * value >= best[task] - 0.5 * 10**-digits
            texts.append(f"**{text}**" if good else text)
        return [*texts, _range([_mean(rows, "calls_in_all", task=t, method=method) for t in tasks])]

    return _in_two_parts([title, *tasks, "calls in all"], methods, own, cells)


def perceptual_tables(
    rows: Sequence[Row], tasks: list[str], methods: list[str], own: Collection[str] = ()
) -> list[str]:
    """Tables of LPIPS and ST-LPIPS, each of the methods that have it on all images on which they did not diverge."""
    text: list[str] = []
    finite = [r for r in rows if not math.isnan(r.psnr)]
    for metric in PERCEPTUAL:
        lacking = {r.method for r in finite if math.isnan(getattr(r, metric))}
        having = [m for m in methods if m not in lacking]
        if any(r.method in having for r in finite):
            text += ["", quality_table(rows, tasks, having, metric, own)]
    return text


def _in_two_parts(head: list[str], methods: list[str], own: Collection[str], cells: Callable[[str], list[str]]) -> str:
    """A table with a line for each method, those with a network of their own below the others."""
    lines = [head, *([m, *cells(m)] for m in methods if m not in own)]
    if theirs := [[m, *cells(m)] for m in methods if m in own]:
        lines += [["*with a network of their own*", *[""] * (len(head) - 1)], *theirs]
    table = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in lines]
    return "\n".join([table[0], f"|{'---|' * len(head)}", *table[1:]])


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
            finite = len(gains) > 1 and math.isfinite(sum(gains))
            error = f" ± {stdev(gains) / len(gains) ** 0.5:.2f}" if finite else ""
            cells.append(_number(mean(gains) if gains else -math.inf, "+.2f") + error)
        table.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(table)


def cost_table(rows: Sequence[Row], methods: list[str], own: Collection[str] = ()) -> str:
    """What a method costs over the tasks that it did, and the residual; a column that a row lacks is left out."""
    columns = {
        "residual": ("residual", ".4f"),
        "passes": ("passes", ".0f"),
        "calls": ("calls", ".0f"),
        "calls_in_all": ("calls in all", ".0f"),
        "seconds": ("seconds per image", ".2f"),
    }
    finite = [r for r in rows if not math.isnan(r.psnr)]
    columns = {name: c for name, c in columns.items() if not any(math.isnan(getattr(r, name)) for r in finite)}

    def cells(method: str) -> list[str]:
        done = [r for r in rows if r.method == method]
        means = [_number(_mean(done, name), pattern) for name, (_, pattern) in columns.items()]
        return [f"{len({r.task for r in done})}", *means, f"{max(r.memory_mb for r in done):.0f}"]

    head = ["", "tasks", *(title for title, _ in columns.values()), "peak memory (MB)"]
    return _in_two_parts(head, methods, own, cells)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, all of it or nothing."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    write_whole(file, stream.getvalue())


def bar_figure(rows: Sequence[Row], tasks: list[str], methods: list[str]) -> Figure:
    """Mean PSNR as groups of bars, a group for each task, of a method's largest budget."""
    families = _families(methods)
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    ax = figure.subplots()
    width = 0.85 / len(families)
    for n, (family, style) in enumerate(styles(families).items()):
        heights = [max(0.0, _mean(rows, "psnr", task=t, method=families[family][-1])) for t in tasks]
        places = [k + (n - (len(families) - 1) / 2) * width for k in range(len(tasks))]
        ax.bar(places, heights, width, color=style["color"], label=family)
    ax.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right", fontsize=8)
    ax.set_ylabel("PSNR (dB)")
    figure.legend(**LEGEND)
    return figure


def convergence_figure(rows: Sequence[Row], tasks: list[str], methods: list[str], against: str = "calls") -> Figure:
    """PSNR against ``calls`` of the network, where a pass counts as two, or ``seconds``, a panel for each task."""
    columns = min(3, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(WIDTH, 1.2 + 2.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    families = _families(methods)
    for k, ax in enumerate(axes.flat):
        if k >= len(tasks):
            ax.set_visible(False)
            continue
        for family, style in styles(families).items():
            if points := _points(rows, tasks[k], families[family], against):
                ax.plot(*zip(*points, strict=True), label=family, **style)
        ax.set_title(tasks[k], fontsize=9)
        ax.set_xscale("log")
        ax.set_xlabel(f"{against} (log)" if k + columns >= len(tasks) else "", fontsize=8)
        ax.set_ylabel("PSNR (dB)" if k % columns == 0 else "", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [family for family in families if family in handles]
    figure.legend([handles[f] for f in shown], shown, **LEGEND)
    return figure


def _points(rows: Sequence[Row], task: str, methods: list[str], against: str) -> list[tuple[float, float]]:
    """Cost and PSNR of the methods that did the task, by cost; no call is drawn as one."""
    points = []
    for method in methods:
        cost = "seconds" if against == "seconds" else "calls_in_all"
        psnr, spent = (_mean(rows, name, task=task, method=method) for name in ("psnr", cost))
        if psnr > -math.inf:
            points.append((spent if against == "seconds" else max(spent, 1.0), psnr))
    return sorted(points)


def styles(families: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each family of methods; those of this package are heavier, and in front."""
    looks = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.5}
    styled = {}
    for family in families:
        look = OUR_LOOKS.get(family.lower()) or dict(zip(("color", "marker"), next(looks), strict=True))
        styled[family] = {"linewidth": 1.2, "markersize": 6, "zorder": 3, **edge, **look}
    return styled


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


def _number(value: float, pattern: str) -> str:
    """A mean as text: NaN is that of a method that diverged on some image, minus infinity that of none."""
    return "diverged" if math.isnan(value) else "-" if value == -math.inf else format(value, pattern)


def _range(values: list[float]) -> str:
    values = [v for v in values if v > -math.inf]
    if not values:
        return "-"
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def reliability_figure(rows: Sequence[Any], methods: list[str], levels: Sequence[float]) -> Figure:
    """The share of pixels that intervals hold against their level, a panel for each task; below: too narrow."""
    tasks = list(dict.fromkeys(r.task for r in rows))
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)
    for k, (ax, task) in enumerate(zip(axes.flat, tasks, strict=True)):
        ax.plot((0, 1), (0, 1), color="grey", linewidth=0.8)
        for method, style in styles(methods).items():
            held = [
                [getattr(r, f"coverage{100 * q:.0f}") for r in rows if (r.task, r.method) == (task, method)]
                for q in levels
            ]
            if held[0]:
                ax.plot((0, *levels, 1), (0, *map(known_mean, held), 1), label=method, **style)
        ax.set_title(task, fontsize=9)
        ax.set_xlabel("level", fontsize=8)
        ax.set_ylabel("coverage" if k == 0 else "", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.set_aspect("equal")
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def sample_figure(x: Tensor, samples: Tensor) -> Figure:
    """Truth (C, H, W), mean and standard deviation of samples (S, C, H, W), absolute error; the last two alike."""
    average = samples.mean(0)
    spread, error = (v.mean(0) for v in (samples.std(0), (average - x).abs()))
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    top = max(spread.max().item(), 1e-6)
    for ax, image, title in zip(
        figure.subplots(1, 4), (x, average, spread, error), ("truth", "mean", "std", "|error|"), strict=True
    ):
        grey = image.ndim == 2 or len(image) == 1
        shown = image.squeeze(0) if grey else image.permute(1, 2, 0)
        ax.imshow(shown.cpu(), cmap="gray" if image.ndim == 3 else "magma", vmin=0, vmax=1 if image.ndim == 3 else top)
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return figure


def known_mean(values: list[float]) -> float:
    """A mean without the values that are NaN; NaN where all are."""
    known = [v for v in values if not math.isnan(v)]
    return mean(known) if known else math.nan
