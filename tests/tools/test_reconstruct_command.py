"""The commands that take a picture of the user's, and what their options refuse."""

import os
import re
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from PIL import Image

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, DMILOSampler, Greyscale
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import bundled_priors, held_out_images
from deepinv_dmilo.tools.pictures import as_png, read_picture
from deepinv_dmilo.tools.scoring import registered
from deepinv_dmilo.tools.tasks import gaussian_kernel

DIGITS = ["--prior", "digits"]


@pytest.fixture
def digit(tmp_path):
    file = tmp_path / "digit.png"
    Image.fromarray((held_out_images()[0, 0] * 255).byte().numpy()).save(file)
    return file


@pytest.fixture
def short(monkeypatch):
    """Two inner steps, for tests that look at files and messages."""
    for method in (DMILO, DMILOPGD):
        monkeypatch.setitem(method.__init__.__kwdefaults__, "solver", LBFGS(steps=2))


def test_reconstruct_simulated(digit, tmp_path, capsys, short):
    out = tmp_path / "out.png"
    assert main(["reconstruct", str(digit), *DIGITS, "--task", "deblurring", "--simulate", "--out", str(out)]) == 0
    assert Image.open(out).size == (32, 32)
    assert "(pseudo-inverse) ->" in capsys.readouterr().out
    nonlinear = ["--task", "nonlinear-deblurring", "--max-passes", "5", "--method", "dmilo"]
    assert main(["reconstruct", str(digit), *DIGITS, *nonlinear, "--simulate", "--out", str(out)]) == 0
    assert "PSNR" in capsys.readouterr().out


def test_reconstruct_a_degraded_picture(digit, tmp_path, short):
    out, small, mask = tmp_path / "out.png", tmp_path / "small.png", tmp_path / "mask.png"
    Image.open(digit).resize((8, 8)).save(small)
    assert main(["reconstruct", str(small), *DIGITS, "--task", "super-resolution", "--out", str(out)]) == 0
    assert Image.open(out).size == (32, 32)
    as_png((torch.rand(1, 32, 32) > 0.3).float()).save(mask)
    assert (
        main(["reconstruct", str(digit), *DIGITS, "--task", "inpainting", "--mask", str(mask), "--out", str(out)]) == 0
    )


def test_the_noise_of_a_degraded_picture_is_estimated(digit, tmp_path):
    """Of noise 0.1, clipped to eight bits; where it is taken to be 0.005, all of it stays."""
    x = held_out_images()[:1]
    noisy, out = tmp_path / "noisy.png", tmp_path / "out.png"
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    Image.fromarray((y[0, 0].clamp(0, 1) * 255).byte().numpy()).save(noisy)
    assert (
        main(["reconstruct", str(noisy), *DIGITS, "--task", "denoising", "--max-passes", "25", "--out", str(out)]) == 0
    )
    before, after = (read_picture(file)[:1] for file in (noisy, out))
    psnr = dinv.loss.metric.PSNR()
    assert psnr(after[None], x) > psnr(before[None], x) + 3


def test_several_samples_on_the_command_line(digit, tmp_path):
    """The same as from Python, of the same seed."""
    out, noise = tmp_path / "out.png", dinv.physics.GaussianNoise(0.1)
    options = ["--task", "denoising", "--noise", "0.1", "--num-samples", "2", "--max-passes", "20", "--out", str(out)]
    assert main(["reconstruct", str(digit), *DIGITS, *options]) == 0
    y = read_picture(digit)[None, :1]
    model = DMILO(DiffusionPrior.from_pretrained("digits"), num_samples=2, max_passes=20)
    expected = model(y, dinv.physics.Denoising(noise))
    torch.testing.assert_close(read_picture(out)[None, :1], expected.clamp(0, 1), rtol=0, atol=1.01 / 255)


def test_the_standard_deviation_of_samples_is_written_and_what_is_white(digit, tmp_path, capsys):
    """--uncertainty implies the sampler; both pictures are those that Python gives."""
    out, std, noise = tmp_path / "out.png", tmp_path / "std.png", dinv.physics.GaussianNoise(0.1)
    options = ["--task", "denoising", "--noise", "0.1", "--num-samples", "2", "--max-calls", "52", "--out", str(out)]
    assert main(["reconstruct", str(digit), *DIGITS, *options, "--uncertainty", str(std)]) == 0
    model = DMILOSampler(DiffusionPrior.from_pretrained("digits"), num_samples=2, max_calls=52)
    y = read_picture(digit)[None, :1]
    mean, deviation = model(y, dinv.physics.Denoising(noise), return_std=True)
    torch.testing.assert_close(read_picture(out)[None, :1], mean.clamp(0, 1), rtol=0, atol=1.01 / 255)
    white = deviation.max()
    torch.testing.assert_close(read_picture(std)[None, :1], deviation / white, rtol=0, atol=1.01 / 255)
    assert f"white is a standard deviation of {white.item():.2g}\n" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--uncertainty", "std.png"]])
def test_samples_are_written_beside_their_mean(more, digit, tmp_path, monkeypatch, capsys):
    """--save-samples implies the sampler."""
    monkeypatch.chdir(tmp_path)
    options = ["--task", "denoising", "--noise", "0.1", "--num-samples", "2", "--max-calls", "52", "--save-samples"]
    assert main(["reconstruct", str(digit), *DIGITS, *options, "--out", "out.png", *more]) == 0
    files = [Path(f"out-sample-{k}.png") for k in (1, 2)]
    assert all(f"wrote {file}" in capsys.readouterr().out for file in files[:1])
    model = DMILOSampler(DiffusionPrior.from_pretrained("digits"), num_samples=2, max_calls=52)
    samples = model.solve(
        read_picture(digit)[None, :1], dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    ).samples
    written = torch.stack([read_picture(file)[:1] for file in files])
    torch.testing.assert_close(written, samples[0].clamp(0, 1), rtol=0, atol=1.01 / 255)
    assert Path("std.png").exists() == bool(more)
    files[1].rename("mine.png")
    assert main(["reconstruct", "out-sample-1.png", *DIGITS, *options, "--out", "out.png"]) == 2
    assert "out-sample-1.png would be lost; type another" in capsys.readouterr().err


def test_priors_lists_what_is_bundled(capsys):
    assert main(["priors"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in bundled_priors())
    assert "digits: trained on images 1 x 32 x 32, takes any size, 1,805,121 parameters" in out
    assert "photos: trained on images 3 x 64 x 64, takes any size, 4,063,843 parameters" in out


def test_a_picture_of_a_blur_that_is_not_known_is_sharpened(tmp_path, capsys):
    """It and the kernel are written, and the kernel is one to begin with the next time."""
    x = held_out_images("photos")[3:4, :, 40:110, 40:112]
    y = dinv.physics.Blur(gaussian_kernel(1.5, 9), padding="valid")(x)[0]
    blurred, sharp, found = (tmp_path / name for name in ("blurred.png", "sharp.png", "sharp-kernel.png"))
    as_png(y).save(blurred)
    command = ["reconstruct", str(blurred), "--task", "deblurring", "--blind", "--noise", "0.002", "--device", "cpu"]
    assert main([*command, "--max-passes", "25", "--out", str(sharp)]) == 0
    picture, inner = read_picture(sharp), x[0, :, 4:-4, 4:-4]
    assert picture.shape == inner.shape
    found_it = registered(picture[None], inner[None])[0]  # y does not tell where the image is, and where the blur
    assert (found_it - inner).square().mean() < 0.8 * (y - inner).square().mean()
    assert "found no blur" not in capsys.readouterr().out
    assert not (tmp_path / "sharp-search.png").exists()
    kernel = read_picture(found)[:1]
    assert kernel.shape == (1, 15, 15)  # a quarter of the shorter side
    assert (kernel / kernel.sum() - gaussian_kernel(2.0, 15)[0]).abs().max() > 0.005  # which was the guess
    again = [*command, "--kernel", str(found), "--max-passes", "5"]
    assert main([*again, "--out", str(tmp_path / "again.png")]) == 0
    capsys.readouterr()
    assert main([*again, "--out", str(tmp_path / "sharp.png")]) == 2
    assert "sharp-kernel.png would be lost; type another" in capsys.readouterr().err


def test_a_sharp_picture_is_not_made_worse_by_a_search_for_its_blur(tmp_path, capsys):
    """It comes without its noise, and what the search made of it goes elsewhere."""
    x = held_out_images("photos")[1, :, 60:124, 60:124]
    y = dinv.physics.GaussianNoise(0.03, rng=torch.Generator().manual_seed(0))(x)
    sharp, out = tmp_path / "sharp.png", tmp_path / "out.png"
    as_png(y).save(sharp)
    command = ["reconstruct", str(sharp), "--task", "deblurring", "--blind", "--max-passes", "10", "--device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert re.search(rf"found no blur: .*; {out} is {sharp} without noise, \S+out-search.png what", told)
    error, worse, noise = (
        (p - x).square().mean() for p in map(read_picture, (out, tmp_path / "out-search.png", sharp))
    )
    assert error < 0.6 * noise
    assert error < worse
    assert (tmp_path / "out-kernel.png").exists()
    assert main([*command, "--out", str(tmp_path / "x.png"), "--kernel", str(tmp_path / "out-kernel.png")]) == 0
    (tmp_path / "sharp-search.png").write_bytes(sharp.read_bytes())
    searched = ["reconstruct", str(tmp_path / "sharp-search.png"), *command[2:]]
    assert main([*searched, "--out", str(tmp_path / "sharp.png")]) == 2
    assert "sharp-search.png would be lost; type another" in capsys.readouterr().err


def test_blind_deblurring_is_simulated(digit, tmp_path, capsys):
    command = ["reconstruct", str(digit), *DIGITS, "--task", "motion-deblurring", "--simulate", "--blind"]
    guess = ["--blur-sigma", "1.5"]
    assert main([*command, *guess, "--max-passes", "5", "--out", str(tmp_path / "out.png")]) == 0
    assert "(blurred) ->" in (out := capsys.readouterr().out)
    assert "(dmilo, the blur not told)" in out
    assert f"wrote {tmp_path / 'out-kernel.png'}" in out


def test_published_settings_of_an_unknown_blur_are_those_of_blind_deblurring(digit, tmp_path, monkeypatch):
    asked = []
    preset = DMILO.from_preset
    monkeypatch.setattr(DMILO, "from_preset", lambda name, *args, **kw: asked.append(name) or preset(name, *args, **kw))
    for blind in ([], ["--blind"]):
        command = ["reconstruct", str(digit), *DIGITS, "--task", "motion-deblurring", "--simulate", *blind]
        assert main([*command, "--published", "--max-passes", "30", "--out", str(tmp_path / "out.png")]) == 0
    assert asked == ["deblurring", "blind_deblurring"]


def test_a_picture_that_cannot_be_written_is_kept_elsewhere_and_so_is_the_blur(digit, tmp_path, capsys, monkeypatch):
    """And what was there before is whole."""

    def full(handle):
        raise OSError(28, "No space left on device")

    command = ["reconstruct", str(digit), *DIGITS, "--task", "deblurring", "--blind", "--max-passes", "5"]
    before = digit.read_bytes()
    (tmp_path / "OUT.PNG").write_bytes(before)
    monkeypatch.setattr(os, "fsync", full)
    assert main([*command, "--out", str(tmp_path / "OUT.PNG")]) == 2
    told = capsys.readouterr().err
    assert "OUT.PNG cannot be written: No space left on device; the picture is in" in told
    kept = [Path(place) for place in re.findall(r"the picture is in ([^;\s]+)", told)]
    assert [read_picture(file).shape[1:] for file in kept] == [(32, 32), (9, 9), (32, 32)]
    assert (tmp_path / "OUT.PNG").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"digit.png", "OUT.PNG"}


HOLE = torch.ones(1, 32, 32)
HOLE[:, 8:24, 8:24] = 0


@pytest.mark.parametrize("mask", ["black", "grey levels", "transparent", "the picture"])
def test_what_a_mask_hides_is_found(mask, digit, tmp_path, capsys):
    """Black, darker than half, and transparent are one: not known. Before, what was erased counted as white."""
    x = held_out_images()[0]
    x = x * HOLE + (1 - HOLE)  # a white patch in the digit
    files = {"picture": as_png(x), "black": as_png(HOLE), "grey levels": as_png(0.4 * HOLE + 0.2)}
    files["transparent"] = Image.merge("LA", [Image.new("L", (32, 32), 255), as_png(HOLE)])
    if mask == "the picture":
        files["picture"] = Image.merge("RGBA", [as_png(x)] * 3 + [as_png(HOLE)])
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
    out, chosen = tmp_path / "out.png", "picture" if mask == "the picture" else mask
    command = ["reconstruct", str(tmp_path / "picture.png"), *DIGITS, "--task", "inpainting", "--max-passes", "7"]
    assert main([*command, "--mask", str(tmp_path / f"{chosen}.png"), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "75.0% of the picture is known, where" in told.out
    assert "warning" not in told.err
    assert read_picture(out)[0][HOLE[0] == 0].mean() < 0.8  # a digit is dark there, too


def test_a_grey_file_with_a_colour_prior_is_one_channel(tmp_path, capsys):
    """As Greyscale(prior) from Python; as three channels, they would be three measurements with equal noise."""
    x = held_out_images("photos")[9, :, 64:128, 64:128].mean(0, keepdim=True)
    as_png(x + 0.05 * torch.randn(x.shape)).convert("RGB").save(tmp_path / "noisy.png")  # grey is what its values are
    out = tmp_path / "out.png"
    command = ["reconstruct", str(tmp_path / "noisy.png"), "--task", "denoising", "--noise", "0.05", "--device", "cpu"]
    assert main([*command, "--max-passes", "7", "--out", str(out)]) == 0
    assert "noisy.png is grey: it is reconstructed, and written, as one channel" in capsys.readouterr().out
    model = DMILO(Greyscale(DiffusionPrior.from_pretrained("photos")), max_passes=7)
    y = read_picture(tmp_path / "noisy.png")[None, :1]
    expected = model(y, dinv.physics.Denoising(dinv.physics.GaussianNoise(0.05))).clamp(0, 1)
    with Image.open(out) as picture:
        assert picture.mode == "L"
    torch.testing.assert_close(read_picture(out)[None, :1], expected, rtol=0, atol=1.01 / 255)


def test_a_grey_picture_that_lossy_colours_rounded_is_grey(tmp_path, capsys, short):
    """Of a WebP, which has no grey, channels differ by a level; a grey prior and a mask take such, too."""
    x = held_out_images("photos")[9, :, 64:96, 64:96].mean(0, keepdim=True)
    as_png(x).save(tmp_path / "x.webp", quality=90)
    as_png(HOLE).save(tmp_path / "mask.webp", quality=75)
    values = read_picture(tmp_path / "x.webp")
    assert 0 < (values.amax(0) - values.amin(0)).max() <= 2.01 / 255
    command = ["reconstruct", str(tmp_path / "x.webp"), *DIGITS, "--task", "inpainting", "--max-passes", "5"]
    assert main([*command, "--mask", str(tmp_path / "mask.webp"), "--out", str(tmp_path / "out.png")]) == 0
    assert "of the picture is known" in capsys.readouterr().out


def test_a_kernel_may_be_floats_or_lie_on_nothing(digit, tmp_path):
    """Each is the same kernel: 8 bits, floats, and light on a transparent ground whose colour is white."""
    levels = torch.tensor([0, 51, 102, 255, 102, 51, 0]) / 255
    kernel = (levels[:, None] * levels)[None].mul(255).round() / 255
    as_png(kernel).save(tmp_path / "bits.png")
    Image.fromarray(kernel[0].numpy()).save(tmp_path / "floats.tif")
    Image.merge("LA", [Image.new("L", (7, 7), 255), as_png(kernel)]).save(tmp_path / "alpha.png")
    argv = ["reconstruct", str(digit), *DIGITS, "--task", "deblurring", "--max-passes", "5", "--noise", "0.01"]
    for name in ("bits.png", "floats.tif", "alpha.png"):
        assert main([*argv, "--kernel", str(tmp_path / name), "--out", str(tmp_path / f"out-{name[0]}.png")]) == 0
    one, two, three = (read_picture(tmp_path / f"out-{letter}.png") for letter in "bfa")
    torch.testing.assert_close(two, one, rtol=0, atol=1.01 / 255)
    torch.testing.assert_close(three, one, rtol=0, atol=1.01 / 255)


def test_a_name_that_is_no_text_is_written_and_told(digit, tmp_path, short, capsys):
    out = tmp_path / os.fsdecode(b"\xff \x1b.png")
    assert main(["reconstruct", str(digit), *DIGITS, "--task", "denoising", "--out", str(out)]) == 0
    assert out.exists()
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--task": "sharpening"}, "invalid choice: 'sharpening'"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": "colour"}, "is a colour picture"),
        ({"image": "text"}, "no picture that can be read"),
        ({"--prior": "faces"}, "neither a bundled prior (digits, kernels, photos)"),
        ({"--out": "out.jpg"}, "must end in .png"),
        ({"--out": "nowhere/out.png"}, "does not exist"),
        ({"--task": "inpainting"}, "needs --mask FILE"),
        ({"--device": "gpu9"}, "type --device cpu"),
        ({"--num-layers": "4"}, "type --published as well"),
        ({"--num-layers": "0", "--method": "dmplug"}, "num_layers=0: type a whole number of at least 1"),
        ({"--task": "super-resolution", "--factor": "inf"}, "factor=inf: type a number of at least 1"),
        ({"--task": "super-resolution", "--factor": "0"}, "factor=0: type a number of at least 1"),
        ({"--task": "deblurring", "--blur-sigma": "50"}, "blur_sigma=50.0: type"),
        ({"--task": "inpainting", "--simulate": None, "--missing": "1.5"}, "missing=1.5: type a fraction"),
        ({"--factor": "2"}, "--factor goes with --task super-resolution, not denoising"),
        ({"--task": "motion-deblurring", "--simulate": None, "--blur-sigma": "2"}, "--blur-sigma goes with --task deb"),
        (
            {"--task": "motion-deblurring", "--blind": None, "--blur-sigma": "0"},
            "--blur-sigma 0: type a number above 0",
        ),
        ({"--noise": "nan"}, "noise=nan: type a number"),
        ({"--published": None}, "the paper has no settings for denoising"),
        ({"--published": None, "--method": "dmilo-sampler"}, "dmilo-sampler has no published settings"),
        (
            {"--uncertainty": "std.png", "--method": "dmilo"},
            "--uncertainty goes with --method dmilo-sampler, not dmilo",
        ),
        ({"--uncertainty": "std.png", "--num-samples": "1"}, "--uncertainty needs several samples"),
        (
            {"--save-samples": None, "--method": "dmplug"},
            "--save-samples goes with --method dmilo-sampler, not dmplug; leave one of them out",
        ),
        ({"--save-samples": None, "--num-samples": "1"}, "--save-samples needs several samples; type --num-samples 8"),
        ({"--save-samples": None, "--task": "deblurring", "--blind": None}, "leave --blind out"),
        ({"--save-samples": None, "--num-samples": "-1"}, "num_samples=-1: type a whole number"),
        ({"--uncertainty": "std.png", "--task": "deblurring", "--blind": None}, "leave --blind out"),
        ({"--method": "dmilo-sampler", "--task": "deblurring", "--blind": None}, "takes no unknown blur"),
        ({"--uncertainty": "std.jpg"}, "must end in .png"),
        ({"--uncertainty": "nowhere/std.png"}, "does not exist"),
        ({"--uncertainty": "out"}, "is a file of --out, too; type another"),
        ({"--uncertainty": "digit"}, "would be lost; type another"),
        ({"--max-passes": "8", "--task": "deblurring", "--simulate": None, "--published": None}, "type at least 30"),
        ({"--max-calls": "1"}, "max_calls=1 is less than a pass per layer problem and sample; type at least 2"),
        ({"--max-calls": "8", "--max-passes": "4"}, "both set the budget; type one of them"),
        ({"--task": "deblurring"}, "--blind, or of a Gaussian blur --blur-sigma"),
        ({"--task": "compressed-sensing"}, "type --simulate and a clean one"),
        ({"--task": "motion-deblurring"}, "needs --kernel FILE, a grey picture of the blur, --blind"),
        ({"--blind": None}, "--blind goes with --task deblurring or motion-deblurring, not denoising"),
        (
            {"--task": "deblurring", "--blind": None, "--method": "dmplug"},
            "takes no unknown blur; leave --blind out",
        ),
        ({"--kernel": "kernel.png"}, "--kernel goes with --task deblurring or motion-deblurring"),
        ({"--task": "deblurring", "--kernel": "k.png", "--blur-sigma": "2"}, "both say what the blur is; type one"),
        ({"--noise": "25"}, "--noise 25: images are in [0, 1]; of values up to 255 type --noise 0.098"),
        ({"--tile": "33"}, "tile=33: type a multiple of"),
        ({"image": "."}, "is a folder; type one of its pictures, or deepinv-dmilo evaluate"),
        ({"--task": "inpainting", "--mask": "black"}, "is black: nothing is known, no pixel has more than 0.0%"),
        (
            {"--task": "inpainting", "--mask": "one"},
            "is black: nothing is known, its highest value is 1 of 255; multiply it by 255",
        ),
        ({"--task": "inpainting", "--mask": "full"}, "is white: nothing is missing; give black where it is not known"),
        ({"--task": "inpainting", "--mask": "colour"}, "is a colour picture and a mask takes grey ones"),
        ({"--task": "inpainting", "--mask": "white"}, "has 40 x 40 pixels, IMAGE 32 x 32; resize it"),
        ({"image": "full", "--task": "inpainting", "--mask": "full"}, "is opaque: nothing is missing"),
        ({"--task": "inpainting"}, "type --mask IMAGE, the picture itself, where what is missing is transparent"),
        ({"--task": "deblurring", "--blind": None, "--kernel": "white"}, "has 40 x 40 pixels, IMAGE 32 x 32; crop it"),
        ({"--task": "box-inpainting", "--mask": "mask.png"}, "--mask"),
        ({"--task": "box-inpainting"}, "type --task inpainting --mask FILE"),
        ({"--task": "inpainting", "--mask": "m.png", "--missing": "0.5"}, "both say what is missing; type one"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(change, message, digit, tmp_path, capsys, short):
    pictures = {name: tmp_path / f"{name}.png" for name in ("colour", "text", "black", "one", "full", "white")}
    Image.new("RGB", (32, 32), (250, 3, 3)).save(pictures["colour"])
    Image.new("L", (32, 32), 0).save(pictures["black"])
    Image.new("L", (32, 32), 1).save(pictures["one"])  # a mask of 0 and 1
    Image.new("L", (32, 32), 255).save(pictures["full"])
    Image.new("L", (40, 40), 255).save(pictures["white"])
    pictures["text"].write_text("no picture")
    pictures |= {"out": tmp_path / "out.png", "digit": digit}
    options = {"--task": "denoising", "--prior": "digits", "--out": str(tmp_path / "out.png"), **change}
    image = options.pop("image", digit)
    argv = ["reconstruct", str(pictures.get(image, image))]
    argv += [str(pictures.get(part, part)) for pair in options.items() for part in pair if part is not None]
    try:
        code = main(argv)
    except SystemExit as error:  # argparse's own
        code = error.code
    assert code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("deepinv-dmilo")
    assert err.count("\n") == 1


def test_a_picture_is_clamped_where_noise_led_outside():
    assert list(as_png(torch.tensor([[[-0.1, 0.5, 1.1]]])).getdata()) == [0, 128, 255]
