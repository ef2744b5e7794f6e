"""Any deepinv denoiser as a prior: what it may be, and where it begins."""

import sys
from math import log
from types import SimpleNamespace

import deepinv as dinv
import pytest
import torch
from diffusers import UNet2DModel

from deepinv_dmilo import DMILO, LBFGS, Chain, DiffusionPrior

IMAGE = (3, 24, 40)


def test_any_deepinv_denoiser_is_a_prior(inpainting):
    class Shrink(dinv.models.Denoiser):
        """The posterior mean of pixels of mean 0.4 and variance 0.01."""

        def forward(self, x, sigma):
            return 0.4 + (x - 0.4) * 0.01 / (0.01 + sigma**2)

    physics, y = inpainting
    y, physics = y.double(), physics.double()
    model = DMILO(Shrink(), noise_level=0.02)
    assert model.prior.level(10.0).sigma == 0.2
    x = model(y, physics, init=torch.full_like(y, 0.5))
    hidden = (physics.mask == 0).expand_as(x)
    torch.testing.assert_close(x[hidden], torch.full_like(x[hidden], 0.4), rtol=0, atol=2e-2)  # of the tolerance
    assert ((x - y)[~hidden]).square().mean().sqrt() < 0.05
    prior = DiffusionPrior.from_denoiser(Shrink(), max_noise=0.5)
    assert DMILO(prior).prior is prior
    assert prior.level(10.0).sigma == 0.5
    assert DMILO.from_preset("inpainting", prior, outer_steps=2, inner_steps=3)(y, physics).shape == x.shape


def test_a_drunet_restores_and_lowers_the_residual(inpainting):
    physics, y = inpainting
    torch.manual_seed(0)
    model = DMILO(dinv.models.DRUNet(pretrained=None, nc=(8, 8, 8, 8), nb=1), max_passes=6, noise_level=0.1)
    x, metrics = model(y[:1], physics, compute_metrics=True)
    assert x.shape == (1, *IMAGE)
    assert metrics["residual"][0][-1] < y[:1].square().mean().sqrt()


def test_a_denoiser_is_tried_at_the_door(inpainting):
    class Frozen(dinv.models.Denoiser):
        @torch.no_grad()
        def forward(self, x, sigma):
            return 0.9 * x

    physics, y = inpainting
    with pytest.raises(ValueError, match=r"without a gradient; pass one that .* without no_grad\(\)"):
        DMILO(Frozen())(y, physics)
    grey = dinv.models.DRUNet(in_channels=1, out_channels=1, pretrained=None, nc=(4, 4, 4, 4), nb=1)
    with pytest.raises(ValueError, match="do not fit the denoiser DRUNet"):
        DMILO(grey)(y, physics)
    colour = dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1)
    assert DMILO(colour, max_passes=4)(y[:1].double(), physics.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", [dinv.models.TVDenoiser, dinv.models.WaveletDenoiser, dinv.models.BM3D])
def test_a_denoiser_without_a_network_is_told_where_it_goes(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", SimpleNamespace())  # which deepinv's BM3D asks for
    with pytest.raises(TypeError, match=f"a {kind.__name__} has no network .* such as deepinv.optim.PGD"):
        DMILO(kind())


def test_a_denoiser_that_takes_a_gradient_itself_is_told(inpainting):
    physics, y = inpainting
    with pytest.raises(ValueError, match="GSPnP has no gradient that can be taken"):
        DMILO(dinv.models.GSDRUNet(pretrained=None))(y, physics)


def test_a_diffusion_model_of_deepinv_starts_at_the_noise_that_it_was_trained_up_to(inpainting):
    """Also at a size that it does not take."""
    torch.manual_seed(0)
    net = dinv.models.NCSNpp(img_resolution=16, model_channels=32, num_blocks=1, pretrained=None)
    model = DMILO(net, max_passes=4)
    assert model.prior.level(1000.0).sigma == 40.0
    physics = dinv.physics.Inpainting((3, 18, 16), mask=0.5)
    assert model(physics(torch.rand(1, 3, 18, 16)), physics).shape == (1, 3, 18, 16)
    wrapped = DiffusionPrior.from_pretrained("digits").denoiser()
    assert DiffusionPrior.from_denoiser(wrapped).max_noise == pytest.approx(78.6, rel=0.01)


def test_a_score_model_of_deepinv_tells_its_noise_by_a_function_and_its_size_by_what_is_inside():
    class Score(UNet2DModel):
        def forward(self, x, t, **settings):
            return super().forward(x, t).sample

    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    schedule = {"sigma_t": lambda t: 0.01 * 50**t, "sigma_inverse": lambda s: (100 * s).log() / log(50)}
    network = dinv.models.ScoreModelWrapper(Score(**sizes, **kinds), **schedule, variance_exploding=True)
    model = DMILO(network, max_passes=4)
    assert model.prior.max_noise == pytest.approx(0.25)  # a half for images in [-1, 1]
    physics = dinv.physics.Inpainting((3, 17, 18), mask=0.5)
    assert model(physics(torch.rand(1, 3, 17, 18)), physics).shape == (1, 3, 17, 18)


def test_a_large_picture_of_a_diffusion_model_of_deepinv_tells_what_attention_costs(monkeypatch):
    net = dinv.models.DiffUNet(pretrained=None, large_model=False)
    monkeypatch.setattr(net, "img_size", 16)
    monkeypatch.setattr(net, "forward", lambda x, sigma: 0.9 * x)
    with pytest.warns(RuntimeWarning, match="16 times that of its 16 x 16 pixels; a network without it, Tiled"):
        DMILO(net).prior.check_shape((1, 3, 32, 32))


def test_a_denoiser_starts_from_an_image_not_from_noise(inpainting):
    """It was never shown pure noise."""
    seen = []

    class Watched(dinv.models.Denoiser):
        def forward(self, x, sigma):
            seen.append(x.detach().std().item())
            return x / (1 + sigma**2)

    physics, y = inpainting
    DMILO(Watched(), max_passes=4, noise_level=0.05)(y, physics)
    assert max(seen) < 0.5  # the noise of level 0.2 on an image in [0, 1]


def test_a_chain_of_a_denoiser_and_a_chain_without_deviations(prior, inpainting):
    physics, y = inpainting
    chain = DMILO(prior, schedule=Chain(num_layers=2, outer_steps=1, sparsity=None), solver=LBFGS(steps=3))
    assert chain(y, physics).shape == y.shape
