"""A data set through ``deepinv-dmilo evaluate``: cut off and resumed, split over processes, in any order and batch."""

import json
import os
import signal
import subprocess
import sys
import time

import deepinv as dinv
import pytest
import torch
from PIL import Image
from torch import nn

from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.evaluate import evaluate, noisy_measurements
from deepinv_dmilo.tools.images import open_images
from deepinv_dmilo.tools.pictures import as_png, read_picture
from deepinv_dmilo.tools.tasks import make_physics

LAUNCH_TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
OPTIONS = ["--task", "inpainting", "--max-passes", "5", "--method", "dmilo"]
DIGITS = held_out_images("digits")[:6]


class Backprojection(nn.Module):
    """Quick and exact; counts its calls and fails at the one numbered ``fails_at``."""

    def __init__(self, fails_at=0):
        super().__init__()
        self.calls, self.fails_at = 0, fails_at

    def forward(self, y, physics):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("cut off")
        return physics.A_adjoint(y)


def names(count=6):
    return [f"digit {i}" for i in range(count)]


def physics(noise=0.1):
    return make_physics("deblurring", (1, 32, 32), noise=noise)


def run(out, model=None, images=DIGITS, image_names=None, **settings):
    settings = {"settings": {"noise": 0.1}, "batch_size": 2, **settings}
    return evaluate(model or Backprojection(), images, image_names or names(), physics(), out, **settings)


def psnrs(records):
    return {r["name"]: r["psnr"] for r in records}


def test_a_record_and_a_picture_for_each_image(tmp_path):
    records = run(tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    assert [r["name"] for r in records] == names()
    with Image.open(tmp_path / "images" / "digit 3.png") as picture:
        assert picture.size == (32, 32)
        assert picture.mode == "L"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"] == 6
    assert summary["mean"]["psnr"] == pytest.approx(sum(r["psnr"] for r in records) / 6)
    assert {"ssim", "residual", "passes", "calls", "seconds"} <= set(summary["std"])
    assert not list(tmp_path.rglob(".*"))


def test_what_was_cut_off_goes_on_and_does_nothing_twice(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="cut off"):
        run(tmp_path / "parts", Backprojection(fails_at=3))
    assert len(list((tmp_path / "parts" / "records").iterdir())) == 4
    assert not (tmp_path / "parts" / "results.jsonl").exists()
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "parts" / "records").iterdir()}
    model = Backprojection()
    assert psnrs(run(tmp_path / "parts", model)) == psnrs(whole)
    assert model.calls == 1
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())


def test_results_depend_neither_on_order_nor_on_batch_nor_on_other_images(tmp_path):
    whole = psnrs(run(tmp_path / "whole"))
    backwards = run(tmp_path / "backwards", images=DIGITS.flip(0), image_names=names()[::-1], batch_size=1)
    assert psnrs(backwards) == pytest.approx(whole, abs=1e-4)
    alone = run(tmp_path / "alone", images=DIGITS[4:5], image_names=names()[4:5])
    assert psnrs(alone) == pytest.approx({"digit 4": whole["digit 4"]}, abs=1e-4)
    other = run(tmp_path / "other", seed=1)
    assert all(abs(psnrs(other)[name] - whole[name]) > 1e-3 for name in names())


def test_noise_follows_from_seed_and_name_and_leaves_the_global_state():
    before = torch.random.get_rng_state()
    x = DIGITS[:1]
    first, again, other = (noisy_measurements(x, physics(), name, 0) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_measurements_in_several_parts(tmp_path):
    """Each part of a stack has noise of its own, none of which depends on the batch."""

    class Mean(nn.Module):
        def forward(self, y, physics):
            return (y[0] + y[1]) / 2

    def stack(seed):
        noises = (dinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(seed + k)) for k in range(2))
        return dinv.physics.StackedPhysics([dinv.physics.Denoising(noise) for noise in noises])

    settings = {"settings": {}, "device": "cpu"}
    together = evaluate(Mean(), DIGITS, names(), stack(0), tmp_path / "a", batch_size=4, **settings)
    alone = evaluate(Mean(), DIGITS, names(), stack(7), tmp_path / "b", batch_size=1, **settings)
    assert psnrs(together) == pytest.approx(psnrs(alone), rel=1e-5)
    assert len(set(psnrs(together).values())) == len(DIGITS)


def test_volumes_are_refused_before_they_are_reconstructed(tmp_path):
    model = Backprojection()
    with pytest.raises(ValueError, match=r"a has shape \(1, 4, 8, 8\), and evaluate scores and writes pictures"):
        evaluate(model, [torch.rand(1, 4, 8, 8)], ["a"], dinv.physics.Denoising(), tmp_path, settings={})
    assert not model.calls


def test_results_of_other_settings_are_not_mixed(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"holds results of other settings \(noise was 0\.1 and is 0\.2\)"):
        run(tmp_path, settings={"noise": 0.2})


def test_the_batch_is_halved_until_it_fits(tmp_path, capsys):
    class Hungry(Backprojection):
        num_samples, micro_batch = 4, None

        def __init__(self, most=3):
            super().__init__()
            self.most = most

        def forward(self, y, physics):
            if (self.micro_batch or 12) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().forward(y, physics)

    model = Hungry()
    run(tmp_path, model, batch_size=3, halve_on_out_of_memory=True)
    assert model.micro_batch == 3
    assert capsys.readouterr().err.count("out of memory with") == 2  # 12, 6; then it stays at 3
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path / "never", Hungry(most=0), batch_size=3, halve_on_out_of_memory=True)


def test_out_of_memory_is_known_by_its_type(tmp_path):
    """As the physics raises it, on any device and in any words; anything else is not tried again."""

    class Full(Backprojection):
        micro_batch = None

        def __init__(self, error):
            super().__init__()
            self.error = error

        def forward(self, y, physics):
            if self.micro_batch is None:
                raise self.error
            return super().forward(y, physics)

    for error in (torch.OutOfMemoryError("HIP: full"), MemoryError()):
        model = Full(error)
        run(tmp_path / type(error).__name__, model, halve_on_out_of_memory=True)
        assert model.micro_batch == 1
    for settings in ({}, {"halve_on_out_of_memory": True}):
        with pytest.raises(ValueError, match="no memory of shape"):
            run(tmp_path / "other", Full(ValueError("no memory of shape")), **settings)
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path / "plain", Full(torch.OutOfMemoryError("HIP: full")))


@pytest.mark.parametrize("content", ["", '{"name": "digit 1", "ps', "[]", '{"name": "digit 2"}', b"\xff\x00"])
def test_a_damaged_record_is_moved_aside_and_its_image_done_again(tmp_path, capsys, content):
    whole = run(tmp_path)
    record = tmp_path / "records" / "digit 1.json"
    record.write_bytes(content if isinstance(content, bytes) else content.encode())
    model = Backprojection()
    assert psnrs(run(tmp_path, model)) == pytest.approx(psnrs(whole), abs=1e-4)  # in a batch of one now
    assert model.calls == 1
    told = capsys.readouterr().err
    assert f"{record} is damaged: moved to digit 1.json.damaged" in told
    assert record.with_name("digit 1.json.damaged").stat().st_size == len(content)
    assert psnrs([json.loads(record.read_text())]).keys() == {"digit 1"}


def test_damaged_settings_are_named(tmp_path):
    run(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings\.json is damaged .* give another --out, or remove"):
        run(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    """A folder of five pictures, of which the second and the fourth cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip("abcde", DIGITS, strict=False):
        as_png(image).save(folder / f"{name}.png")
    (folder / "b.png").write_text("no picture")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:100])  # cut off
    return folder


def test_what_cannot_be_read_is_told_at_the_end_and_tried_again_the_next_time(tmp_path, pictures, capsys):
    def again():
        images, found = open_images(str(pictures), (1, 32, 32))
        return run(tmp_path / "out", images=images, image_names=found)

    assert list(psnrs(again())) == ["a", "c", "e"]
    told = capsys.readouterr().err.splitlines()
    assert told[-3] == "2 of 5 images could not be done:"
    assert told[-2] == f"  b: {pictures / 'b.png'} is no picture that can be read; give a PNG or JPEG"
    assert told[-1].startswith(f"  d: {pictures / 'd.png'} cannot be read")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 3
    assert list(summary["unreadable"]) == ["b", "d"]
    for name in "bd":
        as_png(DIGITS[0]).save(pictures / f"{name}.png")
    before = (tmp_path / "out" / "records" / "a.json").stat().st_mtime_ns
    assert list(psnrs(again())) == ["a", "b", "c", "d", "e"]
    assert (tmp_path / "out" / "records" / "a.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["unreadable"] == {}


def test_when_nothing_can_be_read_there_is_still_a_summary(tmp_path):
    class Damaged:
        def __getitem__(self, i):
            raise SyntaxError("broken PNG file")

    assert run(tmp_path, images=Damaged(), image_names=["a", "b"]) == []
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["images"], summary["mean"], list(summary["unreadable"])) == (0, {}, ["a", "b"])


def test_what_cannot_be_measured_is_null(tmp_path, monkeypatch):
    monkeypatch.setattr("deepinv_dmilo.tools.scoring._resident", lambda field: float("nan"))  # as on macOS
    records = run(tmp_path)
    assert records[0]["memory_mb"] is None
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "memory_mb" not in summary["mean"]
    assert "psnr" in summary["mean"]


def test_data_sets(tmp_path, monkeypatch):
    for name in ("b.png", "sub/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 40), (255, 0, 0)).save(tmp_path / name)
    images, found = open_images(str(tmp_path), (1, 32, 32))
    assert found == ["b", "sub/a"]
    assert images[1].shape == (1, 32, 32)
    colour = open_images(str(tmp_path), (3, 16, 24))[0][0]
    assert colour.shape == (3, 16, 24)
    assert colour[0].min() > 0.9  # red to the corners: cropped, not padded
    assert colour[1].max() < 0.1
    Image.new("RGB", (60, 40)).save(tmp_path / "b.jpg")
    with pytest.raises(ValueError, match="two pictures named b but for their ending"):
        open_images(str(tmp_path), (1, 32, 32))
    assert len(open_images("digits", (1, 32, 32))[1]) == 500
    with pytest.raises(FileNotFoundError, match="neither a folder of pictures, nor a data set of deepinv"):
        open_images("Set15", (1, 32, 32))

    class Fetched(torch.utils.data.Dataset):
        def __init__(self, root, mode="train", download=False, transform=None):
            assert (root, mode, download) == (str(tmp_path), "val", True)
            self.transform = transform

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return self.transform(Image.new("RGB", (50, 50)))

    monkeypatch.setattr("deepinv.datasets.Fetched", Fetched, raising=False)
    images, found = open_images("Fetched", (3, 32, 32), tmp_path)
    assert found == ["00000", "00001"]
    assert images[0].shape == (3, 32, 32)


def command(out, *more, launcher=()):
    launcher = launcher or ["-m"]
    return [sys.executable, *launcher, "deepinv_dmilo", "evaluate", "digits", *OPTIONS, "--out", str(out), *more]


def test_two_processes_give_what_one_gives(tmp_path):
    more = ["--limit", "5", "--batch-size", "2"]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets; sums in another order differ in the last digit
    subprocess.run(command(tmp_path / "one", *more), check=True, capture_output=True, env=threads)
    subprocess.run(command(tmp_path / "two", *more, launcher=LAUNCH_TWO), check=True, capture_output=True, env=threads)
    one, two = (
        [json.loads(line) for line in (tmp_path / out / "results.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    )
    assert len(one) == 5
    keys = ("name", "psnr", "ssim", "residual", "passes", "calls")
    assert [[r[k] for k in keys] for r in two] == [[r[k] for k in keys] for r in one]
    for picture in (tmp_path / "one" / "images").iterdir():
        assert picture.read_bytes() == (tmp_path / "two" / "images" / picture.name).read_bytes()


def test_two_processes_tell_what_neither_could_read(tmp_path, pictures):
    argv = command(tmp_path / "out", "--batch-size", "1", launcher=LAUNCH_TWO)
    argv[argv.index("digits")] = str(pictures)
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1
    assert "2 of 5 images could not be done:" in done.stderr  # both by the second process, which has no record
    summary = json.loads(done.stdout[: done.stdout.index("wrote ")])
    assert (summary["images"], list(summary["unreadable"])) == (3, ["b", "d"])


def test_killed_and_started_again(tmp_path, capsys):
    more = ["--limit", "6", "--batch-size", "1"]
    process = subprocess.Popen(command(tmp_path, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "records"
    deadline = time.monotonic() + 120
    while not (records.is_dir() and list(records.glob("*.json"))):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = {f.name: f.stat().st_mtime_ns for f in records.glob("*.json")}
    assert 0 < len(first) < 6
    assert main(["evaluate", "digits", *OPTIONS, "--out", str(tmp_path), *more]) == 0
    assert len(list(records.glob("*.json"))) == 6
    assert {name: (records / name).stat().st_mtime_ns for name in first} == first
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--limit", "0"], "--limit 0: type a whole number"),
        (["--size", "-5"], "--size -5: type a whole number"),
        (["--batch-size", "0"], "--batch-size 0: type a whole number"),
        (["--micro-batch", "half"], "--micro-batch half: type a whole number of at least 1, or auto"),
        (["--prior", "nothing here"], "neither a bundled prior"),
        (["--save-samples", "--method", "dmilo"], "--save-samples goes with --method dmilo-sampler, not dmilo; leave"),
        (["--metrics", "psnr"], "no metric 'psnr'; type some of lpips, stlpips (PSNR and SSIM are always there)"),
        (["--metrics", "stlpips"], "the metric stlpips cannot be had"),  # digits are too small for it
    ],
)
def test_wrong_options_are_one_line(more, told, tmp_path, capsys):
    assert main(["evaluate", "digits", *OPTIONS, "--out", str(tmp_path / "out"), *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_do_not_go_among_the_pictures(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), *OPTIONS, "--out", str(tmp_path / "results")]) == 2
    assert "is inside" in capsys.readouterr().err


def test_results_in_a_folder_that_is_linked_are_refused_too(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "more").symlink_to(tmp_path / "real")
    options = ["--out", str(tmp_path / "real" / "out"), "--prior", "digits", *OPTIONS]
    assert main(["evaluate", str(tmp_path / "set"), *options]) == 2
    assert "is inside" in capsys.readouterr().err


def test_a_folder_named_as_a_bundled_prior_has_the_prior_of_all_folders(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    as_png(DIGITS[0]).save(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    opened = []

    def refuse(name, *args, **settings):
        opened.append(name)
        raise ValueError("seen")

    monkeypatch.setattr("deepinv_dmilo.tools.evaluate_command.open_prior", refuse)
    assert main(["evaluate", "digits", "--out", "out", *OPTIONS]) == 2
    (tmp_path / "digits").rename(tmp_path / "mine")
    assert main(["evaluate", "digits", "--out", "out", *OPTIONS]) == 2
    assert opened == ["photos", "digits"]


def test_the_standard_deviation_of_each_image_is_kept_and_made_where_it_is_missing(tmp_path):
    command = ["evaluate", "digits", "--task", "inpainting", "--limit", "2", "--max-calls", "52", "--num-samples", "2"]
    command += ["--method", "dmilo-sampler", "--batch-size", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(command) == 0
    before = {f.name: f.read_bytes() for f in (tmp_path / "images").iterdir()}
    assert not (tmp_path / "std").exists()
    for missing in ([], ["00001"]):  # all of them, and one
        for name in missing:
            (tmp_path / "std" / f"{name}.png").unlink()
        assert main([*command, "--uncertainty"]) == 0
        assert {f.name for f in (tmp_path / "std").iterdir()} == before.keys()
    assert {f.name: f.read_bytes() for f in (tmp_path / "images").iterdir()} == before
    for record in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()):
        assert 0.01 < record["std_max"] < 0.75
        with Image.open(tmp_path / "std" / f"{record['name']}.png") as picture:
            assert picture.getextrema()[1] == 255


def test_the_samples_of_each_image_are_kept_and_made_where_one_is_missing(tmp_path):
    command = ["evaluate", "digits", "--task", "inpainting", "--limit", "2", "--max-calls", "52", "--num-samples", "2"]
    command += ["--batch-size", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*command, "--save-samples", "--method", "dmilo-sampler"]) == 0
    assert not (tmp_path / "std").exists()
    folders = [tmp_path / name for name in ("images", "sample-1", "sample-2")]
    before = {f: f.read_bytes() for folder in folders for f in folder.iterdir()}
    assert len(before) == 6
    mean, *samples = (torch.stack([read_picture(f) for f in sorted(folder.iterdir())]) for folder in folders)
    torch.testing.assert_close(mean, sum(samples) / 2, rtol=0, atol=1.01 / 255)
    assert (samples[0] - samples[1]).abs().mean() > 0.01
    written = {f: f.stat().st_mtime_ns for f in before}
    (tmp_path / "sample-2" / "00001.png").unlink()
    assert main([*command, "--save-samples", "--method", "dmilo-sampler"]) == 0
    again = {f for f in before if f.stat().st_mtime_ns != written[f]}
    assert again == {folder / "00001.png" for folder in folders}
    assert {f: f.read_bytes() for folder in folders for f in folder.iterdir()}.keys() == before.keys()
