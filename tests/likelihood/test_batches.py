"""Parameters of a physics for another number of images than y has, and images without a batch: one line each."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import (
    Blur,
    Denoising,
    GammaNoise,
    GaussianNoise,
    Inpainting,
    LaplaceNoise,
    LogPoissonNoise,
    Physics,
    PoissonGaussianNoise,
    PoissonNoise,
    RicianNoise,
    SaltPepperNoise,
    UniformNoise,
)
from deepinv.utils import TensorList
from diffusers import DDIMScheduler
from toys import ConvNet, Gain, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DiffusionPrior

IMAGE = (3, 6, 10)
TWO = torch.tensor([0.1, 0.2])
NOISES = [
    (GaussianNoise, "sigma"),
    (PoissonNoise, "gain"),
    (LaplaceNoise, "b"),
    (UniformNoise, "a"),
    (GammaNoise, "l"),
    (LogPoissonNoise, "N0"),
    (LogPoissonNoise, "mu"),
    (RicianNoise, "sigma"),
    (SaltPepperNoise, "p"),
    (PoissonGaussianNoise, "sigma"),
    (PoissonGaussianNoise, "gain"),
]


def refused(y, physics, line, prior):
    """By ``check`` as by the call."""
    model = DMILO(prior, max_passes=2)
    for call in (model.check, model):
        with pytest.raises(ValueError, match=line):
            call(y, physics)


@pytest.mark.parametrize(("kind", "name"), NOISES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_noise_model_of_another_batch(prior, kind, name, batch):
    physics = Denoising(kind())
    physics.update(**{name: TWO})
    each = ", or one for each, 3 rows" * (batch > 1)
    line = rf"^{name} of the physics has 2 rows, and y {batch}; type physics.update\({name}=...\) with one .*{each}$"
    refused(torch.rand(batch, *IMAGE) + 0.1, physics, line, prior)


def test_two_parameters_of_another_batch(prior):
    physics = Denoising(PoissonGaussianNoise(TWO, 2 * TWO))
    line = r"gain and sigma of the physics have 2 rows, and y 1; type physics.update\(gain=..., sigma=...\) with"
    refused(torch.rand(1, *IMAGE), physics, line, prior)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_operator_of_another_batch(prior, batch):
    y = torch.rand(batch, *IMAGE)
    kernels = Blur(torch.rand(2, 1, 3, 3), padding="circular")
    refused(y, kernels, f"filter of the physics has 2 rows, and y {batch}; type physics.update", prior)
    masks = Inpainting(IMAGE, mask=(torch.rand(2, *IMAGE) > 0.5).float())
    refused(y, masks, f"mask of the physics has 2 rows, and y {batch}; type physics.update", prior)
    with pytest.raises(ValueError, match="mask of the physics has 2 rows, and y"):
        DMILO(prior).check(y, masks, init=y)
    gains = Gain()
    gains.update(gain=torch.ones(2, 1, 1, 1))
    refused(y.double(), gains, f"gain of the physics has 2 rows, and y {batch}", toy_prior(ConvNet()))


def test_a_member_of_a_stack_of_another_batch(prior):
    physics = dinv.physics.stack(Denoising(GaussianNoise(0.1)), Denoising(GaussianNoise(TWO)))
    y = TensorList([torch.rand(1, *IMAGE)] * 2)
    refused(y, physics, r"sigma of the physics has 2 rows, and y 1; type physics\[1\].update\(sigma=...\)", prior)


def test_parameters_for_all_or_each_are_taken(prior):
    model = DMILO(prior, max_passes=2)
    for noise in (GaussianNoise(TWO), GaussianNoise(TWO[:1]), PoissonNoise(TWO)):
        assert model.check(torch.rand(2, *IMAGE), Denoising(noise)) == (2, *IMAGE)
    physics = Denoising(GaussianNoise(torch.full((3,), 0.1)))
    model.noise_level = 0.1  # the noise of the physics is not asked for
    assert model.check(torch.rand(2, *IMAGE), physics) == (2, *IMAGE)


def test_noise_that_changes_the_shape_of_measurements(prior):
    class Cropping(dinv.physics.NoiseModel):
        def forward(self, x, seed=None, **kwargs):
            return x[..., 1:]

    refused(
        torch.rand(1, *IMAGE),
        Denoising(Cropping()),
        "noise model of the physics changes .* keeps their shape",
        prior,
    )


@pytest.mark.parametrize(
    ("channels", "shape", "typed"),
    [
        (3, IMAGE, r"y\[None\], of 1 image$"),
        (1, (1, 16, 24), r"y\[None\], of 1 image$"),
        (1, (16, 24), r"y\[None, None\], of 1 image$"),
        (1, (3, 16, 24), r"y\[:, None\], of 3 images$"),
    ],
)
def test_an_image_without_its_batch(prior, channels, shape, typed):
    """Where the physics tells no size, and where it does."""
    size = (channels, *shape[-2:])
    prior = prior if channels == 3 else DiffusionPrior(tiny_unet(), DDIMScheduler())
    kernel = torch.full((1, 1, 1, 1), 1.0)
    operators = (
        Denoising(GaussianNoise(0.1)),
        Physics(A=lambda x: x.tanh()),
        Inpainting(size, mask=0.5),
        Blur(kernel, padding="circular"),
    )
    for physics in operators:
        refused(torch.rand(shape), physics, rf"y has shape .*, without its .*dimension.*; pass {typed}", prior)


def test_measurements_of_one_image_without_its_batch(prior):
    physics = dinv.physics.CompressedSensing(m=20, img_size=IMAGE)
    refused(torch.rand(20), physics, r"y has shape \(20,\): pass a non-empty batch .* of one image y\[None\]", prior)
    with pytest.raises(ValueError, match=r"without its batch dimension; pass y\[None\]"):
        DMILO(prior).check(torch.rand(IMAGE), Denoising(), init=torch.rand(1, *IMAGE))


def test_channels_that_come_last_are_told():
    physics = dinv.physics.Inpainting((3, 16, 24), mask=0.5)
    with pytest.raises(ValueError, match=r"has its channels last; pass y\.permute\(0, 3, 1, 2\)"):
        DMILO(toy_prior(ConvNet())).check(torch.rand(1, 16, 24, 3), physics)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -0.1])
def test_noise_of_a_size_that_is_none(prior, odd):
    """Of all images, of one of them, of a member of a stack; of other noise models."""
    y = torch.rand(2, *IMAGE) + 0.1
    for sigma in (odd, torch.tensor([0.1, odd])):
        some = " for some" * isinstance(sigma, torch.Tensor)
        line = (
            rf"^sigma of GaussianNoise is {odd:.3g}{some}; type physics.update\(sigma=...\) with finite numbers of at"
        )
        refused(y, Denoising(GaussianNoise(sigma)), line, prior)
    stack = dinv.physics.stack(Denoising(GaussianNoise(0.1)), Denoising(GaussianNoise(odd)))
    refused(TensorList([y, y]), stack, r"type physics\[1\].update\(sigma=...\) with finite", prior)
    refused(y, Denoising(PoissonNoise(odd)), f"gain of PoissonNoise is {odd:.3g}; type", prior)
    assert DMILO(prior, max_passes=2, noise_level=0.1).check(y, Denoising(GaussianNoise(odd))) == (2, *IMAGE)


@pytest.mark.parametrize(
    ("shape", "typed", "made"),
    [
        (IMAGE, "None", (1, *IMAGE)),
        ((1, 6, 10), "None", (1, 1, 6, 10)),
        ((6, 10), "None, None", (1, 1, 6, 10)),
        ((6, 1), "None, None", (1, 1, 6, 1)),
        ((2, 6, 10), ":, None", (2, 1, 6, 10)),
    ],
)
def test_noise_of_each_pixel_without_a_dimension(prior, shape, typed, made):
    line = rf"sigma of GaussianNoise has shape .*; type GaussianNoise\(sigma\[{typed}\]\), of shape {made}$"
    line = line.replace(str(made), str(made).replace("(", r"\(").replace(")", r"\)"))
    for batch in (2,) if shape[0] == 2 else (1, 2, 3):
        refused(torch.rand(batch, *IMAGE), Denoising(GaussianNoise(torch.full(shape, 0.1))), line, prior)
