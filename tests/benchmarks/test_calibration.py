"""Calibration: its statistics against exact Gaussian draws, a suite that resumes, the closed form against sampling."""

import json
import math

import pytest
import torch
from deepinv.loss.metric import SSIM
from deepinv.physics import GaussianNoise, Inpainting
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from scipy import stats
from toys import tiny_unet

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.benchmarks import calibration, studies
from deepinv_dmilo.benchmarks.calibration import (
    SAMPLINGS,
    Calibration,
    Sampling,
    central_probability,
    coverage,
    predicted_error,
    squared_error,
)
from deepinv_dmilo.benchmarks.calibration_report import calibration_table, closed_form_table, open_study
from deepinv_dmilo.benchmarks.closed_form import ClosedForm, GaussianImages, compared
from deepinv_dmilo.benchmarks.methods import METHODS
from deepinv_dmilo.benchmarks.records import append_lines, read_lines
from deepinv_dmilo.benchmarks.studies import draw_pictures
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.metrics import perceptual_metrics


def gaussian_draws(samples, spread=1.0, n=40_000):
    """Samples of entries of different means and deviations, too narrow by ``spread``, and their truth."""
    rng = torch.Generator().manual_seed(0)
    mean, std = (torch.rand(n, generator=rng, dtype=torch.float64) for _ in range(2))
    drawn = torch.randn(samples + 1, n, generator=rng, dtype=torch.float64)
    return mean + spread * std * drawn[1:], mean + std * drawn[0]


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 7, 8, 63])
def test_student_probabilities(freedom):
    t = torch.tensor([0.0, 0.3, 1.0, 2.5, 30.0], dtype=torch.float64)
    expected = torch.from_numpy(2 * stats.t.cdf(t.numpy(), freedom) - 1)
    torch.testing.assert_close(central_probability(t, freedom), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 3, 8, 64])
def test_exact_draws_are_calibrated_for_any_number_of_samples(samples):
    drawn, x = gaussian_draws(samples)
    for level in (0.5, 0.8, 0.95):
        # four standard errors of a share of 40,000 entries
        assert coverage(drawn, x, level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 40_000))
    # squares of 40,000 entries of unequal size: a standard error of a little more than 1 %
    assert squared_error(drawn, x) / predicted_error(drawn) == pytest.approx(1, abs=0.05)


def test_draws_of_half_the_deviation_are_told():
    drawn, x = gaussian_draws(8, spread=0.5)
    # (1 + 0.25 / S) / (0.25 (1 + 1 / S)) for S = 8
    assert squared_error(drawn, x) / predicted_error(drawn) == pytest.approx(11 / 3, rel=0.05)
    assert coverage(drawn, x, 0.8) < 0.6


def test_equal_samples_hold_nothing_but_themselves():
    x = torch.rand(100)
    assert coverage(x.expand(4, -1) + 0.1, x, 0.95) == 0
    assert coverage(x.expand(4, -1), x, 0.95) == 1
    assert math.isnan(coverage(torch.zeros(4, 0), torch.zeros(0), 0.5))


def test_only_grey_pixels_count_for_coverage():
    x = torch.tensor([0.0, 1.0, 0.5, 0.4]).repeat(1, 8, 2)
    samples = x + torch.tensor([0.5, 0.5, 0.0, 0.5]).repeat(8, 2) + 1e-3 * torch.randn(4, 1, 8, 8)
    assert calibration.measured(samples, x)["coverage95"] == pytest.approx(0.5)


def test_gaussian_posterior_is_that_of_its_samples():
    """Of randomise-then-optimise in a denser form: x - K (A x + noise - y) of prior draws are exact posterior draws."""
    images, noise, n = GaussianImages((8, 8)), 0.05, 20_000
    physics = Inpainting((1, 8, 8), mask=0.3, rng=torch.Generator().manual_seed(0), noise_model=GaussianNoise(noise))
    rng = torch.Generator().manual_seed(1)
    x = images.draw(n)
    y = physics.A(x[:1]).float()
    mean, covariance = images.posterior(y, physics, noise)
    a = physics.A(torch.eye(64).view(-1, 1, 8, 8)).flatten(1).T.double()
    prior = torch.cov(x.flatten(1).T)
    gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + noise**2 * torch.eye(64))
    surprise = physics.A(x).flatten(1) + noise * torch.randn(n, 64, generator=rng) - y.flatten()
    draws = (x.flatten(1) - surprise @ gain.T).view_as(x)
    found = compared(draws, mean[0], covariance.diagonal().view_as(mean[0]))
    assert found["variance"] == pytest.approx(1, abs=0.02)  # the covariance of 20,000 draws is known to 1 %
    assert found["error"] < 3e-3
    assert found["coverage80"] == pytest.approx(0.8, abs=0.03)  # 64 truths of 64 pixels


def test_the_gaussian_denoiser_is_the_posterior_mean_of_denoising():
    images = GaussianImages((6, 8))
    physics = Inpainting((1, 6, 8), mask=torch.ones(1, 6, 8))
    y = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(images(y, 0.1).double(), images.posterior(y, physics, 0.1)[0], rtol=0, atol=1e-5)


def test_quality_is_that_of_the_mean_and_the_mean_of_that_of_the_samples():
    metrics = perceptual_metrics((3, 64, 64), "cpu", ("stlpips",))
    x = held_out_images("photos")[0, :, 96:160, 96:160]
    samples = x + 0.1 * torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(0))
    found = calibration.measured(samples, x, metrics)
    for name, metric in {"ssim": SSIM(), **metrics}.items():
        assert found[name] == pytest.approx(metric(samples.mean(0)[None], x[None]).item(), abs=1e-6)
        assert found[f"{name}_one"] == pytest.approx(metric(samples, x.expand(4, -1, -1, -1)).mean().item(), abs=1e-6)
    assert found["ssim"] > found["ssim_one"]
    assert found["stlpips"] < found["stlpips_one"]
    assert "stlpips" not in calibration.measured(samples, x)


def test_results_of_before_ssim_are_read(tmp_path):
    head = (
        "task,noise,method,image,samples,psnr,psnr_one,error,predicted,coverage50,coverage80,coverage95,calls,seconds"
    )
    (tmp_path / "results.csv").write_text(f"{head}\na,0.1,DMILO,0,8,20,18,1,1,0.5,0.75,1,5,1\n")
    (row,) = read_lines(Calibration, tmp_path / "results.csv")
    assert "| a | DMILO | 1 | 20.00 | 18.00 | - | - | - | - | 1.00 |" in calibration_table([row])
    append_lines([row], tmp_path / "results.csv")
    assert len(read_lines(Calibration, tmp_path / "results.csv")) == 2


@pytest.fixture
def fake(monkeypatch):
    """Two methods that add noise to A_adjoint(y), one of which is known as DDRM; ``calls`` collects the shapes."""
    calls = []

    def make(case, count):
        def draw(y, physics):
            x = physics.A_adjoint(y)
            calls.append(tuple(x.shape))
            return (x[:, None] + 0.1 * torch.randn(len(x), count, *x.shape[1:])).clamp(0, 1)

        return draw

    monkeypatch.setitem(SAMPLINGS, calibration.DEFAULT_SAMPLER, Sampling(make))
    monkeypatch.setitem(SAMPLINGS, "DDRM, recommended", Sampling(make, "DDRM"))
    return calls


def test_the_suite_writes_tables_and_pictures_and_resumes(tmp_path, fake, capsys):
    out = tmp_path / "out"
    command = ["benchmark", "--suite", "calibration", "--preset", "digits", "--limit", "3", "--batch-size", "2"]
    command += ["--tasks", "super-resolution", "inpainting-70", "--noises", "0.05", "--samples", "4", "--out", str(out)]
    command += ["--methods", calibration.DEFAULT_SAMPLER, "DDRM"]
    assert main(command) == 0
    rows = read_lines(Calibration, out / "results.csv")
    # DDRM does not take super-resolution
    assert len(rows) == 9
    assert len(fake) == 6
    assert {r.samples for r in rows} == {4}
    assert all(0 < r.ssim_one < r.ssim < 1 for r in rows)
    assert all(math.isnan(r.stlpips) for r in rows)
    text = (out / "calibration.md").read_text()
    assert "--methods 'DMILOSampler, 100 calls' DDRM" in text
    assert "| inpainting-70 | DDRM, recommended | 3 |" in text
    for name in ("reliability-0.05.png", "inpainting-70-0.05.png"):
        assert f"]({name})" in text
        with Image.open(out / name) as picture:
            assert picture.width > 500
    lines = (out / "results.csv").read_text().splitlines(keepends=True)
    (out / "results.csv").write_text("".join(lines[:-1]) + lines[-1][:20])
    assert main(command) == 0
    assert len(fake) == 7
    again = read_lines(Calibration, out / "results.csv")
    assert [(r.method, r.image, r.psnr, r.predicted) for r in again] == [
        (r.method, r.image, r.psnr, r.predicted) for r in rows
    ]
    assert main([*command, "--only-write"]) == 0
    assert len(fake) == 7
    capsys.readouterr()
    assert main([*command, "--preset", "gauss"]) == 2
    assert "type one of gaussian, digits, photos, faces" in capsys.readouterr().err
    assert main([*command, "--samples", "5"]) == 2
    assert "holds results of 4 samples; type --samples 4" in capsys.readouterr().err
    assert main([*command, "--samples", "1"]) == 2
    assert "type at least 2" in capsys.readouterr().err


def test_photographs_are_cropped_and_their_rivals_stay_tuned(tmp_path):
    (tmp_path / "b").mkdir()
    study = open_study("photos", "cpu", {"limit": 1}, tmp_path)
    assert study.pictures.shape == (1, 3, 64, 64)
    assert torch.equal(study.pictures[0], held_out_images("photos")[0, :, 96:160, 96:160])
    assert calibration.weight_of(SAMPLINGS["DPS, tuned"], "deblurring", 0.05, study.preset.record) > 0
    assert open_study("photos", "cpu", {"limit": 1, "size": 128}, tmp_path / "b").pictures.shape[2:] == (128, 128)


def test_a_run_does_not_go_on_with_another_crop(tmp_path, capsys):
    open_study("photos", "cpu", {"limit": 1}, tmp_path)
    assert json.loads((tmp_path / "study.json").read_text())["crop"] == 64
    command = ["benchmark", "--suite", "calibration", "--preset", "photos", "--size", "256", "--limit", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "type another --out" in capsys.readouterr().err


def test_pictures_of_the_prior_are_those_of_diffusers(monkeypatch):
    network, scheduler, prior_seed = tiny_unet().eval(), DDPMScheduler(num_train_timesteps=20), studies.FIRST_SEED + 3
    (expected,) = DDPMPipeline(network, scheduler)(
        generator=torch.Generator().manual_seed(prior_seed),
        num_inference_steps=20,
        output_type="np",
        return_dict=False,
    )
    found = draw_pictures(DiffusionPrior(network, scheduler), (1, 16, 16), (2, 3))
    assert found.shape == (2, 1, 16, 16)
    torch.testing.assert_close(found[1], torch.from_numpy(expected[0, :, :, :1]).movedim(-1, 0), rtol=0, atol=1e-4)


def test_the_suite_draws_its_pictures_once(tmp_path, fake, monkeypatch, capsys):
    out, prior = tmp_path / "out", tmp_path / "mine"
    DDPMPipeline(tiny_unet(), DDPMScheduler(num_train_timesteps=20)).save_pretrained(prior)
    command = ["benchmark", "--suite", "calibration", "--prior", str(prior), "--drawn", "--noises", "0.05", "--tasks"]
    command += ["inpainting-70", "--methods", calibration.DEFAULT_SAMPLER, "--out", str(out), "--limit"]
    assert main([*command, "1"]) == 0
    assert json.loads((out / "study.json").read_text())["images"] == studies.DRAWN
    assert (out / "calibration.md").read_text().startswith("# Calibration: pictures drawn from the prior\n")
    first = torch.load(out / "drawn.pt")
    assert first.shape == (1, 1, 16, 16)
    assert main([*command, "2"]) == 0
    kept = torch.load(out / "drawn.pt")
    assert torch.equal(kept[:1], first)
    assert fake == [(1, 1, 16, 16), (2, 1, 16, 16)]
    monkeypatch.setattr(studies, "draw_pictures", None)
    study = open_study("photos", "cpu", {"prior": str(prior), "limit": 2}, out, drawn=True)
    assert study.preset.tasks == calibration.SAMPLED_TASKS
    assert torch.equal(study.pictures, kept)
    capsys.readouterr()
    assert main([*command, "2", "--images", "photos"]) == 2
    assert "leave --images out" in capsys.readouterr().err
    assert main([*command[:5], *command[6:], "2"]) == 2
    assert "type another --out" in capsys.readouterr().err
    exact = ["benchmark", "--suite", "calibration", "--preset", "gaussian", "--out", str(tmp_path / "exact")]
    assert main([*exact, "--drawn"]) == 2
    assert "leave --drawn out" in capsys.readouterr().err


def test_drawn_photographs_are_of_the_size_of_the_crop(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "draw_pictures", lambda prior, shape, numbers: torch.zeros(len(numbers), *shape))
    study = open_study("photos", "cpu", {}, tmp_path, drawn=True)
    assert study.pictures.shape == (4, 3, 64, 64)
    assert calibration.weight_of(SAMPLINGS["DPS, tuned"], "deblurring", 0.05, study.preset.record) > 0
    (tmp_path / "b").mkdir()
    digits = open_study("digits", "cpu", {"limit": 3}, tmp_path / "b", drawn=True)
    assert digits.pictures.shape == (3, 1, 32, 32)
    never_tuned = SAMPLINGS["DAPS, 100 calls, tuned"]
    assert calibration.weight_of(never_tuned, "deblurring", 0.05, digits.preset.record) is None


@pytest.mark.parametrize("drawn", [[], ["--drawn"]])
@pytest.mark.parametrize("task", ["blind-deblurring", "nothing"])
def test_a_task_without_calibration_is_refused(task, drawn, tmp_path, capsys):
    """A blind one would be run with the true blur."""
    command = ["benchmark", "--suite", "calibration", "--tasks", task, *drawn, "--out", str(tmp_path)]
    assert main(command) == 2
    assert f"no task '{task}' in the calibration; type some of" in capsys.readouterr().err


def test_a_flow_draws_no_pictures(tmp_path, capsys):
    DDPMPipeline(tiny_unet(), FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "flow")
    command = ["benchmark", "--suite", "calibration", "--prior", str(tmp_path / "flow"), "--drawn"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "type --images FOLDER instead" in capsys.readouterr().err


def test_the_closed_form_tells_ours_and_diffpir_from_a_point(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["benchmark", "--suite", "calibration", "--preset", "gaussian", "--tasks", "deblurring", "--noises"]
    command += [
        "0.05",
        "--samples",
        "16",
        "--methods",
        "DMILOSampler, 100",
        "DiffPIR",
        "DDRM",
        "DMILO",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    rows = {r.method: r for r in read_lines(ClosedForm, out / "results.csv")}
    assert list(rows) == [calibration.DEFAULT_SAMPLER, "DiffPIR, recommended", "DDRM, recommended", "DMILO"]
    assert rows[calibration.DEFAULT_SAMPLER].variance == pytest.approx(1, abs=0.15)
    assert rows[calibration.DEFAULT_SAMPLER].calls == pytest.approx(100, abs=3)
    assert rows[calibration.DEFAULT_SAMPLER].coverage80 == pytest.approx(0.8, abs=0.05)
    assert rows["DMILO"].variance < 0.1
    assert "| DMILO | 1 |" in (out / "calibration.md").read_text()


def test_quick_is_one_picture_of_few_samples(tmp_path, fake):
    out = tmp_path / "out"
    command = ["benchmark", "--suite", "calibration", "--preset", "digits", "--quick", "--out", str(out)]
    assert main([*command, "--methods", calibration.DEFAULT_SAMPLER]) == 0
    assert fake == [(1, 1, 32, 32)]


def test_tables_pool_images_and_leave_out_those_without_grey_pixels():
    values = {"task": "a", "noise": 0.1, "method": "DMILO", "samples": 8}
    values |= {"psnr": 20.0, "psnr_one": 18.0, "calls": 5.0, "seconds": 1.0}
    held = {"coverage50": 0.5, "coverage80": 0.75, "coverage95": 1.0}
    rows = [
        Calibration(**values, image=0, error=1.0, predicted=1.0, **held),
        Calibration(**values, image=1, error=5.0, predicted=1.0, **dict.fromkeys(held, math.nan)),
    ]
    line = "| a | DMILO | 2 | 20.00 | 18.00 | - | - | - | - | 3.00 | 50 | 75 | 100 | 5 | 1.00 |"
    assert line in calibration_table(rows)
    exact = [ClosedForm("a", 0.1, "DMILO", 8, v, 0.1, 0.5, 0.8, 0.95, 5.0, 1.0) for v in (0.9, 1.1)]
    assert "| DMILO | 2 | 0.90 to 1.10 | 0.100 | 0.50 | 0.80 | 0.95 | 5 |" in closed_form_table(exact)


def test_every_rival_of_the_suite_is_a_method_of_the_reports():
    for name, sampling in SAMPLINGS.items():
        assert sampling.method is None or sampling.method in METHODS, name
        assert not sampling.tuned or METHODS[sampling.method].grid
