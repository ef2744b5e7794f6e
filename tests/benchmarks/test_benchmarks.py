"""The report: what it counts, how it tunes rivals, that it resumes; no image quality, that is what it measures."""

import math
import time
from dataclasses import replace

import pytest
import real_size
import torch
from deepinv.loss.metric import PSNR
from diffusers import DDPMPipeline, DDPMScheduler
from toys import ConvNet, tiny_unet, toy_prior

from deepinv_dmilo import DiffusionPrior, Tiled
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.benchmarks import report
from deepinv_dmilo.benchmarks.methods import METHODS, Method, OneCall, PseudoInverse
from deepinv_dmilo.benchmarks.studies import PRESETS, Case, Study
from deepinv_dmilo.tools.pictures import as_png
from deepinv_dmilo.tools.scoring import Meter, registered, score
from deepinv_dmilo.tools.tasks import make_physics


@pytest.fixture(scope="module")
def prior():
    return DiffusionPrior.from_pretrained("digits")


@pytest.fixture(scope="module")
def study():
    return Study.open(PRESETS["digits"], "cpu")


def test_meter_tells_passes_from_calls():
    net = ConvNet()
    z, t = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with Meter(net, torch.device("cpu")) as meter:
        with torch.no_grad():
            net(z, t)
        net(z[:1].requires_grad_(), t[:1])
        torch.func.vjp(lambda z: net(z, t), z)
        kept = torch.ones(10**7)
        time.sleep(0.05)
    assert (meter.passes, meter.calls) == (3, 2)
    assert 0.05 <= meter.seconds < 5
    assert 30 < meter.memory < 200, kept.shape  # ten million floats are 40 MB


def test_meter_counts_a_pass_once_that_checkpointing_computes_again():
    tiled = Tiled(toy_prior(ConvNet(), dtype=torch.float32), tile=8, overlap=0)
    z, level = torch.randn(2, 3, 8, 8), tiled.levels(3)[0]
    with Meter(tiled.network, torch.device("cpu")) as meter:
        tiled.denoise(z.requires_grad_(), level).sum().backward()
        tiled.denoise(z.detach(), level)
    assert (meter.passes, meter.calls) == (2, 2)


def test_score_measures_each_image_and_leaves_the_global_state(prior):
    x = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    physics = make_physics("denoising", (1, 32, 32), noise=0.0)
    y = x + torch.tensor([0.1, -0.2]).view(2, 1, 1, 1)

    def lpips(a, b):  # takes colour images, as the real one does
        assert a.shape == b.shape == (2, 3, 32, 32)
        return (a - b).abs().mean((1, 2, 3))

    before = torch.random.get_rng_state()
    x_hat, scores = score(lambda y, physics: y, x, y, physics, metrics={"lpips": lpips})
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(x_hat, y)
    # deepinv keeps its PSNR finite by a small constant
    assert [s["psnr"] for s in scores] == pytest.approx([20.0, 13.979], abs=1e-2)
    assert [s["lpips"] for s in scores] == pytest.approx([0.1, 0.2], abs=1e-6)
    assert [s["residual"] for s in scores] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert all(s["passes"] == s["calls"] == 0 for s in scores)
    _, (network,) = score(OneCall(Case(prior, (1, 32, 32), "denoising", 0.1, 0.0)), x[:1], y[:1], physics)
    assert (network["passes"], network["calls"]) == (0, 1)


@pytest.mark.parametrize(
    ("method", "passes", "calls"),
    [
        ("pseudo-inverse", 0, 0),
        ("TV", 0, 0),
        ("DMILO, 25 passes", 24, 6),  # a call for the start, for the image of each of four levels, and for the mean
        ("DMILO-PGD, 25 passes", 24, 6),
        ("DMILOSampler, 8 x 100 calls", 160, 488),  # 1 a sample; 20 levels of a pass and three more backward passes
        ("FAST-DIPS, 75 calls", 0, 75),
        ("SITCOM, 10 x 10", None, 10),  # fewer than 100 passes where the measurements are fitted before
        ("DAPS, 100 calls", 0, 100),
        ("DiffPIR", 0, 100),
        ("DDRM", 0, 100),
        ("PiGDM", 2, 0),
        ("DPS", 2, 0),
        ("DPS, annealed", 2, 0),
        ("moment matching", 2, 8),  # four products with the Jacobian beside each pass
    ],
)
def test_methods_reconstruct_a_digit(method, passes, calls, study, monkeypatch):
    monkeypatch.setattr("deepinv_dmilo.benchmarks.methods.DPS_STEPS", 3)
    monkeypatch.setattr("deepinv_dmilo.benchmarks.methods.PIGDM_STEPS", 3)
    monkeypatch.setattr("deepinv_dmilo.benchmarks.methods.MOMENT_STEPS", 3)
    x, weight = study.pictures[:1], max(METHODS[method].grid[:1], default=0.5)
    x_hat, (cost,) = report.reconstruct(study, METHODS[method], "inpainting-70", 0.005, weight, x, 0)
    assert x_hat.shape == (1, 1, 32, 32)
    assert x_hat.std() > 0.05
    assert cost["calls"] == calls
    assert cost["passes"] == passes or (passes is None and 10 < cost["passes"] <= 100)


@pytest.mark.parametrize("name", ["TV", "FAST-DIPS, 75 calls", "SITCOM, 10 x 10", "DAPS, 100 calls"])
def test_our_versions_of_the_rivals_reconstruct(name, study):
    """Far above the measurements' pseudo-inverse, with the weight in the middle of their grid."""
    x = study.pictures[:2]
    method = METHODS[name]
    _, scores = report.reconstruct(study, method, "inpainting-70", 0.05, method.grid[1], x, 0)
    _, naive = report.reconstruct(study, METHODS["pseudo-inverse"], "inpainting-70", 0.05, 0.0, x, 0)
    gains = [a["psnr"] - b["psnr"] for a, b in zip(scores, naive, strict=True)]
    assert min(gains) > 3


def test_methods_are_asked_only_for_the_physics_that_they_take(study):
    assert report.applies(study, METHODS["DDRM"], "deblurring")
    assert not report.applies(study, METHODS["DDRM"], "super-resolution")
    assert report.applies(study, METHODS["denoiser, one call"], "denoising")
    assert not report.applies(study, METHODS["denoiser, one call"], "inpainting-70")
    assert not report.applies(study, METHODS["PiGDM"], "phase-retrieval")
    assert report.applies(study, METHODS["DMILO, 25 passes"], "phase-retrieval")
    assert not report.applies(study, METHODS["DDRM"], "blind-deblurring")
    assert not report.applies(study, METHODS["BlindRL"], "deblurring")


def test_a_blind_task_tells_a_guess_and_measures_as_where_the_blur_is_told(study):
    seen = []

    def make(case):
        def method(y, physics):
            seen.append((y, physics, case.guess))
            return y

        return method

    for task in ("deblurring", "blind-deblurring"):
        _, scores = report.reconstruct(study, Method(make), task, 0.005, 0.0, study.pictures[:1], 0)
        assert scores[0]["residual"] == pytest.approx(_blurred_twice(study, seen[0]), rel=1e-5)  # of the true blur
    (y, told, none), (same_y, guessed, guess) = seen
    assert torch.equal(y, same_y)
    assert none is None
    torch.testing.assert_close(guessed.filter, guess)
    assert guess.shape == (1, 1, *told.filter.shape[2:])
    assert guess.max() < 0.8 * told.filter.max()  # wider


def _blurred_twice(study, seen):
    y, physics, _ = seen
    return (physics.A(y.clamp(0, 1)) - y).square().mean().sqrt().item()


def test_an_image_of_an_unknown_blur_is_compared_where_it_fits_best(study):
    x = study.pictures[:2]
    moved = torch.stack([x[0].roll((2, -1), (1, 2)), x[1].roll(-3, 2)])
    torch.testing.assert_close(registered(moved, x), x, rtol=0, atol=1e-4)
    middle = x[..., 4:-4, 4:-4]  # that a camera saw; what comes into it is not what left on the other side
    torch.testing.assert_close(registered(moved, middle), middle, rtol=0, atol=1e-4)


def test_blind_methods_sharpen_a_digit(study):
    x = study.pictures[:1]
    y_psnr = PSNR()(study.physics("deblurring", 0.0).A(x), x).item()
    found = {}
    for name in ("BlindRL", "DMILO, 50 passes"):
        _, (found[name],) = report.reconstruct(study, METHODS[name], "blind-deblurring", 0.005, 5.0, x, 0)
    assert found["DMILO, 50 passes"]["psnr"] > max(y_psnr, found["BlindRL"]["psnr"]) + 1


@pytest.fixture
def fake(monkeypatch):
    """A method whose error is least at a weight of 64; ``calls`` collects the weights."""
    calls = []

    def make(case):
        calls.append(case.weight)
        return lambda y, physics: y + 0.01 * abs(torch.tensor(case.weight / 64).log2())

    monkeypatch.setitem(report.METHODS, "fake", Method(make, recommended=2.0, grid=(1.0, 2.0, 4.0)))
    return calls


def test_tuning_grows_the_grid_until_the_best_is_inside_and_remembers(study, fake, tmp_path):
    file = tmp_path / "tuning.csv"
    assert report.tune(study, "fake", "denoising", 0.005, file) == 64
    assert fake == [1, 2, 4, 8, 16, 32, 64, 128]
    assert report.tune(study, "fake", "denoising", 0.005, file) == 64
    assert len(fake) == 8
    # cut off after the grid, before it grew
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    assert report.tune(study, "fake", "denoising", 0.005, file) == 64
    assert fake[8:] == [8, 16, 32, 64, 128]


def test_tuning_ends_where_the_weight_makes_no_difference():
    method = Method(PseudoInverse, grid=(1.0, 2.0, 4.0))
    assert report._untried(method, {1.0: 20.0, 2.0: 20.5, 4.0: 20.51}) == []
    assert report._untried(method, {1.0: 20.0, 2.0: 20.5, 4.0: 20.6}) == [8.0]
    assert report._untried(method, {1.0: 20.6, 2.0: 20.5, 4.0: 20.1}) == [0.5]


def test_a_weight_that_makes_a_method_diverge_is_the_worst_also_from_the_record(study, monkeypatch, tmp_path):
    def make(case):
        return lambda y, physics: torch.full_like(y, torch.nan) if case.weight < 2 else y + 0.1 / case.weight

    monkeypatch.setitem(report.METHODS, "fragile", Method(make, recommended=2.0, grid=(1.0, 2.0), scale=0))
    for _ in range(2):
        assert report.tune(study, "fragile", "denoising", 0.005, tmp_path / "tuning.csv") == 2


def test_a_run_that_was_cut_off_resumes(study, fake, tmp_path):
    study = replace(study, preset=study.preset.with_settings(tasks=("denoising",), noises=(0.005,), limit=2))
    study = replace(study, pictures=study.pictures[:2])
    report.run(study, ["fake", "pseudo-inverse"], tmp_path)
    first = report.read_lines(report.Row, tmp_path / "results.csv")
    assert {(r.method, r.image) for r in first} == {
        (m, i) for m in ("fake, recommended", "fake, tuned", "pseudo-inverse") for i in (0, 1)
    }
    lines = (tmp_path / "results.csv").read_text().splitlines(keepends=True)
    (tmp_path / "results.csv").write_text("".join(lines[:-1]) + lines[-1][:30])
    before = len(fake)
    report.run(study, ["fake", "pseudo-inverse"], tmp_path)
    again = report.read_lines(report.Row, tmp_path / "results.csv")
    assert len(fake) == before
    assert [(r.method, r.image, r.psnr) for r in again] == [(r.method, r.image, r.psnr) for r in first]


def test_a_record_of_fewer_columns_goes_on_with_those_of_today(study, tmp_path):
    """The reports of 0.2.0 have no ST-LPIPS."""
    study = replace(study, preset=study.preset.with_settings(tasks=("denoising",), noises=(0.005,), limit=2))
    file = tmp_path / "results.csv"
    head = "task,noise,method,weight,image,psnr,ssim,passes,calls,seconds,memory_mb,residual,lpips\n"
    file.write_text(head + "denoising,0.005,pseudo-inverse,0.0,0,46.1,0.9,0.0,0.0,0.1,1.0,0.2,nan\ndenoising,0.005,cut")
    whole = replace(study, pictures=study.pictures[:1])
    report.run(whole, ["pseudo-inverse"], tmp_path)
    assert file.read_text().startswith(head)  # nothing to add
    report.run(replace(study, pictures=study.pictures[:2]), ["pseudo-inverse"], tmp_path, {"stlpips": PSNR()})
    old, new = report.read_lines(report.Row, file)
    assert (old.image, old.psnr, old.residual) == (0, 46.1, 0.2)
    assert math.isnan(old.stlpips)
    assert new.stlpips == pytest.approx(new.psnr)  # grey counts as three equal channels
    assert file.read_text().splitlines()[0] == f"{head.strip()},stlpips"
    report.write(study.preset, [old], tmp_path, "command")
    assert "ST-LPIPS" not in (tmp_path / "report.md").read_text()
    report.write(study.preset, [replace(new, image=0)], tmp_path, "command")
    assert "| ST-LPIPS, less is better | denoising | calls in all |" in (tmp_path / "report.md").read_text()


def test_measurements_do_not_depend_on_the_chunk(study):
    pseudo_inverse = METHODS["pseudo-inverse"]
    together, _ = report.reconstruct(study, pseudo_inverse, "deblurring", 0.05, 0.0, study.pictures[:4], 0)
    alone, _ = report.reconstruct(study, pseudo_inverse, "deblurring", 0.05, 0.0, study.pictures[2:4], 2)
    torch.testing.assert_close(alone, together[2:])


def test_a_study_of_the_users_own_prior_and_pictures(tmp_path, capsys):
    """The command that fills the report, on a folder of pictures and a pipeline folder, and what it writes."""
    pictures, prior = tmp_path / "pictures", tmp_path / "prior"
    pictures.mkdir()
    for i in range(6):
        as_png(torch.rand(3, 20, 30)).save(pictures / f"{i}.png")
    DDPMPipeline(tiny_unet(3, 16), DDPMScheduler()).save_pretrained(prior)
    out = tmp_path / "out"
    command = ["benchmark", "--suite", "report", "--prior", str(prior), "--images", str(pictures), "--size", "24"]
    command += ["--tasks", "denoising", "--noises", "0.1", "--methods", "DMILO, 25 passes", "FAST-DIPS", "--limit", "5"]
    assert main([*command, "--out", str(out)]) == 0
    rows = report.read_lines(report.Row, out / "results.csv")
    # the last four are for tuning, so two of the six are left to report
    assert {(r.method, r.image) for r in rows} == {
        (m, i) for m in ("DMILO, 25 passes", "FAST-DIPS, 75 calls, tuned") for i in (0, 1)
    }
    assert len(report.read_lines(report.Trial, out / "tuning.csv")) >= 3
    text = (out / "report.md").read_text()
    assert f"--images {pictures} --size 24" in text
    assert (out / "noise-0.1-2-seconds.png").exists()
    first = (out / "results.csv").read_text()
    assert main([*command, "--out", str(out), "--only-write"]) == 0
    assert (out / "results.csv").read_text() == first
    capsys.readouterr()
    assert main([*command, "--out", str(out), "--size", "16"]) == 2
    assert "type another --out" in capsys.readouterr().err


def test_the_faces_preset_is_the_papers_settings(tmp_path):
    preset = PRESETS["faces"]
    assert (preset.size, preset.noises) == (256, (0.005,))
    report.write(preset, [], tmp_path, "command")
    assert "| DMILO-PGD, as reported | super-resolution | 33.58 | 0.906 |" in (tmp_path / "report.md").read_text()


def test_other_pictures_or_sizes_are_not_tuned_with_the_records_of_the_preset():
    preset = PRESETS["digits"]
    assert preset.with_settings(limit=3).record == preset.record
    assert preset.with_settings(size=64).record is None
    assert preset.with_settings(images="folder").tuning == (-4, None)


def test_real_size_measures_every_configuration_on_a_tiny_network(tmp_path):
    for name, passes in {**dict.fromkeys(real_size.CONFIGURATIONS, 6), "photograph, 25 passes": 1}.items():
        cell = real_size.cost_of(name, "cpu", 1, 6, tiny=True)
        assert cell["passes"] == passes
        assert 0.1 < cell["memory"] < 10  # gigabytes: at least torch itself
        assert 1e-5 < cell["seconds"] < 10
