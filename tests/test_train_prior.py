"""The training script, on a folder of pictures, stopped and resumed."""

import runpy
import sys
from pathlib import Path

import numpy as np
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
        argv = f"--data {pictures} --out {out} --size 16 --channels 8 16 --batch 4 --hours 0.0004 --device cpu"
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
    assert "18 / 2 (one in 10;" in card
    assert "train_prior.py --data pictures --size 16 --channels 8 16 --batch 4" in card
    assert not (out / "training_state.pt").exists()


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    Image.new("RGB", (24, 20)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    with pytest.raises(SystemExit, match=r"half\.png is no picture .* repair or remove it"):
        runpy.run_path(str(SCRIPT))["load_folder"](tmp_path, grey=False)


def test_pictures_are_read_as_the_command_line_reads_them(tmp_path, capsys):
    """Endings in capitals, 16 bits of grey; not what macOS hides beside each picture."""
    deep = np.linspace(0, 65535, 20 * 24).astype(np.uint16).reshape(20, 24)
    Image.fromarray(deep).save(tmp_path / "DEEP.PNG")
    (tmp_path / "._DEEP.PNG").write_bytes(b"no picture")
    for grey, channels in ((True, 1), (False, 3)):
        (picture,) = runpy.run_path(str(SCRIPT))["load_folder"](tmp_path, grey=grey)
        assert picture.shape == (channels, 20, 24)
        assert np.abs(picture[0].numpy() - deep / 257).max() < 0.501  # half a level
    assert "1 of 2 files are not taken" in capsys.readouterr().err


def test_crops_of_photographs_train_a_network_without_attention(tmp_path, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "photos"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for n in range(6):
        shape = (70 + n, 90, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(pictures / f"{n}.png")
    licences = ["CC-BY-SA-4.0"] * 2 + ["CC0-1.0"] * 2 + ["CC-BY-4.0"] * 2
    table = [f"{n}.png,a package,A | B,{licence}" for n, licence in enumerate(licences)]
    (pictures / "manifest.csv").write_text("\n".join(["file,package,author,licence", *table]) + "\n")
    argv = f"--data {pictures} --out {out} --size 16 --channels 8 16 --batch 4 --hours 0.0004 --device cpu"
    more = "--scales --no-attention --low-noise 2 --hold-out-every 2"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv.split(), *more.split()])
    script = runpy.run_path(str(SCRIPT), run_name="__main__")
    prior = DiffusionPrior.from_pretrained(str(out))
    assert not [m for m in prior.modules() if "Attention" in type(m).__name__]
    assert held_out_images(str(out)).shape == (1, 3, 64, 64)  # of three, the one that is free of terms
    assert (out / "ATTRIBUTION.md").read_text().count("A / B") == 6
    assert "3 / 3 (one in 2;" in (out / "README.md").read_text()

    crops = script["random_crops"]([torch.arange(90, dtype=torch.uint8).expand(3, 70, 90)], 16, 200, torch.Generator())
    width = crops.float().amax((1, 2, 3)) - crops.float().amin((1, 2, 3))
    assert crops.shape == (200, 3, 16, 16)
    assert 12 < width.min() < 20  # native pixels
    assert 55 < width.max() < 71  # the whole short side
    mirrored = crops[:, 0, 0, 0] > crops[:, 0, 0, -1]
    assert 60 < mirrored.sum() < 140


def test_sizes_of_crops_take_turns_and_threads_make_the_same_batches_at_any_step():
    script = runpy.run_path(str(SCRIPT))
    argv = "--out out --scales --size 16 32 --channels 8 16 --batch 8 --data . --workers"
    args = {n: script["parse_arguments"]([*argv.split(), str(n)]) for n in (0, 3)}
    pictures = [torch.randint(256, (3, 70 + n, 90), dtype=torch.uint8) for n in range(3)]
    for n in args:
        supply = script["batches"](args[n], pictures, torch.Generator().manual_seed(0), 0)
        shapes = [next(supply).shape for _ in range(3)]
        assert shapes == [(8, 3, 16, 16), (2, 3, 32, 32), (8, 3, 16, 16)]
    whole, resumed = (script["batches"](args[3], pictures, torch.Generator(), first) for first in (0, 2))
    assert torch.equal([next(whole) for _ in range(3)][2], next(resumed))
    with pytest.raises(SystemExit):
        script["parse_arguments"](["--out", "out", "--size", "16", "32"])
