"""Measurements, noise and physics that are not on one scale, or not of one physics: told, or refused."""

import warnings

import deepinv as dinv
import pytest
import torch
from toys import AffineNet, observe, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS
from deepinv_dmilo.methods.scale import warn_if_unexplained

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
    with pytest.warns(RuntimeWarning, match=r"1 of 2 images leave \d+% of y unexplained, more than its noise"):
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


def told(y, physics, model):
    """The warnings of a check."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model.check(y, physics)
    return [str(one.message) for one in given]


def rim(x, **kwargs):
    """k-space, of whose frequencies white has only the lowest."""
    return torch.fft.fft2(x, norm="ortho")


NOISE = dinv.physics.GaussianNoise(0.001)
MASK = torch.ones(1, *IMAGE)
MASK[..., :12] = 0
OPERATORS = {
    "denoising": dinv.physics.Denoising(NOISE),
    "mask": dinv.physics.Inpainting(IMAGE, mask=MASK, noise_model=NOISE),
    "mask with noise everywhere": dinv.physics.LinearPhysics(A=lambda x, **_: MASK * x, noise_model=NOISE),
    "k-space": dinv.physics.Physics(A=rim, noise_model=NOISE),
    "sums": dinv.physics.Physics(A=lambda x, **_: torch.cat([x.sum(2), 0 * x.sum(2)], 2), noise_model=NOISE),
    "squares": dinv.physics.Physics(A=lambda x, **_: x.square(), noise_model=NOISE),
    "darkening": dinv.physics.Physics(A=lambda x, **_: torch.exp(-3 * x), noise_model=NOISE),
}


@pytest.mark.parametrize("name", list(OPERATORS)[:-1])
def test_measurements_that_are_far_too_small_are_told(model, name):
    physics = OPERATORS[name]
    physics.img_size = IMAGE
    y = physics.A(torch.rand(2, *IMAGE))
    y[1] *= 0.9
    line, *others = told(y / 255 ** (2 if name == "squares" else 1), physics, model)
    assert ["exceeds y itself" in other for other in others] == [True] * (name == "squares")  # its noise
    assert "of a white image" in line
    assert "check that y was not scaled twice" in line
    assert not told(0.2 * y, physics, model)


@pytest.mark.parametrize("name", OPERATORS)
def test_dark_bright_and_black_images_are_not_told(model, name):
    """A picture may lie between 0.03 and 0.04, be black, or have one bright pixel."""
    physics = OPERATORS[name]
    physics.img_size = IMAGE
    point = torch.zeros(1, *IMAGE)
    point[..., 12:14, 20:22] = 1.0
    for x in (torch.linspace(0.03, 0.04, 40).expand(1, *IMAGE), torch.ones(1, *IMAGE), point):
        assert not told(physics.A(x), physics, model)
    if name == "denoising":
        assert not told(torch.zeros(2, *IMAGE), physics, model)


def test_a_part_of_a_stack_that_is_far_too_small_is_told(model):
    physics = dinv.physics.stack(OPERATORS["denoising"], OPERATORS["mask"])
    y = physics.A(torch.rand(1, *IMAGE))
    y[1] = y[1] / 255
    (line,) = told(y, physics, model)
    assert line.startswith("y is 0.00")


def test_an_operator_that_measures_nothing_has_no_scale(model):
    physics = dinv.physics.LinearPhysics(A=lambda x, **_: 0 * x, A_adjoint=lambda y, **_: y, noise_model=NOISE)
    assert model.check(physics(torch.rand(1, *IMAGE)), physics) == (1, *IMAGE)


def unexplained(y, images, physics, noise_level=None):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        warn_if_unexplained([(observe(y, physics, noise_level=noise_level), images)])
    return [str(one.message) for one in given]


def test_noise_on_measurements_that_no_image_reaches_is_no_misfit():
    mask = (torch.rand(1, *IMAGE) < 0.1).float()
    physics = dinv.physics.LinearPhysics(
        A=lambda x, **_: mask * x, A_adjoint=lambda y, **_: mask * y, noise_model=dinv.physics.GaussianNoise(0.05)
    )
    x = torch.rand(2, *IMAGE)
    assert not unexplained(physics(x), x, physics)
    assert unexplained(physics(x), 1 - x, physics)


@pytest.mark.parametrize("noise_level", [None, 1e-3])
def test_black_is_explained_by_what_is_almost_black(noise_level):
    black, physics = torch.zeros(2, *IMAGE), dinv.physics.Denoising()
    assert not unexplained(black, black + 1e-3, physics, noise_level)
    (line,) = unexplained(black, black + 0.5, physics, noise_level)
    assert "inf" not in line


def test_noise_of_another_unit_is_told(model, physics):
    model.noise_level = 25.0  # of 255 levels
    with pytest.warns(RuntimeWarning, match=r"noise of 25 exceeds y itself; .* 25 / 255") as warned:
        model(physics(torch.rand(2, *IMAGE)), physics)
    assert __file__ in {one.filename for one in warned}  # where the model was called


def test_noise_that_nobody_told_is_no_more_than_y(model):
    """Of dark measurements, by a network that believes in mid-grey; the noise model of ``Denoising()`` is told."""
    dark = torch.full((1, *IMAGE), 0.02)
    grey = DMILO(toy_prior(AffineNet(0.0, 0.0), prediction_type="sample", dtype=torch.float32), max_passes=4)
    assert not any(
        "noise of" in line for line in warned_of(grey, dark, dinv.physics.Denoising(dinv.physics.ZeroNoise()))
    )
    _, metrics = grey(dark, dinv.physics.Denoising(dinv.physics.ZeroNoise()), compute_metrics=True)
    assert max(metrics["noise"][0]) <= 0.0201  # the root mean square of y, and rounding
    (line,) = [line for line in warned_of(grey, dark, dinv.physics.Denoising()) if "noise of" in line]
    assert ", of the noise model (0.1 in a plain Denoising()), exceeds y itself" in line


def warned_of(model, y, physics):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model(y, physics)
    return [str(one.message) for one in given]


def test_a_noise_model_that_moves_the_mean_is_told(model):
    physics = dinv.physics.Denoising(dinv.physics.PoissonNoise(0.05, normalize=False))  # in counts
    with pytest.warns(RuntimeWarning, match="away from A") as warned:
        model(physics(torch.rand(1, *IMAGE)), physics)
    assert {one.filename for one in warned} == {__file__}  # where the model was called
