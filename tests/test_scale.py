"""Measurements, noise and physics that are not on one scale, or not of one physics: told, or refused."""

import warnings

import deepinv as dinv
import pytest
import torch

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS

IMAGE = (3, 24, 40)


@pytest.fixture
def model(prior):
    return DMILOPGD(prior, solver=LBFGS(steps=2))


@pytest.fixture
def physics(inpainting):
    return inpainting[0]


def test_measurements_far_out_of_scale_are_refused_before_any_work(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    with pytest.raises(
        ValueError, match=r"y is 1\d\d times as large as measurements of images in \[0, 1\]; pass y / 255"
    ):
        model.check(255 * y, physics)
    levels = dinv.physics.Denoising(dinv.physics.GaussianNoise(25.0))
    with pytest.raises(ValueError, match=r"y is .* times as large as measurements of images in \[0, 1\]"):
        model.check(levels(255 * torch.rand(2, *IMAGE)), levels)
    noisy = dinv.physics.Denoising(dinv.physics.GaussianNoise(20.0))
    assert DMILO(model.prior, max_passes=4).check(noisy(torch.rand(1, *IMAGE)), noisy) == (1, *IMAGE)


def test_measurements_on_another_scale_are_told(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    y[1] *= 10
    with pytest.warns(RuntimeWarning, match=r"1 of 2 images leave \d+% of y unexplained, and its noise is less"):
        model(y, physics)


def test_an_image_that_another_physics_made_is_told(prior):
    """The noise is told, and the images leave four times as much: the edges are not those of the measurements."""
    x = torch.zeros(1, *IMAGE)
    x[..., 8:] = 1.0
    blur = dinv.physics.functional.gaussian_blur(sigma=(1.5, 1.5))
    made, taken = (dinv.physics.Blur(blur, padding=padding) for padding in ("replicate", "circular"))
    model = DMILO(prior, noise_level=0.005)
    with pytest.warns(RuntimeWarning, match=r"images leave \d+% of y unexplained, .*edges .* padding=\"valid\""):
        model(made(x), taken)


@pytest.mark.parametrize("scale", [1 / 255, 0.05])
def test_measurements_that_are_far_too_small_are_told(model, scale):
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.001))
    y = torch.rand(1, *IMAGE)
    with pytest.warns(RuntimeWarning, match="of a white image no measurement is below 1; .* scaled twice"):
        model.check(scale * y, physics)
    dark = dinv.physics.Inpainting(IMAGE, mask=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check(0.2 * y, physics)
        model.check(dark(scale * y), dark)  # of a white image some measurements are 0


def test_noise_of_another_unit_is_told(model, physics):
    model.noise_level = 25.0  # of 255 levels
    with pytest.warns(RuntimeWarning, match=r"noise of 25 is more than all that y measures; .* 25 / 255") as warned:
        model(physics(torch.rand(2, *IMAGE)), physics)
    assert __file__ in {one.filename for one in warned}  # where the model was called


def test_a_noise_model_that_moves_the_mean_is_told(model):
    physics = dinv.physics.Denoising(dinv.physics.PoissonNoise(0.05, normalize=False))  # in counts
    with pytest.warns(RuntimeWarning, match="away from A") as warned:
        model(physics(torch.rand(1, *IMAGE)), physics)
    assert {one.filename for one in warned} == {__file__}  # where the model was called
