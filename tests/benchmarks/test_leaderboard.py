"""The suite of deepinv's benchmarks: its CSV files, what is run again, what is said where something is missing."""

import csv

import pytest
import torch
from deepinv.utils import DownloadError
from diffusers import DDPMPipeline, DDPMScheduler
from toys import tiny_unet

from deepinv_dmilo.__main__ import main
from deepinv_dmilo.benchmarks import leaderboard, problems
from deepinv_dmilo.benchmarks.problems import PROBLEMS
from deepinv_dmilo.tools.pictures import as_png


def no_download(*args, **kwargs):
    raise DownloadError("no\nnetwork")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command on two pictures and a tiny prior, without a network."""
    monkeypatch.setattr(problems, "LPIPS", no_download)
    problems.metrics_of.cache_clear()
    for module in ("ram", "drunet"):
        monkeypatch.setattr(f"deepinv.models.{module}.load_state_dict_from_url", no_download)
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        as_png(torch.rand(3, 20, 30)).save(tmp_path / "pictures" / f"{i}.png")
    DDPMPipeline(tiny_unet(3, 16), DDPMScheduler()).save_pretrained(tmp_path / "prior")
    words = ["benchmark", "--suite", "deepinv", "--prior", str(tmp_path / "prior"), "--size", "48"]
    return [*words, "--images", str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]


def lines(file):
    return list(csv.DictReader(file.open()))


def test_each_problem_has_a_file_with_the_columns_of_the_leaderboard(command, tmp_path, capsys):
    assert main([*command, "--methods", "RAM", "DPIR", "DiffPIR"]) == 0
    shown = capsys.readouterr().out
    for network in ("RAM", "DRUNet"):
        assert shown.count(f"{network}: weights not reachable: no network; type --weights {network}=FILE") == 2
    assert "| RAM | - |" in (tmp_path / "out" / "results.md").read_text()
    for name, problem in PROBLEMS.items():
        (line,) = lines(tmp_path / "out" / f"{name}.csv")
        assert line["solver_name"] == f"DiffPIR[denoiser={tmp_path / 'prior'},zeta={problem.zeta}]"
        assert (line["objective_name"], line["dataset_name"]) == (problem.title, "pictures")
        assert (line["p_dataset_img_size"], line["p_dataset_debug"]) == ("48", "False")
        assert {f"p_dataset_{fact}": str(value) for fact, value in problem.facts.items()}.items() <= line.items()
        assert float(line["objective_PSNR"]) > 3
        assert float(line["objective_PSNR_std"]) >= 0


def test_what_is_done_is_not_done_again_and_a_folder_keeps_its_settings(command, tmp_path, capsys):
    name = "div2k_super_resolution_2x"
    command += ["--tasks", name, "--limit", "1"]
    assert main([*command, "--methods", "DiffPIR"]) == 0
    (first,) = lines(tmp_path / "out" / f"{name}.csv")
    assert main([*command, "--methods", "DMILO", "DiffPIR"]) == 0
    again, ours = lines(tmp_path / "out" / f"{name}.csv")
    assert again == first
    assert ours["solver_name"] == f"DMILO[prior={tmp_path / 'prior'}]"
    assert ours["p_dataset_debug"] == "True"  # one picture is no result of the leaderboard
    assert main([*command, "--limit", "2"]) == 2
    assert "type another --out" in capsys.readouterr().err


def test_quick_is_one_picture_two_problems_and_few_methods(command, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        leaderboard, "solve", lambda *of: done.append((of[2].shape[-1], len(of[3]))) or {"PSNR": 20.0, "PSNR_std": 0.0}
    )
    where = command.index("--size")
    assert main([*command[:where], *command[where + 2 :], "--quick"]) == 0
    assert done == [(64, 1)] * 6
    assert len(list((tmp_path / "out").glob("*.csv"))) == 2
    assert main([*command, "--quick", "--methods", "DMILO", "--out", str(tmp_path / "other")]) == 0
    assert done[6:] == [(48, 1)] * 2  # what is typed goes before


def test_measurements_are_the_same_for_every_method(command, tmp_path):
    images = problems.pictures(PROBLEMS["cbsd68_gaussian_denoising"], str(tmp_path / "pictures"), 48, None)
    assert images[0].shape == (3, 48, 48)
    seen = []

    class Method(torch.nn.Module):
        def __init__(self, draws):
            super().__init__()
            self.draws = draws

        def forward(self, y, physics):
            seen.append(y)
            return y + 0 * torch.randn(self.draws).sum()

    prior = torch.nn.Linear(1, 1)
    prior.device = torch.device("cpu")
    case = problems.Case(prior, (3, 48, 48), "", 0.0, 7.0)
    for name in ("cbsd68_gaussian_denoising", "div2k_inpainting_easy"):
        for draws in (1, 5):
            scores = problems.solve(PROBLEMS[name], lambda case, n=draws: Method(n), case, images, [problems.PSNR()])
        torch.testing.assert_close(seen[-4:-2], seen[-2:])
        assert {"PSNR", "PSNR_std"} <= scores.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "deblurring"], "no problem 'deblurring'; type some of cbsd68_gaussian_denoising"),
        (["--noises", "0.1"], "each problem has its noise"),
        (["--images", "no_such_folder"], "--images no_such_folder: no such folder"),
        (["--limit", "0"], "--limit 0: type at least 1"),
        (["--preset", "photos"], "--preset is of the suites report, calibration"),
        (["--prior", "digits"], "--prior digits is not of colour images; type another, such as --prior photos"),
    ],
)
def test_what_is_typed_wrongly_is_refused(words, message, command, capsys):
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err


def test_pictures_that_cannot_be_had_are_told_in_a_line(command, monkeypatch, capsys):
    monkeypatch.setattr("deepinv.datasets.DIV2K", no_download)
    where = command.index("--images")
    assert main([*command[:where], *command[where + 2 :], "--tasks", "div2k_inpainting_easy"]) == 2
    assert "DIV2K: pictures not reachable: no network; type --images FOLDER" in capsys.readouterr().err
