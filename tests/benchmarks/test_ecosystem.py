"""What others run: deepinv's benchmark runner, its ``test``, benchopt with our solver file, our suite."""

import hashlib
import shutil
from pathlib import Path

import deepinv as dinv
import pandas as pd
import pytest
import torch
from benchopt import BaseSolver
from benchopt.benchmark import Benchmark
from benchopt.runner import _run_benchmark
from benchopt.utils.class_property import classproperty
from deepinv.datasets import TensorDataset
from torch.utils.data import DataLoader
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, DMILOSampler, DMPlug, registry
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.benchmarks.suite import SOLVER_FILE, run_suite

PROTOCOL = Path(__file__).parents[1] / "deepinv_protocol"
METHODS = {
    "dmilo": lambda prior: DMILO(prior, max_passes=6),
    "dmilo-pgd": lambda prior: DMILOPGD(prior, max_passes=6),
    "dmplug": lambda prior: DMPlug(prior, steps=3),
    "dmilo-sampler": lambda prior: DMILOSampler(prior, num_samples=2, max_calls=52),
}


class RunnerSolver(BaseSolver):
    """What deepinv_bench makes of a model: moved and given a device, hashed by its text."""

    name = "runner"
    model = None

    def set_objective(self, train_dataset=None, physics=None):
        self.model.to("cpu")
        self.model.device = "cpu"

    @classproperty
    def _module_filename(cls):
        return Path(__file__).parent / "dynamic"

    @classproperty
    def _file_hash(cls):
        return hashlib.md5(str(cls.model).encode()).hexdigest()

    def run(self, _):
        pass

    def get_result(self):
        return {"model": self.model}


def run_as_deepinv_bench(model, folder):
    """The protocol of ``deepinv_bench.run_benchmark``, which is not on PyPI; the real one where it is installed."""
    try:
        from deepinv_bench import run_benchmark
    except ImportError:
        benchmark = Benchmark(folder, no_cache=True)
        RunnerSolver.model, RunnerSolver.name = model, type(model).__name__
        exit_code, file = _run_benchmark(
            benchmark=benchmark,
            solvers=[(RunnerSolver, {})],
            datasets=benchmark.check_dataset_patterns(["*[debug=False]"]),
            objectives=benchmark.check_objective_filters([]),
            plot_result=False,
            pdb=False,
        )
        assert exit_code == 0
        table = pd.read_parquet(file)
        return table.rename(columns=lambda name: name.replace("objective_", "")).to_dict("records")[0]
    return run_benchmark(model, str(folder))


@pytest.fixture
def folder(tmp_path):
    """A copy of the benchmark, because benchopt writes beside it."""
    return Path(shutil.copytree(PROTOCOL, tmp_path / "protocol"))


@pytest.mark.parametrize("method", METHODS)
def test_deepinv_benchmark_runs_unchanged(method, folder):
    model = METHODS[method](toy_prior(ConvNet(), dtype=torch.float32))
    results = run_as_deepinv_bench(model, folder)
    # the same as a plain call
    x = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    physics = dinv.physics.Downsampling(factor=2, filter="bicubic")
    images = [dinv.loss.PSNR()(model(physics(x[i : i + 1]), physics), x[i : i + 1]).item() for i in range(3)]
    assert results["PSNR"] == pytest.approx(sum(images) / 3, abs=1e-3)
    assert {"PSNR_std", "SSIM", "SSIM_std"} <= set(results)


def test_the_text_that_the_runner_hashes_tells_settings_apart_and_is_stable():
    prior = toy_prior(ConvNet())
    assert str(DMILO(prior, max_passes=6)) == str(DMILO(prior, max_passes=6))
    assert str(DMILO(prior, max_passes=6)) != str(DMILO(prior, max_passes=7))
    assert str(DMILO(prior, max_passes=6)) != str(DMILOPGD(prior, max_passes=6))


@pytest.mark.parametrize("method", METHODS)
def test_deepinv_test(method):
    prior = toy_prior(ConvNet(), dtype=torch.float32)
    x = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    physics = dinv.physics.Inpainting((3, 16, 24), mask=0.5, rng=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x=x), batch_size=2)
    results = dinv.test(METHODS[method](prior), loader, physics, online_measurements=True, device="cpu")
    expected = dinv.loss.PSNR()(METHODS[method](prior)(physics(x), physics), x).mean().item()
    assert results["PSNR"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rng", [0, torch.Generator().manual_seed(0)])
def test_deepinvs_sampler_is_refused(method, rng):
    """It takes every call for a sample, and its initial state, too; a user may call a model as often as it pleases."""
    physics = dinv.physics.Inpainting((3, 8, 8), mask=0.3, noise_model=dinv.physics.GaussianNoise(0.1))
    y, model = torch.rand(1, 3, 8, 8), METHODS[method](toy_prior(ConvNet(), dtype=torch.float32))
    model.rng = rng
    with pytest.raises(ValueError, match=r"initial state among the samples.*; type DMILOSampler\(prior"):
        dinv.sampling.DiffusionSampler(model, max_iter=3, verbose=False)(y, physics)
    assert torch.equal(model(y, physics), model(y, physics)) is (rng == 0)


class Inside(torch.nn.Module):
    """A user's module around a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, y, physics):
        return self.model(y, physics)


class Passing(DMILO):
    """A user's subclass that goes on to ours."""

    def forward(self, y, physics, **kwargs):
        return super().forward(y, physics, **kwargs)


@pytest.mark.parametrize("make", [lambda prior: Inside(DMILO(prior)), Passing])
def test_deepinvs_sampler_is_refused_through_modules_of_others(make):
    physics = dinv.physics.Inpainting((3, 8, 8), mask=0.3, noise_model=dinv.physics.GaussianNoise(0.1))
    y, model = torch.rand(1, 3, 8, 8), make(toy_prior(ConvNet(), dtype=torch.float32))
    sampler = dinv.sampling.DiffusionSampler(model, max_iter=3, verbose=False)
    with pytest.raises(ValueError, match="initial state among the samples"):
        sampler(y, physics)


def test_benchopt_takes_our_solver_file(folder, capsys):
    from benchopt import run_benchmark

    main(["benchmark", "--solver-path"])
    assert Path(capsys.readouterr().out.strip()) == SOLVER_FILE
    table = pd.read_parquet(
        run_benchmark(
            folder.parent / "protocol",
            solver_names=[f"{SOLVER_FILE}[method=dmilo-pgd,prior={_rgb_prior(folder)},max_passes=5]"],
            dataset_names=["pictures[debug=True]"],
            plot_result=False,
        )
    )
    assert table["objective_PSNR"].notna().all()
    assert table["p_solver_method"].tolist() == ["dmilo-pgd"]


def _rgb_prior(folder):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=(16, 24),
        block_out_channels=(4, 4),
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "prior")
    return folder / "prior"


@pytest.fixture
def short_samplers(monkeypatch):
    monkeypatch.setattr("deepinv_dmilo.benchmarks.methods.DPS_STEPS", 3)
    monkeypatch.setattr("deepinv_dmilo.benchmarks.methods.PIGDM_STEPS", 3)


def test_our_suite_writes_tables_and_pictures_and_goes_on_where_it_was_cut_off(tmp_path, short_samplers):
    settings = {"tasks": ["denoising"], "noises": [0.05], "limit": 2, "budgets": [5, 6]}
    rows = run_suite("digits", tmp_path, **settings)
    methods = {r.method for r in rows}
    assert {"dmilo, 5 passes", "dmilo-pgd, 6 passes", "dmplug, 5 passes", "DPS", "DDRM", "pseudo-inverse"} <= methods
    assert {r.image for r in rows} == {0, 1}
    assert all(r.passes <= 5 for r in rows if r.method == "dmilo, 5 passes")
    for name in ("results.parquet", "results.csv", "bars-0.05.png", "convergence-0.05.png"):
        assert (tmp_path / name).stat().st_size > 500
    text = (tmp_path / "results.md").read_text()
    assert "Held-out digits 0 to 1" in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    # once more: from the cache, to the last digit and second
    assert [(r.method, r.psnr, r.seconds) for r in run_suite("digits", tmp_path, **settings)] == [
        (r.method, r.psnr, r.seconds) for r in rows
    ]


def test_suite_runs_methods_of_other_packages_and_keeps_settings_apart(tmp_path, short_samplers, monkeypatch):
    class Backprojection(dinv.models.Reconstructor):
        def __init__(self):
            super().__init__()

        def forward(self, y, physics):
            return physics.A_adjoint(y)

    get, available = registry.get, registry.available
    monkeypatch.setattr(registry, "get", lambda name, *group: Backprojection if name == "other" else get(name, *group))
    monkeypatch.setattr(registry, "available", lambda *group: ["dmilo", "other"] if not group else available(*group))
    settings = {"tasks": ["denoising"], "noises": [0.05], "limit": 1, "budgets": [5]}
    rows = run_suite("digits", tmp_path, solvers=["deepinv[method=DPS,weight=5.0]"], **settings)
    psnr = {r.method: r.psnr for r in rows}
    assert len(psnr) == len(rows)
    assert psnr["other, 5 passes"] == pytest.approx(psnr["pseudo-inverse"], abs=1e-3)
    assert psnr["DPS"] != psnr["deepinv[method=DPS,prior=digits,weight=5.0]"]


def test_suite_refuses_what_it_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="no task 'deblur'; type some of super-resolution"):
        run_suite("digits", tmp_path, tasks=["deblur"])
    with pytest.raises(ValueError, match="--limit 501: type a number from 1 to 500"):
        run_suite("digits", tmp_path, limit=501)


def test_suite_reports_the_rest_where_a_solver_fails(tmp_path, short_samplers, capsys):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from benchopt import BaseSolver\n"
        "class Solver(BaseSolver):\n"
        "    name = 'broken'\n"
        "    def set_objective(self, **kwargs): pass\n"
        "    def run(self, _): raise ArithmeticError('by design')\n"
        "    def get_result(self): return {}\n"
    )
    settings = {"tasks": ["denoising"], "noises": [0.05], "limit": 1, "budgets": [5]}
    methods = {r.method for r in run_suite("digits", tmp_path / "out", solvers=[str(broken)], **settings)}
    assert "dmilo, 5 passes" in methods
    assert "broken" not in methods
    shown = capsys.readouterr()
    assert "by design" in shown.out + shown.err
