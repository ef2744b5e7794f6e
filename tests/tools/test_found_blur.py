"""A picture without a blur is not given one: from its spectrum, and from a kernel that is almost a point."""

import deepinv as dinv
import pytest
import torch

from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.found_blur import log_likelihood_ratio, why_no_blur
from deepinv_dmilo.tools.tasks import gaussian_kernel, make_physics

POINT = torch.zeros(1, 1, 17, 17)
POINT[..., 8, 8] = 1


def measured(kernel, noise, photo):
    physics = dinv.physics.Blur(kernel, padding="valid", noise_model=dinv.physics.GaussianNoise(noise))
    return physics(held_out_images("photos")[photo : photo + 1, :, 40:184, 40:184])


@pytest.mark.parametrize("photo", range(4))
@pytest.mark.parametrize("noise", [0.005, 0.03])
def test_the_true_blur_is_found_and_is_not_found_where_there_is_none(photo, noise):
    motion = make_physics("motion-deblurring", (3, 64, 64), seed=photo).filter[:, :1]
    for kernel in (gaussian_kernel(1.5, 17), motion):
        blurred, sharp = measured(kernel, noise, photo), measured(POINT, noise, photo)
        assert log_likelihood_ratio(blurred, kernel) > log_likelihood_ratio(sharp, kernel)
        assert "spectrum" in why_no_blur(sharp, kernel)
        if noise == 0.005:
            assert not why_no_blur(blurred, kernel)


def test_a_point_is_no_blur_between_pixels_either():
    between = torch.zeros_like(POINT)
    between[..., 7:9, 7:9] = 0.25
    y = measured(POINT, 0.005, 1)
    for kernel in (POINT, between):
        assert "almost a point" in why_no_blur(y, kernel)
    assert log_likelihood_ratio(y, POINT) == 0


@pytest.mark.parametrize("shape", [(1, 1, 20, 20), (1, 3, 300, 33), (1, 3, 17, 200)])
def test_pictures_of_any_size_also_black_ones(shape):
    assert isinstance(why_no_blur(torch.rand(shape), gaussian_kernel(2.0, 17)), str)
    assert "spectrum" in why_no_blur(torch.zeros(shape), gaussian_kernel(2.0, 17))
