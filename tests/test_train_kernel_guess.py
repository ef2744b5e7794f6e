"""The training script of the network that guesses a blur kernel."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepinv_dmilo.priors.kernel_guess import KERNEL_SIZE, KernelGuess

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def script(monkeypatch):
    """What the script defines, with few pairs."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("train_kernel_guess")
    monkeypatch.setattr(module, "HELD_OUT_PAIRS", 4)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    return module


def bumps(*centres):
    """Gaussian kernels of standard deviation 2."""
    place = torch.arange(KERNEL_SIZE) - KERNEL_SIZE // 2
    kernels = [torch.exp(-((place[:, None] - i) ** 2 + (place - j) ** 2) / 8) for i, j in centres]
    return torch.stack([k / k.sum() for k in kernels])[:, None]


def test_the_error_is_relative_and_at_the_best_shift(script):
    kernel = bumps((0, 0))
    for shift in ((0, 0), (1, -2), (0.5, 1.25)):
        assert script.squared_error(bumps(shift), kernel).abs() < 1e-4, shift  # of the tails
    half = (0.5 * kernel).expand(2, -1, -1, -1)
    torch.testing.assert_close(script.squared_error(half, kernel.expand(2, -1, -1, -1)), torch.full((2,), 0.25))
    assert script.squared_error(bumps((0, 6)), kernel) > 0.9  # beyond the shifts that are tried
    torch.testing.assert_close(script.off_centre(bumps((1, -2))), torch.tensor([5.0]), atol=1e-3, rtol=0)


def test_blurs_go_round_or_are_cut_off(script):
    pairs = importlib.import_module("blurred_pairs")
    images, kernel = torch.rand(2, 1, pairs.CROP, pairs.CROP), torch.zeros(2, 1, KERNEL_SIZE, KERNEL_SIZE)
    kernel[..., KERNEL_SIZE // 2, -1] = 1  # what is shown at a pixel comes from 16 pixels to its left
    margin, middle = pairs.MARGIN, slice(pairs.MARGIN, -pairs.MARGIN)
    found = pairs.blurred(images, kernel, torch.tensor([True, False]))
    close = {"atol": 1e-5, "rtol": 0}  # float32 transforms
    torch.testing.assert_close(found[0], images[0, :, middle, middle].roll(margin, -1), **close)
    torch.testing.assert_close(found[1], images[1, :, middle, : -2 * margin], **close)


def test_a_training_writes_a_network_and_goes_on(script, monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for k in range(16):
        pixels = rng.integers(0, 255, (170, 180, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{k}.png")
    (tmp_path / "kernels").mkdir()
    for name in ("kernels_100000_0.npy", "held_out_0.npy"):
        np.save(tmp_path / "kernels" / name, rng.integers(0, 255, (5, 1, 36, 36), dtype=np.uint8))
    folders = [f"--{name}={tmp_path / name}" for name in ("kernels", "state", "out")]
    small = ["--batch=2", "--channels", "8", "16", "--kernel-channels", "8", "16"]
    command = ["", f"--data={tmp_path / 'pictures'}", *folders, *small]
    monkeypatch.setattr(sys, "argv", [*command, "--resume"])
    with pytest.raises(SystemExit):
        script.main()
    assert "start without --resume" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--hours=1e-6"])
    script.main()
    elapsed = torch.load(tmp_path / "state" / "training_state.pt", weights_only=True)["elapsed"]
    monkeypatch.setattr(sys, "argv", [*command, f"--hours={elapsed / 3600 + 1e-6}", "--resume"])  # however slow it was
    script.main()
    steps = [
        int(line.split()[1].strip(",")) for line in capsys.readouterr().out.splitlines() if line.startswith("step")
    ]
    assert steps[0] < steps[-1]
    assert (tmp_path / "out" / "README.md").exists()
    kernels = KernelGuess.from_pretrained(tmp_path / "out")(torch.rand(1, 3, 50, 60))
    torch.testing.assert_close(kernels.sum((1, 2, 3)), torch.ones(1))
