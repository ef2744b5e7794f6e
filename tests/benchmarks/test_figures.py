"""The report's tables and pictures."""

from dataclasses import replace

import pytest
from PIL import Image

from deepinv_dmilo.benchmarks import figures, report
from deepinv_dmilo.benchmarks.methods import METHODS
from deepinv_dmilo.benchmarks.studies import PRESETS, REPORT_TASKS


def test_tables_and_pictures(tmp_path):
    def row(method, task, image, psnr, passes):
        return report.Row(task, 0.005, method, 0.0, image, psnr, 0.9, passes, 5.0, 1.0, 10.0)

    rows = [row("a, 25 passes", "denoising", i, 20.0 + i, 25.0) for i in range(4)]
    rows += [row("a, 50 passes", "denoising", i, 22.0 + i, 50.0) for i in range(4)]
    rows += [row("b", "deblurring", i, 30.0, 100.0) for i in range(4)]
    rows += [row("long", "denoising", i, 24.0, 900.0) for i in range(2)]
    rows += [row("a, 25 passes", "blind-deblurring", 0, 18.0, 25.0)]
    report.write(PRESETS["digits"], rows, tmp_path, "command")
    text = (tmp_path / "report.md").read_text()
    assert "| a, 50 passes | - | **23.50** | 105 |" in text  # the mean of all four digits
    assert "| long | - | **24.00** | 1805 |" in text  # beside the others on its two digits
    assert "## Noise 0.005, 4 pictures" in text  # also of the method that did one of the blind tasks
    assert "| a, 25 passes | **18.00** | 55 |" in text.split("## Blind, noise 0.005, 1 picture")[1]
    assert (tmp_path / "blind-noise-0.005-1.png").exists()
    with Image.open(tmp_path / "noise-0.005-4.png") as picture:
        assert picture.width == figures.WIDTH * figures.DPI


def test_a_method_is_shown_on_the_pictures_and_tasks_that_it_was_run_on(tmp_path):
    """Not on all tasks, on fewer pictures of one of them, at one noise level; and with the remarks of the folder."""

    def run(method, task, count, noise=0.005):
        return [report.Row(task, noise, method, 0.0, i, 20.0, 0.9, 25.0, 5.0, 1.0, 10.0) for i in range(count)]

    rows = (
        run("a", "denoising", 3) + run("a", "deblurring", 2) + run("b", "denoising", 2) + run("a", "denoising", 3, 0.05)
    )
    (tmp_path / "remarks.md").write_text("A remark.\n\nAnother.\n")
    report.write(PRESETS["digits"], rows, tmp_path, "command")
    head, three, two, other = (tmp_path / "report.md").read_text().split("\n## ")
    assert head.endswith("\n\nA remark.\n\nAnother.\n")
    assert three.startswith("Noise 0.005, 3 pictures\n\n| PSNR | denoising | calls in all |\n|---|---|---|\n| a |")
    assert "| b |" not in three
    assert two.startswith("Noise 0.005, 2 pictures\n\n| PSNR | deblurring | denoising | calls in all |")
    assert "| b | - | **20.00** | 55 |" in two
    assert other.startswith("Noise 0.05, 3 pictures")


def test_perceptual_metrics_have_a_table_of_the_methods_that_have_them_everywhere():
    def row(method, task, stlpips):
        return report.Row(task, 0.005, method, 0.0, 0, 20.0, 0.9, 1.0, 0.0, 1.0, 10.0, stlpips=stlpips)

    rows = [row("a", task, 0.25) for task in ("denoising", "deblurring")]
    rows += [row("b", "denoising", 0.125), row("old", "denoising", float("nan")), row("old", "deblurring", 0.1)]
    _, table = figures.perceptual_tables(rows, ["denoising", "deblurring"], ["a", "b", "old"])
    assert table.splitlines() == [
        "| ST-LPIPS, less is better | denoising | deblurring | calls in all |",
        "|---|---|---|---|",
        "| a | 0.250 | **0.250** | 2 |",
        "| b | **0.125** | - | 2 |",
    ]


def test_tables_have_a_part_for_methods_with_a_network_of_their_own():
    rows = [report.Row("denoising", 0.05, m, 0.0, 0, p, 0.9, 10.0, 5.0, 1.0, 7.0) for m, p in (("RAM", 31), ("a", 30))]
    table = figures.quality_table(rows, ["denoising"], ["RAM", "a"], own={"RAM"}).splitlines()
    assert table == [
        "| PSNR | denoising | calls in all |",
        "|---|---|---|",
        "| a | 30.00 | 25 |",
        "| *with a network of their own* | | |",
        "| RAM | **31.00** | 25 |",
    ]
    costs = figures.cost_table(rows, ["RAM", "a"], {"RAM"}).splitlines()
    assert costs[0] == "| | tasks | passes | calls | calls in all | seconds per image | peak memory (MB) |"
    assert costs[2:] == [
        "| a | 1 | 10 | 5 | 25 | 1.00 | 7 |",
        "| *with a network of their own* | | | | | | |",
        "| RAM | 1 | 10 | 5 | 25 | 1.00 | 7 |",
    ]


def test_each_method_of_a_figure_has_a_look_of_its_own_and_ours_are_in_front():
    labels = [label for name, method in METHODS.items() for label, _ in report._settings(name, method)]
    looks = figures.styles(figures._families(labels))
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks) == 36
    many = figures.styles([*looks, *(f"method {i}" for i in range(100))])
    assert len({(look["color"], look["marker"]) for look in many.values()}) == len(many)
    names = ("DMILO", "DMILO-PGD", "DMILOSampler, 8 x 100 calls", "DMILO, BlurKernel, 200 calls")
    ours = [looks.pop(name) for name in names]
    for key in ("zorder", "linewidth"):
        assert min(look[key] for look in ours) > max(look[key] for look in looks.values())
    assert figures.styles(["dmilo"])["dmilo"]["color"] == ours[0]["color"]  # as the registry calls it


@pytest.mark.parametrize("draw", [figures.convergence_figure, figures.bar_figure])
def test_the_legend_covers_nothing(draw):
    """Nor does anything cover a label: what is drawn beside the panels is apart from the legend."""
    tasks = list(REPORT_TASKS)[:4]
    methods = [label for name, method in METHODS.items() for label, _ in report._settings(name, method)]
    rows = [report.Row(t, 0.05, m, 0.0, 0, 20.0, 0.9, 25.0, 0.0, 1.0, 10.0) for t in tasks for m in methods]
    figure = draw(rows, tasks, methods)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 36
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    others = [ax for ax in figure.axes if ax.get_visible()] + list(figure.texts)
    assert not any(legend.overlaps(other.get_tightbbox()) for other in others)


def test_gains_are_paired_by_image():
    def row(method, image, psnr):
        return report.Row("denoising", 0.005, method, 0.0, image, psnr, 0.9, 1.0, 0.0, 1.0, 10.0)

    rows = [row("ours", i, psnr) for i, psnr in enumerate((30.0, 25.0, 99.0))]
    rows += [row("other", i, psnr) for i, psnr in enumerate((28.0, 24.0))]  # 2 and 1 dB below on its two images
    table = report.gain_table(rows, ["denoising", "deblurring"], ["ours", "other"], "ours").splitlines()
    assert table[2:] == ["| other | +1.50 ± 0.50 | - |"]


def test_a_method_that_diverged_is_named_so_and_hides_no_other():
    def row(method, image, psnr):
        return report.Row("denoising", 0.005, method, 0.0, image, psnr, 0.9, 1.0, 0.0, 1.0, 10.0)

    rows = [row("other", 0, float("nan")), row("other", 1, 24.0), row("ours", 0, 30.0), row("ours", 1, 25.0)]
    methods = ["other", "ours"]
    first, second = report.quality_table(rows, ["denoising"], methods).splitlines()[2:]
    assert first.startswith("| other | diverged |")
    assert second.startswith("| ours | **27.50** |")
    assert report.gain_table(rows, ["denoising"], methods, "ours").splitlines()[2:] == ["| other | diverged |"]
    assert figures.perceptual_tables(rows, ["denoising"], methods) == []
    rows = [replace(row, residual=row.psnr / 1000, stlpips=row.psnr / 1000) for row in rows]
    costs = figures.cost_table(rows, methods).splitlines()
    assert costs[0].startswith("| | tasks | residual |")
    assert costs[2].startswith("| other | 1 | diverged |")
    assert costs[3].startswith("| ours | 1 | 0.0275 |")
    _, table = figures.perceptual_tables(rows, ["denoising"], methods)
    assert table.splitlines()[2:] == ["| other | diverged | 2 |", "| ours | **0.028** | 2 |"]
    figures.bar_figure(rows, ["denoising"], methods)
    figures.convergence_figure(rows, ["denoising"], methods)
