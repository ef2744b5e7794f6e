"""The training script of the prior of blur kernels."""

import runpy
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from diffusers.training_utils import EMAModel

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

EXAMPLES = Path(__file__).parent.parent / "examples"
KINDS = ("motion", "diffraction", "gaussian", "disk", "line", "delta", "pair")


@pytest.fixture
def script(monkeypatch):
    """What the script defines, with few held-out kernels."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("train_prior.HELD_OUT_KEPT", 20)
    return runpy.run_path(str(EXAMPLES / "train_kernels.py"))


def assert_centred_kernels(kernels, middle=16):
    """Non-negative, of sum 1, with the centre of mass within half a pixel of the middle."""
    place = torch.arange(33) - middle
    assert kernels.shape[1:] == (1, 33, 33)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum((1, 2, 3)), torch.ones(len(kernels)))
    assert (kernels.sum(-1) * place).sum(-1).abs().max() <= 0.501
    assert (kernels.sum(-2) * place).sum(-1).abs().max() <= 0.501


def test_kernels_of_every_kind_are_centred_and_come_back_from_images(script):
    rng = torch.Generator().manual_seed(0)
    for kind in KINDS:
        kernels = torch.cat([script["centred"](script["normalised"](script[kind](5, rng))) for _ in range(6)])[:, None]
        assert len(kernels) >= 20, kind
        assert_centred_kernels(kernels)
    kernels = script["generate"](60, seed=0)
    images = script["to_images"](kernels)
    assert len(kernels) == 60
    assert_centred_kernels(kernels)
    assert images.shape == (60, 1, 36, 36)
    assert images.amin() == 0
    torch.testing.assert_close(images.amax((1, 2, 3)), torch.ones(60))
    torch.testing.assert_close(script["to_kernels"](images), kernels)


@pytest.mark.parametrize("options", [["--kernels", "41"], ["--seed", "1"]])
@pytest.mark.parametrize("kept", [{"images": 40, "seed": 0}, {}], ids=["state", "state of before"])
def test_a_state_goes_on_with_its_own_kernels_only(script, kept, options, tmp_path, monkeypatch, capsys):
    torch.save({"step": 1, **kept}, tmp_path / "training_state.pt")
    argv = f"--state {tmp_path} --out {tmp_path} --kernels 40 --resume"
    monkeypatch.setattr(sys, "argv", ["train_kernels.py", *argv.split(), *options])
    if not kept:
        assert script["parse_arguments"]().resume
        return
    with pytest.raises(SystemExit):
        script["parse_arguments"]()
    assert "began with other kernels; type --kernels 40 --seed 0" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npy"))  # none were generated


def test_kernels_become_a_prior_also_after_a_stop(script, tmp_path, monkeypatch):
    state, out = tmp_path / "state", tmp_path / "kernels"

    def train(*options):
        argv = f"--state {state} --out {out} --kernels 40 --channels 8 16 --batch 4 --hours 0.0006 --device cpu"
        monkeypatch.setattr(sys, "argv", ["train_kernels.py", *argv.split(), *options])
        runpy.run_path(str(EXAMPLES / "train_kernels.py"), run_name="__main__")

    with monkeypatch.context() as patch:
        patch.setattr(EMAModel, "step", Mock(side_effect=[None, KeyboardInterrupt]))
        with pytest.raises(SystemExit, match="with --resume goes on"):
            train()
    stopped, made = torch.load(state / "training_state.pt", weights_only=True), (state / "kernels_40_0.npy").stat()
    assert (stopped["step"], stopped["images"], stopped["seed"]) == (1, 40, 0)
    train("--resume")
    ended = torch.load(state / "training_state.pt", weights_only=True)  # stays, for more hours
    assert ended["step"] > 1
    assert ended["elapsed"] > stopped["elapsed"]
    assert (state / "kernels_40_0.npy").stat().st_mtime_ns == made.st_mtime_ns
    prior = DiffusionPrior.from_pretrained(out)
    assert prior.image_shape == (1, 36, 36)
    assert_centred_kernels(script["to_kernels"](held_out_images(out)))
    card = (out / "README.md").read_text()
    assert "40 / 20, of other seeds" in card
    assert f"{ended['step']} steps of 4 images" in card
    assert card.count("clipped and normalised") == 3
