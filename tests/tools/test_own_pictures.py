"""Pictures from elsewhere: made small as programs do it, blurred as cameras do it."""

import numpy as np
import pytest
import torch
from deepinv.loss.metric import PSNR
from PIL import Image
from torchvision.transforms.functional import center_crop

from deepinv_dmilo import DMILO, DiffusionPrior, Simplex
from deepinv_dmilo.__main__ import main
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.pictures import as_png, read_picture
from deepinv_dmilo.tools.resampling import Resampling
from deepinv_dmilo.tools.task_names import RESAMPLERS
from deepinv_dmilo.tools.tasks import gaussian_kernel, make_physics

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
OLD = (24, 40)


def pillow(x, size, resampler):
    """A grey image (H, W) made smaller by Pillow, in floats."""
    return torch.from_numpy(np.asarray(Image.fromarray(x.numpy()).resize(size[::-1], resampler)).copy())


@pytest.mark.parametrize("size", [(6, 10), (8, 20), (7, 11), (16, 32)])
@pytest.mark.parametrize("name", PILLOW)
def test_a_picture_is_made_smaller_as_pillow_does_it(name, size):
    x = torch.rand(OLD, generator=torch.Generator().manual_seed(0))
    y = Resampling((1, *OLD), size, name).A(x[None, None])[0, 0]
    torch.testing.assert_close(y, pillow(x, size, PILLOW[name]), rtol=0, atol=1e-6)  # float32


def test_the_area_of_a_pixel_is_a_box_of_whole_factors_and_shares_pixels_of_others():
    x = torch.rand(OLD, generator=torch.Generator().manual_seed(0))
    whole = Resampling((1, *OLD), (6, 10), "area").A(x[None, None])[0, 0]
    torch.testing.assert_close(whole, pillow(x, (6, 10), Image.Resampling.BOX), rtol=0, atol=1e-6)
    row = torch.tensor([1.0, 2.0, 4.0])[None, None, None]
    halves = Resampling((1, 1, 3), (1, 2), "area").A(row)
    torch.testing.assert_close(halves, torch.tensor([[[[(1 + 2 / 2) / 1.5, (2 / 2 + 4) / 1.5]]]]))


@pytest.mark.parametrize("factor", [2, 4, 5])
def test_opencvs_nearest_takes_every_nth_pixel_and_its_linear_the_middle_ones(factor):
    """By hand, from OpenCV's documents: the middle of a new pixel lies at (i + 1/2) n - 1/2."""
    x = torch.rand(1, 1, 20, 40, generator=torch.Generator().manual_seed(0))
    size = (20 // factor, 40 // factor)
    assert torch.equal(Resampling((1, 20, 40), size, "opencv-nearest").A(x), x[..., ::factor, ::factor])
    low, high = (factor - 1) // 2, factor // 2
    rows = (x[..., low::factor, :] + x[..., high::factor, :]) / 2
    expected = (rows[..., low::factor] + rows[..., high::factor]) / 2
    torch.testing.assert_close(Resampling((1, 20, 40), size, "opencv-linear").A(x), expected)


@pytest.mark.parametrize("name", RESAMPLERS)
def test_its_adjoint_is_the_transpose_and_white_stays_white(name):
    physics = Resampling((3, *OLD), (7, 11), name)
    x, y = torch.rand(2, 3, *OLD), torch.rand(2, 3, 7, 11)
    torch.testing.assert_close((physics.A(x) * y).sum(), (x * physics.A_adjoint(y)).sum())
    torch.testing.assert_close(physics.A(torch.ones(1, 3, *OLD)), torch.ones(1, 3, 7, 11))


def test_what_no_resampler_is():
    with pytest.raises(ValueError, match="downsampling='cubic': type area or bilinear"):
        Resampling((1, *OLD), (6, 10), "cubic")
    with pytest.raises(ValueError, match=r"factor=1\.5: type a whole number, or downsampling='area' as well"):
        make_physics("super-resolution", (1, *OLD), factor=1.5)
    with pytest.raises(ValueError, match="crop to 20 x 40, or change it, or type downsampling='area' as well"):
        make_physics("super-resolution", (1, *OLD), factor=5)
    for factor in (float("inf"), float("nan"), 0.5):
        with pytest.raises(ValueError, match="type a number of at least 1"):
            make_physics("super-resolution", (1, *OLD), factor=factor)
    physics = make_physics("super-resolution", (1, *OLD), factor=5, downsampling="area")
    assert physics.A(torch.ones(1, 1, *OLD)).shape == (1, 1, 5, 8)


@pytest.mark.parametrize("resampler", [Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_the_command_enlarges_better_than_bicubic(resampler, tmp_path):
    """By a decibel, digits made small by Pillow and stored in 8 bits; where it is not told how."""
    gains = []
    for number in range(4):
        x = held_out_images()[number]
        small = Image.fromarray((255 * x[0]).byte().numpy()).resize((16, 16), resampler)
        small.save(tmp_path / "small.png")
        arguments = ["reconstruct", str(tmp_path / "small.png"), "--task", "super-resolution", "--factor", "2"]
        main([*arguments, "--prior", "digits", "--max-passes", "25", "--out", str(tmp_path / "large.png")])
        bicubic = torch.from_numpy(np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC)) / 255).float()
        ours = read_picture(tmp_path / "large.png")[:1]
        gains.append((PSNR()(ours[None], x[None]) - PSNR()(bicubic[None, None], x[None])).item())
    assert sum(gains) / len(gains) > 1


@pytest.mark.parametrize(("size", "factor", "large"), [((9, 13), "1.5", (14, 20)), ((7, 8), "4", (28, 32))])
def test_any_size_and_factor(size, factor, large, tmp_path):
    Image.new("L", size[::-1], 128).save(tmp_path / "small.png")
    arguments = ["reconstruct", str(tmp_path / "small.png"), "--task", "super-resolution", "--factor", factor]
    options = ["--prior", "digits", "--max-passes", "5", "--downsampling", "lanczos", "--out", str(tmp_path / "x.png")]
    assert main([*arguments, *options]) == 0
    assert Image.open(tmp_path / "x.png").size == large[::-1]


def test_a_camera_blurs_light():
    """Of a black and a white half, the pixel between them keeps half of the light: 0.7354 in sRGB (IEC 61966-2-1)."""
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4], x[..., 5:] = 0.7354, 1.0
    physics = make_physics("deblurring", (1, 9, 9), kernel=torch.ones(1, 1, 1, 9) / 9, linear_light=True)
    torch.testing.assert_close(physics.A(x)[0, 0, 4, 4].item(), 0.7354, rtol=0, atol=1e-4)  # four digits
    grey = torch.full((1, 1, 9, 9), 0.3)
    torch.testing.assert_close(physics.A(grey), grey)


def test_its_picture_is_found_and_its_blur_too():
    """The size of the image is that of the blur inside; an unknown blur goes by the same name."""
    kernel = gaussian_kernel(1.0, 5)
    physics = make_physics("deblurring", (1, 16, 20), kernel=kernel, linear_light=True, is_photograph=True, noise=0.01)
    y = physics(held_out_images()[:1, :, :20, :24])
    prior = DiffusionPrior.from_pretrained("digits")
    assert DMILO(prior).check(y, physics) == (1, 1, 20, 24)
    _, found = DMILO(prior, max_passes=5, unknown={"filter": Simplex(kernel)})(y, physics, return_unknown=True)
    assert found["filter"].shape == (1, 1, 5, 5)
    assert not torch.equal(found["filter"], kernel)


def test_linear_light_on_the_command_line(tmp_path):
    """A picture that was blurred in linear light ends nearer to the truth by a decibel where that is said."""
    x, kernel = held_out_images()[:1], gaussian_kernel(1.5, 9)
    y = make_physics("deblurring", (1, 32, 32), kernel=kernel, linear_light=True, noise=0.0, is_photograph=True).A(x)
    as_png(y[0]).save(tmp_path / "y.png")
    as_png(kernel[0] / kernel.max()).save(tmp_path / "kernel.png")
    told = ["reconstruct", str(tmp_path / "y.png"), "--task", "deblurring", "--kernel", str(tmp_path / "kernel.png")]
    options = ["--prior", "digits", "--max-passes", "25", "--noise", "0.005", "--out", str(tmp_path / "x.png")]
    values = []
    for light in ([], ["--linear-light"]):
        assert main([*told, *options, *light]) == 0
        values.append(PSNR()(read_picture(tmp_path / "x.png")[None, :1], center_crop(x, [24, 24])).item())
    assert values[1] > values[0] + 1
