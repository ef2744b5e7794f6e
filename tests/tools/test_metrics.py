"""ST-LPIPS with its trained weights, where the package is installed; what is said where it is not."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
from deepinv.loss.metric import PSNR
from diffusers import DDPMPipeline, DDPMScheduler
from toys import tiny_unet

from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.metrics import STLPIPS, open_metric, perceptual_metrics
from deepinv_dmilo.tools.pictures import as_png


@pytest.fixture(scope="module")
def metric():
    pytest.importorskip("stlpips_pytorch.stlpips")
    return STLPIPS()


@pytest.fixture(scope="module")
def x():
    """Two photographs, not square."""
    return torch.stack([held_out_images("photos")[i][:, :72, :96] for i in (0, 3)])


def test_the_weights_are_those_of_the_package_and_nothing_else_is_asked(metric, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    before = torch.random.get_rng_state()
    state = STLPIPS().network.state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    file = Path(sys.modules["stlpips_pytorch"].__file__).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    trained = torch.load(file, map_location="cpu", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in trained.items())
    # the package reads them with strict=False; its list of the linear layers names these again
    assert all(name.startswith("lins.") for name in state.keys() - trained.keys())
    assert not metric.network.training
    assert not any(p.requires_grad for p in metric.parameters())


def test_a_shift_of_a_pixel_is_nearer_than_noise_of_the_same_psnr(metric, x):
    shifted, x = x[..., 1:], x[..., :-1]
    noise = torch.randn(x.shape)
    rms = (shifted - x).square().mean((1, 2, 3), keepdim=True).sqrt()
    noisy = x + noise * rms  # not clamped, so that the PSNR is the same
    torch.testing.assert_close(PSNR()(noisy, x), PSNR()(shifted, x), atol=0.2, rtol=0)
    assert torch.all(metric(shifted, x) < 0.5 * metric(noisy, x))


def test_more_noise_is_further_and_no_change_is_zero(metric, x):
    noise = torch.randn(x.shape)
    assert torch.equal(metric(x, x), torch.zeros(2))
    distances = torch.stack([metric((x + sigma * noise).clamp(0, 1), x) for sigma in (0.02, 0.05, 0.1, 0.2)])
    assert torch.all(distances.diff(dim=0) > 0)
    assert metric.lower_better


def test_a_batch_is_its_images_and_grey_is_three_equal_channels(metric, x):
    other = x.flip(3)
    alone = torch.cat([metric(other[i : i + 1], x[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(metric(other, x), alone)
    grey, other = x[:, :1], other[:, :1]
    repeated = metric(other.expand(-1, 3, -1, -1), grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(metric(other, grey), repeated)


def test_small_images_are_refused_and_left_out(metric, capsys, monkeypatch):
    monkeypatch.setattr("deepinv_dmilo.tools.metrics.PERCEPTUAL", {"stlpips": STLPIPS})  # LPIPS may download
    with pytest.raises(ValueError, match="at least 64 x 64, not of 32 x 80"):
        metric(torch.zeros(1, 3, 32, 80), torch.zeros(1, 3, 32, 80))
    assert perceptual_metrics((1, 32, 80), "cpu") == {}
    assert "left out: the metric stlpips cannot be had: ST-LPIPS takes images of at least" in capsys.readouterr().out
    assert perceptual_metrics((1, 64, 80), "cpu").keys() == {"stlpips"}


def test_without_the_package_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "stlpips_pytorch.stlpips", None)
    with pytest.raises(ImportError, match=r"pip install 'deepinv-dmilo\[perceptual\]'"):
        STLPIPS()
    with pytest.raises(ValueError, match="the metric stlpips cannot be had: ST-LPIPS needs packages"):
        open_metric("stlpips", (3, 64, 64), "cpu")


def settings(out, argv):
    assert main([*argv, str(out)]) == 0
    return json.loads((out / "settings.json").read_text())


def test_evaluate_has_it_in_every_record_where_it_is_named(metric, x, tmp_path):
    pictures, prior, out = (tmp_path / name for name in ("pictures", "prior", "out"))
    pictures.mkdir()
    for i in range(2):
        as_png(x[i, :, :64, :64]).save(pictures / f"{i}.png")
    DDPMPipeline(tiny_unet(3, 64), DDPMScheduler()).save_pretrained(prior)
    options = ["--task", "denoising", "--noise", "0.1", "--max-passes", "2", "--prior", str(prior), "--out", str(out)]
    assert main(["evaluate", str(pictures), *options, "--metrics", "stlpips"]) == 0
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert all(0 < record["stlpips"] < 1 for record in records)
    mean = json.loads((out / "summary.json").read_text())["mean"]
    assert {"psnr", "ssim", "stlpips"} <= mean.keys()
    assert mean["stlpips"] == pytest.approx(sum(record["stlpips"] for record in records) / 2)
    assert main(["evaluate", str(pictures), *options]) == 2  # its records would lack it
    assert "metrics" not in settings(tmp_path / "plain", ["evaluate", str(pictures), *options[:-1]])  # as before
