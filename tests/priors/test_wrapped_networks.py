"""A network inside of what trains, compiles or adapts it is the same network."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from torch.nn import DataParallel
from torch.optim.swa_utils import AveragedModel
from toys import ConvNet, tiny_autoencoder, tiny_unet

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.conditioning import unwrapped
from deepinv_dmilo.priors.latent import LatentPrior


class Adapted(torch.nn.Module):
    """As a PeftModel: the network is adapted in place, two modules down, and called by whatever arguments."""

    def __init__(self, network):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = network

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.get_base_model()(*args, **kwargs)


WRAPS = {
    "DataParallel": DataParallel,
    "average": AveragedModel,
    "compiled": torch.compile,
    "adapted": Adapted,
    "all": lambda network: DataParallel(torch.compile(Adapted(network))),
}


@pytest.fixture(params=WRAPS.values(), ids=WRAPS.keys())
def wrap(request):
    with torch.compiler.set_stance("force_eager"):  # what compiling costs is not the question
        yield request.param


def test_a_wrapped_network_gives_what_the_network_gives(wrap):
    plain, wrapped = (DiffusionPrior(net, DDIMScheduler()) for net in (tiny_unet(), wrap(tiny_unet())))
    assert wrapped.image_shape == plain.image_shape == (1, 16, 16)
    assert wrapped.multiple == plain.multiple == 2
    assert repr(wrapped).startswith("DiffusionPrior('UNet2DModel'")
    y, physics = torch.rand(1, 1, 15, 18), dinv.physics.Denoising(GaussianNoise(0.1))  # padded to 16 x 18
    assert torch.equal(*(DMILO(prior, max_passes=5)(y, physics) for prior in (plain, wrapped)))
    with pytest.raises(ValueError, match=r"which takes \(B, 1, H, W\)"):
        DMILO(wrapped)(torch.rand(1, 3, 16, 16), physics)


def test_a_wrapped_network_asks_for_its_conditions(wrap):
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    labelled = UNet2DModel(16, 1, 1, block_out_channels=(8,), norm_num_groups=4, num_class_embeds=10, **kinds)
    with pytest.raises(TypeError, match="a UNet2DModel wants class_labels"):
        DiffusionPrior(wrap(labelled), DDIMScheduler())
    with pytest.raises(TypeError, match="UNet2DModel takes no 'label'"):
        DiffusionPrior(wrap(labelled), DDIMScheduler(), conditioning={"label": torch.tensor([3])})


def test_a_wrapped_transformer_is_told_the_time_by_its_name(wrap):
    """At the second place it takes another thing."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8, "patch_size": 2}
    net = DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=10, norm_num_groups=4, **sizes)
    labels = {"class_labels": torch.tensor([3])}
    plain, wrapped = (DiffusionPrior(n, DDIMScheduler(), conditioning=labels).eval() for n in (net, wrap(net)))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(*(prior.denoise(z, prior.level(1.0)) for prior in (plain, wrapped)))


def test_a_wrapped_network_has_gradient_checkpointing(wrap):
    network = wrap(tiny_unet())
    DiffusionPrior(network, DDIMScheduler(), checkpointing=True)
    assert unwrapped(network).is_gradient_checkpointing


def test_wrapped_parts_of_a_latent_model(wrap):
    prior = DiffusionPrior(wrap(tiny_unet(4)), DDIMScheduler(), clip_sample=False)
    x = torch.rand(1, 3, 16, 16)
    plain, wrapped = (LatentPrior(prior, f(tiny_autoencoder())) for f in (lambda network: network, wrap))
    assert wrapped.image_shape == plain.image_shape == (3, 32, 32)
    assert wrapped.encode(x).shape == plain.encode(x).shape
    with pytest.raises(ValueError, match="the network takes 3 channels and the autoencoder has 4"):
        LatentPrior(DiffusionPrior(wrap(tiny_unet(3)), DDIMScheduler()), wrap(tiny_autoencoder()))


def test_a_wrapped_denoiser_of_deepinv(wrap):
    net = dinv.models.NCSNpp(img_resolution=16, model_channels=32, num_blocks=1, pretrained=None)
    plain, wrapped = (DiffusionPrior.from_denoiser(denoiser) for denoiser in (net, wrap(net)))
    assert (wrapped.max_noise, wrapped.multiple) == (plain.max_noise, plain.multiple) == (40.0, 8)
    with pytest.raises(TypeError, match="denoiser is a ConvNet; pass a deepinv"):
        DiffusionPrior.from_denoiser(wrap(ConvNet()))


def test_a_module_of_ones_own_around_a_network_is_called_as_it_is():
    class Mine(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, z, t):
            return self.module(z, t).sample

    network = Mine(tiny_unet())
    assert unwrapped(network) is network


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wrapper_of_ones_own_that_fails_names_the_network_inside(channels):
    """It does not tell what it takes, so that images are not padded for it."""

    class EMA(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.ema_model = model

        def forward(self, *args, **kwargs):
            return self.ema_model(*args, **kwargs)

    model = DMILO(DiffusionPrior(EMA(tiny_unet()), DDIMScheduler()), max_passes=5)
    y, physics = torch.rand(1, channels, 15, 13), dinv.physics.Denoising(GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"give the network inside it, such as wrapper\.ema_model"):
        model(y, physics)


# Networks that nothing can be optimised through


@pytest.mark.parametrize("kind", ["network", "denoiser", "autoencoder"])
def test_a_network_that_was_made_in_inference_mode(kind):
    def made(network, wanted):
        with torch.inference_mode(kind == wanted):
            return network()

    if kind == "denoiser":
        prior = DiffusionPrior.from_denoiser(made(lambda: dinv.models.DnCNN(3, 3, depth=3, pretrained=None), kind))
    else:
        network, autoencoder = made(lambda: tiny_unet(4), "network"), made(tiny_autoencoder, "autoencoder")
        prior = LatentPrior(DiffusionPrior(network, DDIMScheduler(), clip_sample=False), autoencoder)
    x_hat = DMILO(prior, max_passes=5)(torch.rand(1, 3, 16, 16), dinv.physics.Denoising(GaussianNoise(0.1)))
    assert x_hat.isfinite().all()


def test_weights_that_are_not_finite_are_not_told_as_a_fault_of_the_physics():
    network = tiny_unet()
    network.conv_in.weight.data[0] = float("nan")
    model = DMILO(DiffusionPrior(network, DDIMScheduler()), max_passes=5)
    with pytest.raises(FloatingPointError, match=r"the prior has NaN or infinite weights, such as \S*conv_in.weight;"):
        model(torch.rand(1, 1, 16, 16), dinv.physics.Denoising(GaussianNoise(0.1)))


# Faults that are no misfit


def test_a_fault_after_a_first_call_is_not_told_as_a_shape():
    class Faulty(ConvNet):
        calls = 0

        def forward(self, z, t):
            self.calls += 1
            if self.calls == 5:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return super().forward(z, t)

    prior = DiffusionPrior(Faulty(), DDIMScheduler())
    with pytest.raises(RuntimeError, match=r"^CUDA error: an illegal memory access"):
        DMILO(prior, max_passes=9)(torch.rand(1, 3, 16, 16), dinv.physics.Denoising(GaussianNoise(0.1)))
    with pytest.raises(ValueError, match=r"Faulty does not take latents of shape \(1, 2, 16, 16\)"):
        prior.predict(torch.zeros(1, 2, 16, 16), torch.tensor(1))


def test_a_fault_of_a_denoiser_that_took_the_images_before_is_not_told_as_a_shape():
    class Faulty(dinv.models.Denoiser):
        fails = False

        def forward(self, x, sigma):
            if self.fails:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return 0.9 * x

    prior = DiffusionPrior.from_denoiser(Faulty())
    prior.check_shape((2, 3, 16, 16))
    prior.network.fails = True
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        prior.check_shape((1, 3, 16, 16))
    with pytest.raises(ValueError, match="do not fit the denoiser Faulty"):
        prior.check_shape((1, 3, 16, 24))
