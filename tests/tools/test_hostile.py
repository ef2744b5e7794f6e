"""Files that mean harm: refused in a line that says which, and nothing of theirs is run."""

import json
import os
import pickle
import sys
from contextlib import suppress

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from hostile_files import (
    Trap,
    change_json,
    drop_tensor,
    lying_weights,
    png_that_claims,
    postscript,
    set_traps,
)
from PIL import EpsImagePlugin, Image
from test_evaluate import DIGITS, OPTIONS, run
from toys import tiny_unet

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.folder import check_names, shown
from deepinv_dmilo.tools.images import open_images
from deepinv_dmilo.tools.pictures import as_png, read_picture


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    as_png(DIGITS[0]).save(folder / "good.png")
    return folder


def evaluated(pictures, out):
    images, names = open_images(str(pictures), (1, 32, 32))
    records = run(out, images=images, image_names=names)
    return [r["name"] for r in records], json.loads((out / "summary.json").read_text())["unreadable"]


def test_a_picture_of_a_billion_pixels(tmp_path, pictures, capsys):
    bomb = pictures / "bomb.png"
    bomb.write_bytes(png_that_claims(50_000, 20_000))
    with pytest.raises(ValueError, match=r"bomb\.png cannot be read: Image size \(1000000000 pixels\) exceeds limit"):
        read_picture(bomb)
    names, unreadable = evaluated(pictures, tmp_path / "out")
    assert (names, list(unreadable)) == (["good"], ["bomb"])
    argv = ["reconstruct", str(bomb), "--out", str(tmp_path / "x.png"), "--task", "inpainting", "--prior", "digits"]
    capsys.readouterr()
    assert main([*argv, "--simulate"]) == 2
    told = capsys.readouterr().err
    assert "1000000000 pixels" in told
    assert told.count("\n") == 1


def test_a_picture_that_memory_may_not_hold_is_refused_by_its_header(pictures):
    (pictures / "large.png").write_bytes(png_that_claims(13_000, 13_000))
    with pytest.raises(ValueError, match=r"13000 x 13000 pixels are more than 89,478,485; crop or shrink it"):
        read_picture(pictures / "large.png")


def test_postscript_is_not_run_whatever_its_name(pictures):
    """PIL would start Ghostscript on it."""
    (pictures / "script.png").write_text(postscript(pictures / "was run"))
    with pytest.raises(ValueError, match="is no picture that can be read; give a PNG or JPEG"):
        read_picture(pictures / "script.png")
    assert not (pictures / "was run").exists()


def test_a_strip_that_would_be_resized_to_gigabytes(tmp_path, pictures):
    Image.new("L", (60_000, 1)).save(pictures / "strip.png")
    names, unreadable = evaluated(pictures, tmp_path / "out")
    assert names == ["good"]
    assert unreadable == {"strip": "the picture of 60000 x 1 pixels is a strip; crop it"}


def test_what_is_no_file_is_not_waited_for(tmp_path, pictures):
    os.mkfifo(pictures / "pipe.png")
    (pictures / "endless.png").symlink_to("/dev/zero")
    (pictures / "nowhere.png").symlink_to(tmp_path / "not there")
    (pictures / "itself.png").symlink_to(pictures / "itself.png")
    (pictures / "folder.png").mkdir()  # no picture, and told by no line
    (pictures / "elsewhere.png").symlink_to(pictures / "good.png")
    names, unreadable = evaluated(pictures, tmp_path / "out")
    assert names == ["elsewhere", "good"]
    assert list(unreadable) == ["endless", "itself", "nowhere", "pipe"]
    assert all("is no file that can be read" in reason for reason in unreadable.values())


def test_file_names_that_a_terminal_would_obey(tmp_path, pictures, capsys):
    for name in ("two\nlines", "\x1b[2Jgone", os.fsdecode(b"\xff")):
        (pictures / f"{name}.png").write_bytes(b"no picture")
    as_png(DIGITS[1]).save(pictures / os.fsdecode(b"\xfe\n.png"))
    names, unreadable = evaluated(pictures, tmp_path / "out")
    assert set(names) == {"good", os.fsdecode(b"\xfe\n")}
    assert len(unreadable) == 3
    told = capsys.readouterr().err
    assert "\x1b" not in told.split("could not be done:")[1]
    assert len(told.split("could not be done:")[1].strip().splitlines()) == 3
    assert shown("a\n b\x1b") == "a b\\x1b"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "../b"], "could lie outside the folder"),
        (["a", "sub/../../b"], "could lie outside the folder"),
        (["/etc/b"], "could lie outside the folder"),
        (["..\\b"], "could lie outside the folder"),
        ([""], "could lie outside the folder"),
        (["a\0"], "could lie outside the folder"),
        (["a", "b", "a"], "two images are named 'a'"),
        (["a", "a.json/b"], r"image 'a' and folder 'a\.json' need one file"),
        (["a", "a.png/b/c"], r"image 'a' and folder 'a\.png' need one file"),
        (["x" * 250], "longer than 200 bytes"),
    ],
)
def test_names_that_lead_elsewhere_or_collide(names, told, tmp_path):
    with pytest.raises(InputError, match=told):
        run(tmp_path / "out", images=DIGITS[: len(names)], image_names=names)
    assert not (tmp_path / "out").exists()


def test_names_that_only_look_alike_are_taken(tmp_path):
    names = ["a", "a.b", "a/b", "..a", "b..", "A", "c.json"]
    check_names(names)
    assert len(run(tmp_path, images=DIGITS[[0] * len(names)], image_names=names)) == len(names)


def test_two_pictures_that_differ_in_their_ending_alone(tmp_path, pictures, capsys):
    as_png(DIGITS[1]).save(pictures / "good.jpg")
    argv = ["evaluate", str(pictures), *OPTIONS, "--prior", "digits", "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "two pictures named good but for their ending; rename one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"name": "digit 1"}', '{"name": "digit 1", "psnr": "9"}', '{"name": "digit 1", "psnr": NaN}'],
)
def test_a_record_that_would_break_the_summary_is_done_again(tmp_path, content):
    whole = run(tmp_path)
    (tmp_path / "records" / "digit 1.json").write_text(content)
    assert [r["name"] for r in run(tmp_path)] == [r["name"] for r in whole]


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "1"])
def test_settings_that_are_none(tmp_path, content):
    run(tmp_path)
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(InputError, match=r"settings\.json is damaged .* give another --out, or remove"):
        run(tmp_path)


@pytest.fixture
def folder(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def refused(folder, capsys):
    """What the command line tells of a prior: a line, and exit code 2."""
    picture = folder.parent / "picture.png"
    as_png(torch.rand(1, 16, 16)).save(picture)
    argv = ["reconstruct", str(picture), "--out", str(folder.parent / "x.png"), "--task", "inpainting", "--simulate"]
    capsys.readouterr()
    assert main([*argv, "--prior", str(folder)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert str(folder) in told
    return told


@pytest.mark.parametrize("lie", ["length", "offsets", "shape", "overlap", "text", "empty"])
def test_a_safetensors_header_that_lies(folder, capsys, lie):
    file = next((folder / "unet").glob("*.safetensors"))
    contents = {"text": b"import os; os.system('true')", "empty": b""}
    file.write_bytes(contents[lie] if lie in contents else lying_weights(file.read_bytes(), lie))
    assert "the UNet2DModel cannot be read" in refused(folder, capsys)


def test_weights_that_lack_tensors_are_not_made_up(folder, capsys):
    file = next((folder / "unet").glob("*.safetensors"))
    lacking = drop_tensor(file)
    assert f"the weights lack 1 tensors of the UNet2DModel, such as {lacking}; download" in refused(folder, capsys)


@pytest.mark.parametrize("part", ["unet", "scheduler"])
@pytest.mark.parametrize(("library", "kind"), [("os", "system"), ("diffusers", "DDPMPipeline"), ("../evil", "Evil")])
def test_a_class_that_is_none_of_diffusers_is_not_loaded(folder, capsys, part, library, kind, monkeypatch):
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(folder)
    change_json(folder / "model_index.json", **{part: [library, kind]})
    assert "which is not read" in refused(folder, capsys)


def test_an_error_has_nothing_that_a_terminal_would_obey(folder, capsys):
    change_json(folder / "model_index.json", unet=["os", "\x1b[2Jsystem"])
    assert r"its unet is a \x1b[2Jsystem of os" in refused(folder, capsys)


@pytest.mark.parametrize("content", ["[" * 100_000, "3", '{"unet": ["diffusers"]}', "\0"])
def test_an_index_that_is_none(folder, capsys, content):
    (folder / "model_index.json").write_text(content)
    assert "is no pipeline index" in refused(folder, capsys)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("scheduler", {"num_train_timesteps": "many"}),
        ("scheduler", {"beta_schedule": "__import__('os')"}),
        ("unet", {"block_out_channels": "many"}),
        ("unet", {"down_block_types": ["os.system", "DownBlock2D"]}),
    ],
)
def test_a_config_of_nonsense(folder, capsys, part, changes):
    change_json(next((folder / part).glob("*config.json")), **changes)
    assert "cannot be read" in refused(folder, capsys)


def test_pickled_weights_are_not_read(folder):
    next((folder / "unet").glob("*.safetensors")).unlink()
    torch.save({"a": Trap(folder / "was run")}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled ones are not read, they can run code"):
        DiffusionPrior.from_pretrained(str(folder))
    assert not (folder / "was run").exists()


def test_the_traps_catch_what_is_run(tmp_path, monkeypatch):
    """Those of docs/reliability.md, which says that nothing was."""
    mark = tmp_path / "mark"

    def was_run():
        found = mark.exists()
        mark.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "system", os.system)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    set_traps(tmp_path, mark)
    assert not was_run()
    os.system("true")
    assert was_run()
    os.system.from_pretrained("folder")
    assert was_run()
    pickle.loads(pickle.dumps(Trap(mark)))
    assert was_run()
    (tmp_path / "script.png").write_text(postscript(mark))
    with Image.open(tmp_path / "script.png") as picture, suppress(OSError):  # no picture comes of it
        picture.load()
    assert was_run()
