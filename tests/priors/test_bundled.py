"""The bundled priors and the tasks, on real digits and photographs."""

import subprocess
import sys

import deepinv as dinv
import pytest
import torch
from PIL import Image

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.demo import (
    PHOTOGRAPHS,
    demo_digits,
    demo_photographs,
    format_table,
    run_demo,
    save_picture,
)
from deepinv_dmilo.tools.pictures import read_picture
from deepinv_dmilo.tools.tasks import TASKS, make_physics

DIGITS = ["--prior", "digits"]


@pytest.fixture(scope="module")
def prior():
    return DiffusionPrior.from_pretrained("digits")


@pytest.fixture
def short(monkeypatch):
    """Two inner steps, for tests that look at files and messages."""
    for method in (DMILO, DMILOPGD):
        monkeypatch.setitem(method.__init__.__kwdefaults__, "solver", LBFGS(steps=2))


def test_held_out_digits():
    x = held_out_images()
    assert x.shape == (500, 1, 32, 32)
    assert (x.min(), x.max()) == (0, 1)


def test_the_bundled_prior_predicts_the_noise_of_digits_that_it_never_saw(prior):
    """A network that does not know digits has an error of 1; the card's error, over all levels, is 0.017."""
    u, level = prior.encode(held_out_images()[:32]), prior.family.at(400)
    noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (prior.predict(level.signal * u + level.noise * noise, torch.tensor(400)) - noise).square().mean()
    assert error < 0.03


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize(
    ("task", "noise", "loss"), [("inpainting", 0.0, 0.7), ("denoising", 0.05, 1.0), ("denoising", 0.1, 1.0)]
)
def test_noise_that_nobody_told_is_seen_by_the_network(method, task, noise, loss):
    """At most so many dB below noise that is told; fitted to the last digit, photographs lost seven."""
    x = held_out_images("photos")[12:14, :, 96:160, 96:160]
    told, silent = (make_physics(task, (3, 64, 64), noise=sigma) for sigma in (max(noise, 0.005), 0.0))
    y = make_physics(task, (3, 64, 64), noise=noise)(x)
    model, psnr = method(DiffusionPrior.from_pretrained("photos"), max_passes=25), dinv.loss.metric.PSNR()
    x_hat, metrics = model(y, silent, compute_metrics=True)
    assert (psnr(x_hat, x) > psnr(model(y, told), x) - loss).all()
    if noise:  # what the image leaves unexplained at last, which is fitted a little too closely
        assert all(0.6 < curve[-1] / noise < 1.2 for curve in metrics["noise"])


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_strong_noise_is_removed_about_as_by_one_call_of_the_network(method, noise):
    """Which gives the mean; beginning at levels that do not hide the noise of y lost two dB."""
    x, prior = held_out_images("photos")[12:14, :, 96:160, 96:160], DiffusionPrior.from_pretrained("photos")
    physics, psnr = make_physics("denoising", (3, 64, 64), noise=noise), dinv.loss.metric.PSNR()
    y = physics(x)
    x_hat, x_one = method(prior, max_passes=25)(y, physics), prior.denoiser()(y, noise)
    assert (psnr(x_hat, x) > psnr(x_one, x) - 0.7).all()


def test_photographs_that_never_trained_are_restored_at_four_times_the_training_size():
    """Half of the pixels of a photograph, better than by total variation (deepinv), which knows none."""
    x = held_out_images("photos")[:1, :, 64:192, 32:160]
    assert held_out_images("photos").shape[1:] == (3, 256, 256)
    physics = make_physics("inpainting", (3, 128, 128), missing=0.5)
    y = physics(x)
    psnr = dinv.loss.metric.PSNR()
    x_hat = DMILO(DiffusionPrior.from_pretrained("photos"), max_passes=25)(y, physics)
    variation = dinv.optim.optim_builder(
        "PGD",
        prior=dinv.optim.TVPrior(n_it_max=20),
        data_fidelity=dinv.optim.L2(),
        params_algo={"stepsize": 1.0, "lambda": 0.01},
        max_iter=60,
        early_stop=False,
    )
    assert (psnr(x_hat, x) > psnr(variation(y, physics), x) + 2).all()


def test_the_photographs_prior_denoises_better_than_total_variation():
    x = held_out_images("photos")[:, :, 96:160, 96:160]
    psnr, denoiser = dinv.loss.metric.PSNR(), DiffusionPrior.from_pretrained("photos").denoiser()
    for sigma in (0.05, 0.2):
        y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            best = max(psnr(dinv.models.TVDenoiser()(y, scale * sigma), x).mean() for scale in (0.5, 0.75, 1.0))
            assert psnr(denoiser(y, sigma), x).mean() > best + 1


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_inpainting_beats_the_input_by_far(method, prior):
    x = held_out_images()[:2]
    physics = make_physics("inpainting", (1, 32, 32))
    y = physics(x)
    psnr = dinv.loss.metric.PSNR()
    x_hat = method(prior, max_passes=25)(y, physics)
    assert (psnr(x_hat, x) > psnr(physics.A_dagger(y), x) + 6).all()


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_repeatable_and_leave_the_global_state(task):
    x = held_out_images()[:1]
    before = torch.random.get_rng_state()
    y = [make_physics(task, (1, 32, 32), noise=0.1, seed=seed)(x) for seed in (0, 0, 1)]
    assert torch.equal(y[0], y[1])
    assert not torch.equal(y[0], y[2])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("task", TASKS)
def test_noise_of_a_task_is_in_its_noise_model_alone(task):
    """Also where an image is so large that a random operator is one of fast transforms."""
    physics, x = make_physics(task, (3, 64, 64), noise=0.1), torch.rand(1, 3, 64, 64)
    assert torch.equal(physics.A(x), physics.A(x))


@pytest.mark.parametrize("side", [32, 128])  # a dense matrix, and fast transforms
def test_compressed_sensing_mixes_all_pixels_of_a_channel(side):
    """A pixel reaches measurements all over; a transform along rows alone would leave it in its row."""
    physics = make_physics("compressed-sensing", (3, side, side), noise=0.0)
    x = torch.zeros(1, 3, side, side)
    x[0, :, side // 3, side // 2] = 1
    assert (physics.A(x).abs() > 1e-6).float().mean() > 0.9


def test_demo_table_and_picture(prior, tmp_path, monkeypatch, short):
    monkeypatch.setattr("deepinv_dmilo.tools.demo.DPS_STEPS", 2)
    rows, columns = run_demo(*demo_digits(prior, count=1, verbose=False), verbose=False)
    assert len(rows) == 2 * 5
    evaluations = {row.method: row.evaluations for row in rows}
    assert evaluations["pseudo-inverse"] == 0
    assert evaluations["DMILO"] == 1 + 4 * (2 + 1) + 1  # the start, levels x (inner steps, the image), the mean
    assert evaluations["DiffPIR"] == 100
    assert format_table(rows).count("\n") == 11
    assert all(images.shape == (2, 1, 32, 32) for images in columns.values())
    save_picture(columns, str(tmp_path / "demo.png"))
    assert Image.open(tmp_path / "demo.png").size[0] > 500


def test_the_demo_shows_a_photograph_for_each_of_four_tasks(monkeypatch, short):
    scenes, methods = demo_photographs(DiffusionPrior.from_pretrained("photos"), size=32, verbose=False)
    methods.pop("DiffPIR")
    rows, columns = run_demo(scenes, methods, verbose=False)
    assert [row.task for row in rows[::3]] == list(PHOTOGRAPHS)
    assert all(images.shape == (4, 3, 32, 32) for images in columns.values())
    truth = columns["ground truth"]
    assert len({image.sum().item() for image in truth}) == 4
    errors = {name: (images - truth).square().mean() for name, images in columns.items()}
    assert errors["DMILO"] < 0.2 * errors["pseudo-inverse"]


def test_a_sixteen_bit_picture_keeps_its_values(tmp_path):
    values = (held_out_images()[0, 0] * 65535).to(torch.int32).numpy().astype("uint16")
    Image.fromarray(values).save(tmp_path / "deep.png")
    x = read_picture(tmp_path / "deep.png")
    expected = held_out_images()[0].expand(3, -1, -1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1 / 65535)  # one level


def test_import_is_light():
    """The core imports neither diffusers nor matplotlib's pyplot; deepinv itself is all it costs."""
    code = (
        "import sys, deepinv; before = set(sys.modules); import deepinv_dmilo; new = set(sys.modules) - before;"
        "print([m for m in new if m.split('.')[0] in ('diffusers', 'transformers', 'PIL') or 'pyplot' in m])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("noise", [0.005, 0.05])
def test_plain_denoising_is_as_good_as_one_call_of_the_network(noise):
    """Which is the mean of the images that go with y, and nothing has a smaller error."""
    x = held_out_images("photos")[:2, :, 96:160, 96:160]
    prior, physics = DiffusionPrior.from_pretrained("photos"), make_physics("denoising", (3, 64, 64), noise=noise)
    y, psnr = physics(x), dinv.loss.metric.PSNR()
    with torch.no_grad():
        best = psnr(prior.denoiser()(y, noise), x).mean()
    assert psnr(DMILO(prior, max_passes=10)(y, physics), x).mean() > best - 0.4
