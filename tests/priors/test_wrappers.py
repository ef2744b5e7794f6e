"""Tiles and autoencoders around a prior: exact, seamless, and no more memory than they say."""

import weakref
from itertools import pairwise

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import DDIMScheduler, EDMEulerScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from toys import ConvNet, NoDoubles, tiny_autoencoder, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Channelwise, DiffusionPrior, DMPlug, Levels, Tiled
from deepinv_dmilo.priors.families import Preconditioned
from deepinv_dmilo.priors.latent import LatentPrior
from deepinv_dmilo.priors.pretrained import held_out_images


class PeakOfTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and not gone again."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(output)[0]:
            if torch.is_tensor(tensor) and tensor.untyped_storage()._cdata not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage._cdata)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return output

    def gone(self, storage, size):
        self.seen.discard(storage)
        self.alive -= size


def peak_of_gradient(function, z):
    """Bytes at the peak of a forward and backward pass."""
    z = z.clone().requires_grad_()
    with PeakOfTensors() as count:
        torch.autograd.grad(function(z).square().sum(), z)
    return count.peak


# Tiles


@pytest.mark.parametrize("length", [16, 17, 31, 32, 33, 48, 100, 257])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 0), (16, 5), (16, 8), (32, 8)])
def test_windows_add_to_one_and_tiles_overlap(length, tile, overlap):
    tiled = Tiled(toy_prior(ConvNet()), tile=tile, overlap=overlap)
    total, size = torch.zeros(length).double(), min(tile, length)
    places = tiled.places(length)
    for place, window in tiled.windows(length).items():
        assert window.min() >= 0
        total[place : place + size] += window
    torch.testing.assert_close(total, torch.ones(length).double())
    assert places[0] == 0
    assert places[-1] + size == length
    assert all(a + size - b >= overlap for a, b in pairwise(places))


def test_tiles_of_a_network_that_sees_less_than_the_overlap_leave_no_trace():
    """A field of 15 pixels in an overlap of 16; the gradient is that of the whole picture, too."""
    wide = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 9, padding=4), torch.nn.Tanh(), torch.nn.Conv2d(4, 3, 7, padding=3)
    )
    network = ConvNet()
    network.first, network.last = wide[:2], wide[2]
    prior = toy_prior(network).eval()
    level, tiled = prior.level(0.5), Tiled(prior, tile=32, overlap=16)
    z = torch.randn(2, 3, 81, 30).double().requires_grad_()
    whole, parts = prior.denoise(z, level), tiled.denoise(z, level)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((u**3).sum(), z, retain_graph=True)[0] for u in (whole, parts)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_tiles_of_a_network_that_sees_farther_have_no_seams():
    """The bundled network sees much farther: the error is no larger where tiles meet than elsewhere."""
    prior = DiffusionPrior.from_pretrained("photos")
    level, tiled = prior.level(0.2), Tiled(prior, tile=64, overlap=32)
    x = held_out_images("photos")[:1, :, 40:200, 30:190]
    z = level.signal * prior.encode(x) + level.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (prior.denoise(z, level) - tiled.denoise(z, level)).square().mean((0, 1)).sqrt()
    borders = [place + 16 for place in tiled.places(160)[1:]]  # the middle of what two share
    meeting = torch.zeros(160, dtype=torch.bool)
    for border in borders:
        meeting[border - 2 : border + 2] = True
    assert error.mean() < 0.02
    assert error[meeting].mean() < 1.5 * error.mean()
    assert error[:, meeting].mean() < 1.5 * error.mean()
    jump = (tiled.denoise(z, level) - prior.denoise(z, level)).diff(dim=2).abs().mean((0, 1, 3)).detach()
    assert jump.max() < 4 * jump.mean()


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("size", [(37, 31), (24, 90)])
def test_a_picture_in_tiles_is_that_of_the_whole(method, size):
    """Of a side that is no multiple, or shorter than a tile: the network sees little, so that tiles change nothing."""
    prior = toy_prior(ConvNet())
    physics = dinv.physics.Inpainting((3, *size), mask=0.5, rng=torch.Generator().manual_seed(0)).double()
    physics.noise_model = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    y = physics(torch.rand(2, 3, *size).double())
    settings = {"schedule": Levels((1.0, 0.2)), "max_passes": 10}
    whole, tiled = (method(p, **settings)(y, physics) for p in (prior, Tiled(prior, tile=32, overlap=8)))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4)


def test_float64_stays_on_the_cpu_where_another_device_is_the_default():
    """MPS has no float64."""
    family, tiled = Preconditioned(EDMEulerScheduler()), Tiled(toy_prior(ConvNet()), tile=16, overlap=4)
    time = family.time(1.0)
    with torch.device("meta"):
        assert {window.device.type for window in tiled.windows(40).values()} == {"cpu"}
        assert family.time(1.0) == time


def test_the_windows_are_made_once_for_a_size_and_reach_a_device_without_float64(monkeypatch):
    tiled, asked = Tiled(toy_prior(ConvNet(), dtype=torch.float32), tile=16, overlap=4).eval(), []
    windows = tiled.windows
    monkeypatch.setattr(tiled, "windows", lambda length: asked.append(length) or windows(length))
    level, z = tiled.level(0.5), torch.randn(1, 3, 24, 40)
    with torch.inference_mode():
        expected = tiled.denoise(z, level)
    found = tiled.denoise(z.requires_grad_(), level)
    found.sum().backward()  # through windows that were made where no gradient is taken
    assert torch.equal(found, expected)
    assert asked == [24, 40]
    with NoDoubles():
        assert tiled.to("meta").denoise(z.detach().to("meta"), level).shape == z.shape
    assert asked == [24, 40] * 2


def test_one_tiles_graph_is_alive_at_a_time():
    prior = DiffusionPrior(tiny_unet(3, 32), DDIMScheduler())
    level, z = prior.level(0.5), torch.randn(1, 3, 128, 128)
    tiled = Tiled(prior, tile=32, overlap=8)
    whole = peak_of_gradient(lambda z: prior.denoise(z, level), z)
    assert peak_of_gradient(lambda z: tiled.denoise(z, level), z) < 0.35 * whole


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tile": 1}, "tile=1: type a whole number of at least 2"),
        ({"overlap": -1}, "overlap=-1: type a whole number of at least 0"),
        ({"overlap": 200}, "overlap=200: type at most half of tile=256"),
        ({"tile": 33, "overlap": 4}, "tile=33: type a multiple of 2, as the network asks"),
    ],
)
def test_wrong_tiles_are_told(settings, told):
    with pytest.raises(ValueError, match=told):
        Tiled(DiffusionPrior(tiny_unet(), DDIMScheduler()), **settings)


# What is inside


def test_no_prior_inside_is_told():
    for inside in (torch.zeros(1), dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1)):
        with pytest.raises(
            TypeError, match=r"pass DiffusionPrior\.from_pretrained\(NAME\), say, or Diff.*from_denoiser"
        ):
            Channelwise(inside)


def test_a_wrapper_has_one_network_which_can_be_replaced():
    inside = toy_prior(ConvNet(channels=1))
    prior = Tiled(Channelwise(inside), tile=8, overlap=2)
    assert len(prior.state_dict()) == len(inside.state_dict())
    prior.network = other = ConvNet(channels=1).double()
    assert prior.network is inside.network is other


# Autoencoders


@pytest.fixture(scope="module")
def latent_prior():
    """A decoder and a denoiser of about the same memory."""
    torch.manual_seed(0)
    net = tiny_unet(4, 32)
    return LatentPrior(DiffusionPrior(net, DDIMScheduler(), clip_sample=False), tiny_autoencoder()).eval()


def test_the_graphs_of_decoder_and_denoiser_are_never_alive_together(latent_prior, monkeypatch):
    z, level = torch.randn(1, 4, 32, 32), latent_prior.level(0.5)
    frozen = latent_prior.frozen()
    decoder = peak_of_gradient(frozen.decode, z)
    denoiser = peak_of_gradient(lambda z: frozen.prior.denoise(z, level), z)
    both = peak_of_gradient(lambda z: frozen.decode(frozen.denoise(z, level)), z)
    together = peak_of_gradient(lambda z: frozen.decode(frozen.prior.denoise(z, level)), z)
    assert both < 1.1 * max(decoder, denoiser)
    assert together > 0.9 * (decoder + denoiser) - z.numel() * 64
    assert together > 1.15 * both


def test_the_gradient_is_that_of_the_two_together(latent_prior):
    z, level = torch.randn(1, 4, 16, 16).requires_grad_(), latent_prior.level(0.5)
    outputs = [latent_prior.decode(step(z, level)) for step in (latent_prior.denoise, latent_prior.prior.denoise)]
    gradients = [torch.autograd.grad(output.square().sum(), z)[0] for output in outputs]
    torch.testing.assert_close(*gradients)


def test_an_autoencoder_of_other_channels_is_told(latent_prior):
    with pytest.raises(ValueError, match="the network takes 3 channels and the autoencoder has 4"):
        LatentPrior(DiffusionPrior(tiny_unet(3), DDIMScheduler()), latent_prior.autoencoder)
    clamped = Tiled(DiffusionPrior(tiny_unet(4), DDIMScheduler()), tile=16, overlap=4)
    with pytest.raises(
        ValueError, match=r"latents are not in \[-1, 1\]: type DiffusionPrior\(network, scheduler, clip_s"
    ):
        LatentPrior(clamped, latent_prior.autoencoder)
    with pytest.raises(ValueError, match="has an autoencoder already"):
        LatentPrior(latent_prior, latent_prior.autoencoder)
    with pytest.raises(
        TypeError, match="autoencoder is a NoneType; pass diffusers' AutoencoderKL, AutoencoderTiny or VQ"
    ):
        LatentPrior(latent_prior.prior, None)
    with pytest.raises(ValueError, match="noise of an image is no noise of its latent"):
        latent_prior.denoiser()
    with pytest.raises(ValueError, match="the channels of an autoencoder's latents go together"):
        Channelwise(latent_prior)
    with pytest.raises(ValueError, match=r"do not fit the autoencoder, which takes \(B, 3, H, W\)"):
        DMILO(latent_prior)(torch.rand(1, 1, 16, 16), dinv.physics.Denoising())


def test_the_first_latent_of_an_autoencoder_is_not_taken(latent_prior):
    y = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="init as a latent of an autoencoder is not supported; leave it out"):
        DMPlug(latent_prior)(y, dinv.physics.Denoising(), init=torch.randn(1, 4, 8, 8))


def test_tiles_go_inside_an_autoencoder(latent_prior):
    with pytest.raises(ValueError, match=r"LatentPrior\(Tiled\(prior\), autoencoder\)"):
        Tiled(latent_prior)
    tiled = LatentPrior(Tiled(latent_prior.prior, tile=16, overlap=4), latent_prior.autoencoder)
    physics = dinv.physics.Inpainting((3, 50, 64), mask=0.5)
    x_hat = DMILO(tiled, max_passes=4)(physics(torch.rand(1, 3, 50, 64)), physics)
    assert x_hat.shape == (1, 3, 50, 64)
