"""Pictures of any size: the network is given padded ones, and the physics does not know."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import DDIMScheduler, UNet2DModel
from toys import AffineNet, ConvNet, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior, DMPlug
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.priors.wrappers import Padded
from deepinv_dmilo.tools.pictures import as_png, read_picture

METHODS = {
    "dmilo": lambda prior, **s: DMILO(prior, max_passes=10, **s),
    "dmilo-pgd": lambda prior, **s: DMILOPGD(prior, max_passes=10, **s),
    "published": lambda prior, **s: DMILO.from_preset("inpainting", prior, outer_steps=1, inner_steps=2, **s),
    "dmplug": lambda prior, **s: DMPlug(prior, steps=2, **s),
}


@pytest.mark.parametrize(("height", "width"), [(37, 31), (32, 31), (3, 64), (64, 64)])
def test_what_is_padded_is_cropped_exactly(height, width, monkeypatch):
    monkeypatch.setattr(DiffusionPrior, "multiple", 8)
    prior = toy_prior(ConvNet())
    padded = Padded(prior, height, width)
    x = torch.rand(2, 3, height, width).double()
    u = padded.encode(x)
    assert u.shape[2] % 8 == u.shape[3] % 8 == 0
    assert u.shape[2] - height < 8
    torch.testing.assert_close(padded.decode(u), x, rtol=0, atol=1e-15)
    if u.shape[2] > height > 8:
        torch.testing.assert_close(u[..., height, :width], prior.encode(x)[..., height - 2, :])  # a mirror


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(37, 31), (19, 50)])
def test_every_method_takes_every_size(method, size):
    """With images that are those of a batch one by one, and measurements that the padding does not reach."""
    seen = []
    physics = dinv.physics.Inpainting((1, *size), mask=0.5, rng=torch.Generator().manual_seed(0))
    physics.noise_model = GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
    x = torch.rand(2, 1, *size)
    y = physics(x)
    A = physics.A
    physics.A = lambda x, **kw: seen.append(tuple(x.shape[2:])) or A(x, **kw)
    model = METHODS[method](DiffusionPrior(tiny_unet(), DDIMScheduler()))
    x_hat = model(y, physics)
    assert x_hat.shape == x.shape
    assert set(seen) == {size}
    # float32, amplified by steps that are accepted or not, and by Adam's first, sign-like ones
    assert (model(y[1:], physics) - x_hat[1:]).abs().mean() < 1e-3


def test_a_network_that_takes_any_size_is_not_padded():
    physics = dinv.physics.Denoising()
    prior = toy_prior(AffineNet(0.5, 0.0625))
    assert prior.for_images(37, 31) is prior
    assert DMILO(prior, max_passes=5, noise_level=0.1)(torch.rand(1, 3, 37, 31), physics).shape == (1, 3, 37, 31)


def test_attention_tells_what_a_large_picture_costs():
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    prior = DiffusionPrior(unet, DDIMScheduler())
    prior.check_shape((1, 1, 16, 16))
    with pytest.warns(RuntimeWarning, match="fourth power of the side: 256 times that of its 8 x 8 pixels"):
        prior.check_shape((1, 1, 32, 32))


def test_the_command_line_keeps_the_size_of_a_picture(tmp_path):
    tall = torch.cat([held_out_images()[0], held_out_images()[1]], 1)[:, 3:, 1:]  # 61 x 31
    as_png(tall).save(tmp_path / "tall.png")
    command = [
        "reconstruct",
        str(tmp_path / "tall.png"),
        "--prior",
        "digits",
        "--task",
        "inpainting",
        "--simulate",
        "--max-passes",
        "5",
    ]
    assert main([*command, "--out", str(tmp_path / "out.png")]) == 0
    assert read_picture(tmp_path / "out.png").shape == (3, 61, 31)


@pytest.mark.parametrize(
    ("pixels", "options", "told", "widest"),
    [
        (600, [], "600 x 40 pixels: the network sees 2 tiles of 512 x 512 in each pass\n", 512),  # of themselves
        (70, ["--tile", "32"], "70 x 40 pixels: the network sees 6 tiles of 32 x 32 in each pass\n", 32),
        (70, [], "", 72),  # whole, padded
    ],
)
def test_the_command_line_gives_the_network_tiles_of_a_large_picture(
    pixels, options, told, widest, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("deepinv_dmilo.tools.reconstruct_command.WHOLE_PIXELS", 512 * 40)
    seen = []
    denoise = DiffusionPrior.denoise
    monkeypatch.setattr(
        DiffusionPrior, "denoise", lambda self, z, level: seen.append(z.shape[3]) or denoise(self, z, level)
    )
    as_png(held_out_images("photos")[0][:, :40, :40].repeat(1, 1, 15)[..., :pixels]).save(tmp_path / "wide.png")
    command = ["reconstruct", str(tmp_path / "wide.png"), "--task", "denoising", "--simulate", "--device", "cpu"]
    assert main([*command, "--max-passes", "1", *options, "--out", str(tmp_path / "out.png")]) == 0
    assert capsys.readouterr().out.startswith(told or "wrote")
    assert read_picture(tmp_path / "out.png").shape == (3, 40, pixels)
    assert max(seen) == widest


def test_a_blurred_photograph_is_sharpened_with_its_kernel_up_to_its_edges(tmp_path, capsys):
    x = held_out_images("photos")[1:2, :, 40:110, 40:112]
    kernel = torch.zeros(1, 1, 7, 9)
    kernel[..., 3, 2:8] = 1 / 6
    y = dinv.physics.Blur(kernel, padding="valid")(x)[0]
    as_png(y).save(tmp_path / "blurred.png")
    as_png(kernel[0, :, :, :8] * 6).save(tmp_path / "kernel.png")  # an even side
    command = ["reconstruct", str(tmp_path / "blurred.png"), "--task", "motion-deblurring", "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "sharp.png")]) == 2
    assert "needs --kernel FILE" in capsys.readouterr().err
    command += ["--kernel", str(tmp_path / "kernel.png"), "--noise", "0.002", "--max-passes", "10"]
    command += ["--method", "dmilo-pgd"]
    assert main([*command, "--out", str(tmp_path / "sharp.png")]) == 0
    sharp, inner = read_picture(tmp_path / "sharp.png"), x[0, :, 3:-3, 4:-4]
    assert sharp.shape == y.shape == inner.shape
    edge = torch.ones_like(inner, dtype=torch.bool)
    edge[:, 6:-6, 6:-6] = False
    for part in (edge, ~edge):
        assert (sharp - inner)[part].square().mean() < (y - inner)[part].square().mean() / 4


def test_evaluate_takes_pictures_at_a_size_of_the_users(tmp_path):
    (tmp_path / "pictures").mkdir()
    as_png(torch.rand(1, 50, 40)).save(tmp_path / "pictures" / "noise.png")
    command = ["evaluate", str(tmp_path / "pictures"), "--task", "denoising", "--max-passes", "5", "--device", "cpu"]
    command += ["--prior", "digits"]
    assert main([*command, "--size", "38", "--out", str(tmp_path / "out")]) == 0
    assert read_picture(tmp_path / "out" / "images" / "noise.png").shape == (3, 38, 38)
