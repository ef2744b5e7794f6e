"""The training script, on a folder of pictures, stopped and resumed."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from PIL import Image

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

SCRIPT = Path(__file__).parent.parent / "examples" / "train_prior.py"


def test_a_folder_of_pictures_becomes_a_prior_also_after_a_stop(tmp_path, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "mine"
    pictures.mkdir()
    for n in range(20):
        Image.new("RGB", (24, 20), (12 * n, 100, 7)).save(pictures / f"{n:02}.png")

    def train(*options):
        argv = f"--data {pictures} --out {out} --size 16 --channels 8 16 --batch 4 --minutes 0.02 --device cpu"
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv.split(), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    with monkeypatch.context() as patch:
        patch.setattr(EMAModel, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match="with --resume goes on"):
            train()
    state = torch.load(out / "training_state.pt", weights_only=True)
    assert state["step"] == 0
    train("--resume")
    prior = DiffusionPrior.from_pretrained(str(out))
    assert prior.image_shape == (3, 16, 16)
    assert held_out_images(str(out)).shape == (2, 3, 16, 16)
    card = (out / "README.md").read_text()
    assert "18 / 2" in card
    assert not (out / "training_state.pt").exists()
