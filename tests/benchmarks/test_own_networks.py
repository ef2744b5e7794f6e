"""The tools that come with a network of their own: where its weights are from, what is said where there are none."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from deepinv.models import RAM, Denoiser, DRUNet, MPRNet, Reconstructor
from deepinv.physics import BlurFFT
from deepinv.utils import DownloadError

from deepinv_dmilo.__main__ import main
from deepinv_dmilo.benchmarks import own_networks, report
from deepinv_dmilo.benchmarks.methods import METHODS
from deepinv_dmilo.benchmarks.records import Row, read_lines
from deepinv_dmilo.benchmarks.studies import PRESETS, Study
from deepinv_dmilo.tools.tasks import make_physics

OWN = [name for name, method in METHODS.items() if method.own_network]
BLIND = ["kernel network, DMILO", "MPRNet"]


class SmallRAM(Reconstructor, Denoiser):
    """RAM's protocol: one call with the physics."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, y, physics):
        return self.scale * physics.A_adjoint(y)


class SmallKernels(torch.nn.Module):
    """The protocol of deepinv's network of kernels: two that count equally, and differ from image to image."""

    def __init__(self):
        super().__init__()
        self.side = torch.nn.Parameter(torch.zeros(1))

    def forward(self, y):
        kernels = torch.zeros(len(y), 1, 2, 33, 33)
        for i in range(len(y)):
            kernels[i, 0, 0, 16, 16 + i] = kernels[i, 0, 1, 17, 16] = 1
        return {"filters": kernels, "multipliers": torch.full((len(y), 1, 2, *y.shape[2:]), 0.5)}


def no_download(*args, **kwargs):
    raise DownloadError("Failed to download\nstate dict")


@pytest.fixture
def small(monkeypatch):
    """Networks of deepinv's kinds, small, whose download fails."""

    def make(build, channels, trained):
        if trained:
            no_download()
        return build(channels)

    builds = {
        "RAM": lambda channels: SmallRAM(),
        "DRUNet": lambda channels: DRUNet(channels, channels, nc=(4, 4, 4, 4), nb=1, pretrained=None),
        "KernelIdentificationNetwork": lambda channels: SmallKernels(),
        "MPRNet": lambda channels: MPRNet(
            channels, channels, n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1, pretrained=None
        ),
    }
    for name, build in builds.items():
        network = replace(own_networks.OWN_NETWORKS[name], make=partial(make, build))
        monkeypatch.setitem(own_networks.OWN_NETWORKS, name, network)
    return builds


@pytest.fixture
def weights(small, tmp_path):
    """Files of the weights of small networks for grey images."""
    torch.manual_seed(0)
    files = {name: tmp_path / f"{name}.pth" for name in small}
    for name, build in small.items():
        state = build(1).state_dict()
        torch.save({"state_dict": state} if name == "MPRNet" else state, files[name])  # as deepinv's files are
    return files


@pytest.mark.parametrize(
    ("method", "passes", "calls"),
    [
        ("RAM", 0, 1),
        ("DPIR", 0, 8),
        ("DRUNet, PnP-PGD", 0, 100),
        ("DRUNet as our prior", None, None),
        ("kernel network, DMILO", None, None),
        ("MPRNet", 0, 1),
    ],
)
def test_each_reconstructs_with_the_weights_of_a_file_and_its_calls_are_counted(method, passes, calls, weights):
    study = replace(Study.open(PRESETS["digits"], "cpu"), weights=weights)
    task = "deblurring" if "deblurring" in METHODS[method].tasks else "blind-deblurring"
    x_hat, (cost,) = report.reconstruct(study, METHODS[method], task, 0.05, 0.05, study.pictures[:1], 0)
    assert x_hat.shape == (1, 1, 32, 32)
    assert (cost["passes"], cost["calls"]) == (passes, calls) or (passes is None and 10 < cost["passes"] <= 100)


def test_the_blur_of_the_kernel_network_is_that_of_each_image(weights, monkeypatch):
    """The operator that DMILO gets, with two kernels for each image, is the periodic blur with their mean."""
    seen = []
    monkeypatch.setattr(own_networks.DMILO, "forward", lambda self, y, physics: seen.append(physics) or y)
    study = replace(Study.open(PRESETS["digits"], "cpu"), weights=weights)
    x = study.pictures[:2]
    report.reconstruct(study, METHODS["kernel network, DMILO"], "blind-deblurring", 0.05, 0.0, x, 0)
    (physics,) = seen
    assert physics.noise_model.sigma == 0.05
    for i in range(2):
        kernel = SmallKernels()(x)["filters"][i : i + 1].mean(2)
        expected = BlurFFT((1, 32, 32), filter=kernel).A(x[i : i + 1])
        torch.testing.assert_close(physics.A(x)[i : i + 1], expected, rtol=0, atol=1e-5)


def test_those_of_linear_physics_are_asked_for_no_other():
    study = Study.open(PRESETS["digits"], "cpu")
    for task, taken in {
        "deblurring": [m for m in OWN if m not in BLIND],
        "nonlinear-deblurring": ["DRUNet as our prior"],
        "blind-deblurring": BLIND,
    }.items():
        assert [m for m in OWN if report.applies(study, METHODS[m], task)] == taken


def test_a_run_without_weights_says_so_in_a_line_and_goes_on(small, tmp_path, capsys):
    command = ["benchmark", "--suite", "report", "--preset", "digits", "--tasks", "denoising", "--noises", "0.05"]
    command += ["--limit", "1", "--out", str(tmp_path / "out"), "--methods", "pseudo-inverse", "RAM", "DPIR", "DRUNet"]
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    for name in ("RAM", "DRUNet"):
        line = f"{name}: weights not reachable: Failed to download state dict; type --weights {name}=FILE"
        assert shown.count(line) == 1
        assert line in (tmp_path / "out" / "report.md").read_text()
    table = (tmp_path / "out" / "report.md").read_text().split("| PSNR ")[1].split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in table[3:]] == [
        "| *with a network of their own*",
        *(f"| {m}" for m in OWN[:4]),
    ]
    assert table[4] == "| RAM | - | - |"
    assert {row.method for row in read_lines(Row, tmp_path / "out" / "results.csv")} == {"pseudo-inverse"}
    assert main([*command, "pseudo-inverse"]) == main([*command, "--only-write"]) == 0  # no further download is tried
    again = (tmp_path / "out" / "report.md").read_text()
    assert table == again.split("| PSNR ")[1].split("\n\n")[0].splitlines()
    assert line in again


def test_lines_of_blind_tasks_have_no_numbers_where_there_are_no_weights(small, tmp_path, capsys):
    command = ["benchmark", "--suite", "report", "--preset", "digits", "--tasks", "blind-deblurring", "denoising"]
    command += ["--noises", "0.05", "--limit", "1", "--out", str(tmp_path), "--methods", "pseudo-inverse", "BlindRL"]
    assert main([*command, "kernel network, DMILO", "MPRNet"]) == 0
    assert "MPRNet: weights not reachable" in capsys.readouterr().err
    known, blind = (tmp_path / "report.md").read_text().split("## Blind, ")
    assert "| MPRNet | - | - |" in blind
    assert "| kernel network, DMILO | - | - |" in blind
    assert "| MPRNet" not in known


def test_weights_by_hand_are_taken_for_all_that_use_the_network(weights, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["benchmark", "--suite", "report", "--preset", "digits", "--tasks", "denoising", "--noises", "0.05"]
    command += ["--limit", "1", "--out", str(out), "--methods", "DPIR", "RAM"]
    command += [word for name, file in weights.items() for word in ("--weights", f"{name}={file}")]
    assert main(command) == 0
    assert {row.method for row in read_lines(Row, out / "results.csv")} == {"DPIR", "RAM"}
    text = (out / "report.md").read_text()
    assert "not reachable" not in text
    assert f"DRUNet has {own_networks.OWN_NETWORKS['DRUNet'].about}." in text
    assert f"--weights RAM={weights['RAM']} DRUNet={weights['DRUNet']}" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [("RAM", "type NAME=FILE"), ("BAM=file", "a name of RAM, DRUNet"), ("RAM=no/such.pth", "no such file")],
)
def test_weights_that_are_typed_wrongly_are_refused_at_once(given, message, tmp_path, capsys):
    assert main(["benchmark", "--suite", "report", "--out", str(tmp_path), "--weights", given]) == 2
    assert message in capsys.readouterr().err
    assert main(["benchmark", "--weights", "RAM=file"]) == 2
    assert "--weights is of the suites report, deepinv; type --suite report" in capsys.readouterr().err


def test_a_file_of_something_else_is_told_in_a_line(small, tmp_path):
    files = {"RAM": tmp_path / "ram.pth", "DRUNet": tmp_path / "drunet.pth"}
    torch.save({"other": torch.ones(1)}, files["RAM"])
    files["DRUNet"].write_text("no weights")
    reasons = own_networks.unreachable(["RAM", "DRUNet", "DRUNet"], 1, files)
    assert reasons.keys() == files.keys()
    assert "ram.pth has no scale" in reasons["RAM"]
    assert all("\n" not in reason and reason.endswith("=FILE") for reason in reasons.values())


def test_deepinvs_own_networks(monkeypatch, tmp_path):
    """Real ones, untrained: RAM on images that it pads; what deepinv raises where its download fails."""
    for module in ("ram", "drunet", "kernel_network", "third_party.mprnet"):
        monkeypatch.setattr(f"deepinv.models.{module}.load_state_dict_from_url", no_download)
    assert own_networks.unreachable(own_networks.OWN_NETWORKS, 3, {}).keys() == own_networks.OWN_NETWORKS.keys()
    assert "MPRNet" in own_networks.unreachable(["MPRNet"], 1, {})  # its weights are for colours
    torch.manual_seed(0)
    torch.save(RAM(pretrained=None).state_dict(), tmp_path / "ram.pth")
    ram = own_networks.open_network("RAM", 1, tmp_path / "ram.pth")
    physics = make_physics("deblurring", (1, 28, 36), noise=0.05)
    with torch.no_grad():
        assert ram(physics(torch.rand(1, 1, 28, 36)), physics).shape == (1, 1, 28, 36)
