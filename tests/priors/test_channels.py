"""Priors for images of other channels: each by itself, real and imaginary part, grey ones by a prior of colour."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import DDIMScheduler
from toys import ConvNet, tiny_autoencoder, tiny_unet, toy_prior

from deepinv_dmilo import (
    DMILO,
    DMILOPGD,
    LBFGS,
    Chain,
    Channelwise,
    Complex,
    DiffusionPrior,
    DMPlug,
    Greyscale,
    Levels,
    Tiled,
)
from deepinv_dmilo.priors.latent import LatentPrior
from deepinv_dmilo.priors.pretrained import held_out_images

CHAIN = Chain(num_layers=2, outer_steps=2, sparsity=None)


@pytest.fixture(scope="module")
def photos():
    return DiffusionPrior.from_pretrained("photos")


@pytest.fixture(scope="module")
def pictures():
    """Two grey photographs, (2, 1, 64, 64)."""
    return held_out_images("photos")[12:14, :, 96:160, 96:160].mean(1, keepdim=True)


def psnr(x_hat, x):
    return -10 * (x_hat - x).square().mean((1, 2, 3)).log10().mean().item()


def inpainting(size, **settings):
    physics = dinv.physics.Inpainting((1, *size), mask=0.5, rng=torch.Generator().manual_seed(0), **settings)
    physics.noise_model = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    return physics.double()


# Each channel by itself


def test_channels_are_images_of_their_own():
    prior = toy_prior(ConvNet(channels=1)).eval()
    physics = dinv.physics.Inpainting((5, 12, 14), mask=0.5, rng=torch.Generator().manual_seed(0)).double()
    physics.noise_model = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    y = physics(torch.rand(2, 5, 12, 14).double())
    model = DMILO(Channelwise(prior), schedule=Levels((1.0, 0.2)), max_passes=10)
    x_hat = model(y, physics)
    assert x_hat.shape == (2, 5, 12, 14)
    torch.testing.assert_close(model(y[1:], physics), x_hat[1:], rtol=0, atol=1e-6)
    z, level = torch.randn(2, 5, 12, 14).double(), prior.level(0.5)
    each = torch.stack([prior.denoise(z[:, c : c + 1], level)[:, 0] for c in range(5)], 1)
    torch.testing.assert_close(Channelwise(prior).denoise(z, level), each)


def test_channels_of_a_prior_of_colour_are_refused():
    with pytest.raises(ValueError, match=r"do not fit the prior, which takes \(B, 3, H, W\)"):
        DMILO(Channelwise(DiffusionPrior(tiny_unet(3), DDIMScheduler())))(
            torch.rand(1, 4, 16, 16), dinv.physics.Denoising()
        )


def test_the_channels_of_an_image_have_its_condition():
    class Labelled(torch.nn.Module):
        def forward(self, z, t, class_labels):
            return z * class_labels.view(-1, 1, 1, 1)

    labels = {"class_labels": torch.tensor([1.0, 2.0])}
    prior = Channelwise(DiffusionPrior(Labelled(), DDIMScheduler(prediction_type="sample"), conditioning=labels))
    z = torch.full((2, 3, 4, 4), 0.1)
    torch.testing.assert_close(prior.denoise(z, prior.level(0.5))[:, :, 0, 0], torch.tensor([[0.1] * 3, [0.2] * 3]))
    y = torch.rand(2, 3, 4, 4)
    assert DMILO(prior, max_passes=4)(y, dinv.physics.Denoising(GaussianNoise(0.1))).shape == y.shape


# Complex images


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_real_and_imaginary_parts_are_two_channels(method):
    """Of Gaussian images about 0, which a linear network denoises exactly: the estimate is between y and 0."""

    class Shrink(torch.nn.Module):
        def __init__(self, variance):
            super().__init__()
            self.variance = torch.nn.Parameter(torch.tensor(variance).double())

        def forward(self, z, t):
            abar = DDIMScheduler().alphas_cumprod[t].double().view(-1, 1, 1, 1)
            return abar.sqrt() * self.variance / (abar * self.variance + 1 - abar) * z

    inside = toy_prior(Shrink(0.09), prediction_type="sample", clip_sample=False)
    prior = Complex(inside)
    level = prior.level(2 * 0.3)
    assert level.sigma == pytest.approx(0.3, rel=0.05)
    x = 0.3 * torch.randn(2, 2, 8, 8).double().clamp(-3, 3)
    torch.testing.assert_close(prior.decode(prior.encode(x)), x)
    noisy = x + level.sigma * torch.randn(x.shape).double()
    found = prior.denoiser()(noisy, level.sigma)  # the mean of what goes with noisy
    torch.testing.assert_close(found, 0.09 / (0.09 + level.sigma**2) * noisy)
    z = level.signal * prior.encode(noisy)
    clean = prior.step(z, level, level._replace(signal=1.0, noise=0.0))  # as in a chain
    torch.testing.assert_close(prior.decode(clean), found)
    mri = dinv.physics.MRI(mask=(torch.rand(1, 1, 8, 8) > 0.3).float().expand(1, 2, 8, 8), img_size=(1, 2, 8, 8))
    mri.noise_model = GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
    mri = mri.double()
    y = mri(x)
    x_hat = method(prior, max_passes=20)(y, mri)
    assert x_hat.min() < -0.1
    assert (x_hat - x).square().mean() < (mri.A_dagger(y) - x).square().mean()
    assert (mri.A(x_hat) - y).square().mean().sqrt() < 0.05


def test_complex_images_of_a_prior_of_one_channel_are_refused():
    with pytest.raises(ValueError, match="the prior has 1 channel, and complex images are two"):
        Complex(DiffusionPrior(tiny_unet(1), DDIMScheduler()))


# Grey images


def test_images_are_the_mean_of_the_channels():
    inside = toy_prior(ConvNet()).eval()
    prior = Greyscale(inside)
    x, u = torch.rand(2, 1, 12, 14).double(), torch.randn(2, 3, 12, 14).double()
    assert prior.encode(x).shape == (2, 3, 12, 14)
    torch.testing.assert_close(prior.decode(prior.encode(x)), x)
    torch.testing.assert_close(prior.decode(u)[:, 0], inside.decode(u).mean(1))
    torch.testing.assert_close(prior(u), inside(u))


def test_a_grey_image_is_denoised_of_the_noise_in_the_mean_of_its_channels():
    """Its channels have the same noise: sqrt(3) times the mean of three independent ones."""
    inside = toy_prior(ConvNet()).eval()
    prior, x = Greyscale(inside), torch.rand(2, 1, 12, 14).double()
    level = inside.level(2 * 3**0.5 * inside.level(0.2).sigma)
    wanted = inside.decode(inside.denoise(level.signal * inside.encode(x.expand(-1, 3, -1, -1)), level))
    torch.testing.assert_close(prior.denoiser()(x, 0.1), wanted.mean(1, keepdim=True))


def test_so_more_noise_is_gone(photos, pictures):
    noisy = pictures + 0.05 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = photos.denoiser()(noisy.expand(-1, 3, -1, -1), 0.05).mean(1, keepdim=True)
        assert psnr(Greyscale(photos).denoiser()(noisy, 0.05), pictures) > psnr(found, pictures) + 1.0  # 2.0 of four


@pytest.mark.parametrize(
    ("method", "schedule", "wrap"),
    [
        (DMILO, Levels((1.0, 0.2)), Greyscale),
        (DMILOPGD, Levels((1.0, 0.2)), Greyscale),
        (DMILO, CHAIN, Greyscale),
        (DMILO, Levels((0.2,)), lambda prior: Greyscale(Tiled(prior, tile=8, overlap=2))),
    ],
)
def test_a_batch_is_its_images_one_by_one(method, schedule, wrap):
    """Of sides that the network does not take, with samples, and one row at a time through the network."""
    prior = wrap(DiffusionPrior(tiny_unet(3), DDIMScheduler()).double())
    physics = inpainting((13, 19))
    y = physics(torch.rand(2, 1, 13, 19).double())
    settings = {"schedule": schedule, "solver": LBFGS(steps=3), "num_samples": 2}
    solution = method(prior, **settings).solve(y, physics)
    x_hat = solution.images
    assert x_hat.shape == (2, 1, 13, 19)
    assert solution.samples.std(1).max() > 0
    model = method(prior, micro_batch=1, **settings)
    torch.testing.assert_close(model(y, physics), x_hat, rtol=0, atol=1e-6)  # sums in another order
    for k in range(2):
        alone = inpainting((13, 19))
        alone.update_parameters(mask=physics.mask)
        torch.testing.assert_close(model(y[k : k + 1], alone), x_hat[k : k + 1], rtol=0, atol=1e-6)


def test_conditions_go_with_their_images():
    class Labelled(torch.nn.Module):
        def forward(self, z, t, class_labels):
            return z * class_labels.view(-1, 1, 1, 1)

    labels = {"class_labels": torch.tensor([1.0, 2.0])}
    prior = Greyscale(DiffusionPrior(Labelled(), DDIMScheduler(prediction_type="sample"), conditioning=labels))
    z = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    u = prior.for_images(4, 4).select(torch.tensor([1])).denoise(z, prior.level(0.5))
    torch.testing.assert_close(u, 2 * z)
    y = torch.rand(2, 1, 4, 4)
    assert DMILO(prior, max_passes=4)(y, dinv.physics.Denoising(GaussianNoise(0.1))).shape == y.shape


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_grey_photographs_by_a_prior_of_colour_ones(photos, pictures, method):
    """Measured at 25 passes on four: 25.7 dB of missing pixels, 30.7 dB of noise; y itself has 7.8 and 26.0 dB."""
    mask = (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    noise = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    tasks = (dinv.physics.Inpainting((1, 64, 64), mask=mask, noise_model=noise), 12), (dinv.physics.Denoising(noise), 2)
    for physics, margin in tasks:
        y = physics(pictures)
        x_hat = method(Greyscale(photos), max_passes=10)(y, physics)
        assert psnr(x_hat, pictures) > psnr(physics.A_dagger(y), pictures) + margin


def test_an_autoencoder_inside():
    inside = LatentPrior(DiffusionPrior(tiny_unet(4, 8), DDIMScheduler(), clip_sample=False), tiny_autoencoder())
    prior, physics = Greyscale(inside), dinv.physics.Inpainting((1, 14, 18), mask=0.5)
    assert prior.image_shape == (1, 16, 16)
    assert prior.encode(torch.rand(1, 1, 16, 16)).shape == (1, 4, 8, 8)
    assert DMILO(prior, max_passes=4)(physics(torch.rand(1, 1, 14, 18)), physics).shape == (1, 1, 14, 18)


def test_a_denoiser_of_colour_inside():
    prior = DiffusionPrior.from_denoiser(dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1))
    y = torch.rand(1, 1, 16, 24)
    assert DMILO(Greyscale(prior), max_passes=4)(y, dinv.physics.Denoising(GaussianNoise(0.1))).shape == y.shape


# Errors


def test_a_prior_that_is_not_of_three_channels_is_refused():
    with pytest.raises(ValueError, match=r"the prior has 1 channel, takes grey images as it is: type DMILO\(prior\)"):
        Greyscale(DiffusionPrior(tiny_unet(1), DDIMScheduler()))
    with pytest.raises(ValueError, match="the prior has 2 channels, not red, green and blue"):
        Greyscale(DiffusionPrior(tiny_unet(2), DDIMScheduler()))
    with pytest.raises(ValueError, match="latents go together, or Greyscale's; give a grey prior"):
        Channelwise(Greyscale(DiffusionPrior(tiny_unet(3), DDIMScheduler())))


def test_wrong_channels_name_the_wrapper_that_takes_them():
    colour, grey = (DiffusionPrior(tiny_unet(channels), DDIMScheduler()) for channels in (3, 1))
    y, physics = torch.rand(1, 3, 16, 16), dinv.physics.Denoising(GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"of channels, or for grey images Greyscale\(prior\)"):
        DMILO(colour)(y[:, :1], physics)
    with pytest.raises(ValueError, match=r"of channels, or Channelwise\(prior\)"):
        DMILO(grey)(y, physics)
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) are not \(B, 1, H, W\); for colour type prior, without"):
        DMILO(Greyscale(colour))(y, physics)
    with pytest.raises(ValueError, match=r"takes \(B, 3, H, W\); use a prior and a physics with .* channels$"):
        DMILO(colour)(torch.rand(1, 4, 16, 16), physics)


def test_a_grey_latent_is_not_taken():
    prior = Greyscale(DiffusionPrior(tiny_unet(3), DDIMScheduler()))
    y, physics = torch.rand(1, 1, 16, 16), dinv.physics.Denoising(GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"latents have the channels of the prior; leave init out"):
        DMPlug(prior, steps=1)(y, physics, init=torch.randn(1, 1, 16, 16))
