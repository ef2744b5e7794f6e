"""Every family of networks as a folder: tiny ones that were never trained, saved by diffusers."""

import json

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderTiny,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    KarrasVePipeline,
    LDMPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from toys import tiny_unet

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior, Levels
from deepinv_dmilo.priors.latent import LatentPrior


def unet(**settings):
    torch.manual_seed(0)
    defaults = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**{**defaults, **kinds, "block_out_channels": (8, 16), **settings})


def autoencoder(kind, **settings):
    torch.manual_seed(0)
    if kind is AutoencoderTiny:
        widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        return AutoencoderTiny(latent_channels=4, **widths, **blocks)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return kind(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, **kinds, **settings)


class Prompted:
    """The parts of a folder that are read; diffusers' own pipelines ask for transformers and a text encoder."""

    def __init__(self, **parts):
        self.parts = parts

    def save_pretrained(self, folder):
        index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
        for name, part in self.parts.items():
            part.save_pretrained(folder / name)
            index[name] = ["diffusers", type(part).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))


def stable_diffusion():
    torch.manual_seed(0)
    kinds = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "cross_attention_dim": 6}
    net = UNet2DConditionModel(layers_per_block=1, norm_num_groups=4, **sizes, **kinds)
    return Prompted(unet=net, vae=autoencoder(AutoencoderKL), scheduler=PNDMScheduler())


def stable_diffusion_3():
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "sample_size": 8,
        "pos_embed_max_size": 8,
    }
    inputs = {"in_channels": 4, "out_channels": 4, "joint_attention_dim": 6, "pooled_projection_dim": 5}
    net = SD3Transformer2DModel(**sizes, **inputs, caption_projection_dim=8)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Prompted(transformer=net, vae=autoencoder(AutoencoderKL), scheduler=scheduler)


def pixart():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8, "norm_num_groups": 4}
    net = PixArtTransformer2DModel(**sizes, cross_attention_dim=8, caption_channels=6)
    return Prompted(transformer=net, vae=autoencoder(AutoencoderTiny), scheduler=DPMSolverMultistepScheduler())


def dit():
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "sample_size": 8, "patch_size": 2}
    net = DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=10, norm_num_groups=4, **sizes)
    return DiTPipeline(net, autoencoder(AutoencoderKL, shift_factor=0.1), DDIMScheduler())


PROMPT = {"encoder_hidden_states": torch.zeros(1, 3, 6)}
PIPELINES = {
    "DDPM": (lambda: DDPMPipeline(unet(), DDPMScheduler(prediction_type="v_prediction")), {}),
    "DPM-Solver": (lambda: DDPMPipeline(unet(), DPMSolverMultistepScheduler()), {}),
    "labels": (
        lambda: DDPMPipeline(unet(num_class_embeds=10), DDPMScheduler()),
        {"class_labels": torch.tensor([3, 7])},
    ),
    "learned variance": (lambda: DDPMPipeline(unet(out_channels=6), DDPMScheduler()), {}),
    "score": (lambda: ScoreSdeVePipeline(unet(time_embedding_type="fourier"), ScoreSdeVeScheduler()), {}),
    "Karras VE": (lambda: KarrasVePipeline(unet(), KarrasVeScheduler()), {}),
    "EDM": (lambda: DDPMPipeline(unet(), EDMEulerScheduler()), {}),
    "flow": (lambda: DDPMPipeline(unet(), FlowMatchEulerDiscreteScheduler()), {}),
    "consistency": (lambda: ConsistencyModelPipeline(unet(), CMStochasticIterativeScheduler()), {}),
    "latent, VQ": (
        lambda: LDMPipeline(autoencoder(VQModel), unet(in_channels=4, out_channels=4, sample_size=8), DDIMScheduler()),
        {},
    ),
    "latent, KL": (
        lambda: LDMPipeline(
            autoencoder(AutoencoderKL), unet(in_channels=4, out_channels=4, sample_size=8), DDIMScheduler()
        ),
        {},
    ),
    "latent, tiny": (
        lambda: LDMPipeline(
            autoencoder(AutoencoderTiny), unet(in_channels=4, out_channels=4, sample_size=8), DDIMScheduler()
        ),
        {},
    ),
    "Stable Diffusion": (stable_diffusion, PROMPT),
    "Stable Diffusion 3": (stable_diffusion_3, {**PROMPT, "pooled_projections": torch.zeros(1, 5)}),
    "PixArt": (pixart, PROMPT),
    "DiT": (dit, {"class_labels": torch.tensor([3, 7])}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The pipelines as folders, saved once."""
    saved = {}

    def folder(name):
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp("pipeline")
            PIPELINES[name][0]().save_pretrained(saved[name])
        return str(saved[name])

    return folder


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_saved_pipeline_reconstructs_each_image_by_itself(name, method, folders):
    prior = DiffusionPrior.from_pretrained(folders(name), conditioning=PIPELINES[name][1])
    assert prior.image_shape == (3, 16, 16)
    assert isinstance(prior, LatentPrior) == name.startswith(("latent", "Stable", "PixArt", "DiT"))
    size = (16, 16) if name == "DiT" else (18, 16)  # which takes squares alone
    physics = dinv.physics.Inpainting((3, *size), mask=0.7, rng=torch.Generator().manual_seed(0))
    physics.noise_model = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    y = physics(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    model = method(prior, schedule=Levels((1.0, 0.2)), max_passes=12)
    x_hat, metrics = model(y, physics, compute_metrics=True)
    assert x_hat.shape == (2, 3, *size)
    assert torch.equal(x_hat, model(y, physics))
    first = physics.A(torch.full_like(x_hat, 0.5)) - y
    assert (physics.A(x_hat) - y).square().mean() < first.square().mean()
    assert all(curve[-1] > 0 for curve in metrics["passes"])
    alone = DiffusionPrior.from_pretrained(
        folders(name), conditioning={k: v[-1:] for k, v in PIPELINES[name][1].items()}
    )
    exact = method(alone.double(), schedule=Levels((1.0, 0.2)), max_passes=12)(y[1:].double(), physics.double())
    assert exact.dtype == torch.float64
    alone.float()
    physics.float()
    one = method(alone, schedule=Levels((1.0, 0.2)), max_passes=12)(y[1:], physics)
    assert (one - x_hat[1:]).abs().mean() < 2e-3  # float32 through steps that are accepted or not
    parts = method(prior, schedule=Levels((1.0, 0.2)), max_passes=12, micro_batch=1)(y, physics)
    assert (parts - x_hat).abs().mean() < 2e-3


def test_each_image_has_its_own_label_in_every_sample(folders):
    folder = folders("labels")
    y, physics = torch.rand(2, 3, 16, 16), dinv.physics.Denoising(GaussianNoise(0.3))

    def reconstruct(labels, rows=slice(None)):
        prior = DiffusionPrior.from_pretrained(folder, conditioning={"class_labels": torch.tensor(labels)})
        return DMILO(prior, schedule=Levels((1.0,), mean=False), max_passes=8, num_samples=2)(y[rows], physics)

    both = reconstruct([3, 7])
    assert (both[:1] - reconstruct([3], slice(1))).abs().mean() < 1e-3
    assert (both[1:] - reconstruct([7], slice(1, 2))).abs().mean() < 1e-3
    assert (reconstruct([3, 3]) - both)[1].abs().mean() > 3 * (both[1:] - reconstruct([7], slice(1, 2))).abs().mean()


def test_latents_are_scaled_and_shifted_as_the_pipeline_does(folders):
    prior = DiffusionPrior.from_pretrained(folders("DiT"), conditioning={"class_labels": torch.tensor([3])})
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        encoded = prior.autoencoder.encode(2 * x - 1).latent_dist.mode()
        torch.testing.assert_close(prior.encode(x), (encoded - 0.1) * 0.18215)
        torch.testing.assert_close(prior.decode(prior.encode(x)), (prior.autoencoder.decode(encoded).sample + 1) / 2)


@pytest.mark.parametrize(
    ("name", "conditioning", "told"),
    [
        (
            "labels",
            None,
            r"wants class_labels; in Python, type conditioning=\{'class_labels': torch.tensor\(\[207\]\)\}",
        ),
        ("labels", {"class_labels": 3}, "give a tensor with a row for all images or for each"),
        ("labels", {"class_label": torch.tensor([3])}, "takes no 'class_label'; type some of"),
        ("Stable Diffusion", None, r"wants encoder_hidden_states; in Python, type conditioning="),
        ("DiT", None, "wants class_labels"),
        (
            "labels",
            torch.tensor([3]),
            "conditioning is a Tensor; give tensors by the names that the network has for them",
        ),
        ("labels", "cat", "conditioning is a str; give tensors by the names"),
    ],
)
def test_a_wrong_condition_is_told(name, conditioning, told, folders):
    with pytest.raises(TypeError, match=told):
        DiffusionPrior.from_pretrained(folders(name), conditioning=conditioning)


def test_labels_of_another_number_than_images_are_told(folders):
    prior = DiffusionPrior.from_pretrained(folders("labels"), conditioning={"class_labels": torch.tensor([3, 7, 1])})
    with pytest.raises(ValueError, match="has 3 rows for a batch of 2; give one for all images, or one for each"):
        DMILO(prior)(torch.rand(2, 3, 16, 16), dinv.physics.Denoising())


@pytest.mark.parametrize(
    ("name", "conditioning", "told"),
    [
        ("labels", {"class_labels": torch.tensor([207])}, r"with class_labels \(1,\) \(IndexError: index out of range"),
        ("labels", {"class_labels": torch.tensor([3.5])}, r"with class_labels \(1,\)"),
        ("DDPM", {"class_labels": torch.tensor([3])}, r"with class_labels \(1,\)"),
        ("Stable Diffusion", {"encoder_hidden_states": torch.zeros(1, 3, 7)}, r"encoder_hidden_states \(1, 3, 7\)"),
        ("Stable Diffusion 3", PROMPT, r"UNet|SD3Transformer2DModel does not take latents"),
    ],
)
def test_a_condition_that_the_network_does_not_take_is_told_at_its_first_call(name, conditioning, told, folders):
    prior = DiffusionPrior.from_pretrained(folders(name), conditioning=conditioning)
    with pytest.raises(ValueError, match=f"{told}.*; give a prior, a physics and conditioning that go together"):
        DMILO(prior)(torch.rand(1, 3, 16, 16), dinv.physics.Denoising())


def test_a_transformer_that_takes_squares_alone_says_so(folders):
    prior = DiffusionPrior.from_pretrained(folders("DiT"), conditioning={"class_labels": torch.tensor([3])})
    with pytest.raises(ValueError, match=r"DiTTransformer2DModel does not take latents of shape \(1, 4, 8, 12\)"):
        DMILO(prior)(torch.rand(1, 3, 16, 24), dinv.physics.Denoising())


def test_a_transformer_that_is_told_the_time_in_another_way_is_refused():
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
    network = AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, joint_attention_dim=6, caption_projection_dim=8, **sizes
    )
    with pytest.raises(
        ValueError, match="how a AuraFlowTransformer2DModel is told the time is not known; give one of DiT"
    ):
        DiffusionPrior(network, FlowMatchEulerDiscreteScheduler(), conditioning=PROMPT)


@pytest.mark.parametrize("name", PIPELINES)
def test_samples_are_pictures_of_the_size_of_the_training(name, folders):
    conditioning = {key: row[:1] for key, row in PIPELINES[name][1].items()}
    prior = DiffusionPrior.from_pretrained(folders(name), conditioning=conditioning)
    x = prior.sample(2, num_layers=2)
    assert x.shape == (2, 3, 16, 16)
    assert 0 <= x.min() <= x.max() <= 1


def test_labels_of_another_number_than_samples_are_told(folders):
    prior = DiffusionPrior.from_pretrained(folders("labels"), conditioning={"class_labels": torch.tensor([3, 7])})
    with pytest.raises(ValueError, match="has 2 rows for a batch of 4"):
        prior.sample(4, num_layers=2)
    with pytest.raises(ValueError, match="has 2 rows for a batch of 3"):
        prior.denoiser()(torch.rand(3, 3, 16, 16), 0.1)


def test_an_unknown_scheduler_is_told():
    with pytest.raises(TypeError, match="of no known family: it has no alphas_cumprod; pass diffusers' DDPMScheduler"):
        DiffusionPrior(tiny_unet(), object())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unet": ["os", "system"]}, "its unet is a system of os, which is not read"),
        ({"unet": ["diffusers", "DiffusionPipeline"]}, "a DiffusionPipeline of diffusers, which is not read"),
        ({"unet": ["my_code", "UNet2DModel"]}, "no code but that of diffusers is run"),
        ({"scheduler": [None, None]}, "give one with a denoising network"),
        ({"unet": ["diffusers"]}, "is no pipeline index"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, r"names a vae and has none; download or save the pipeline again"),
        ({"vae": [None, None]}, r"has lost its vae, .*; give both: LatentPrior\(DiffusionPrior\("),
        ({"movq": ["diffusers", "VQModel"]}, r"a pipeline with a movq beside unet is not supported"),
    ],
)
def test_a_folder_that_names_other_code_is_refused(change, told, tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))
    with pytest.raises(ValueError, match=told):
        DiffusionPrior.from_pretrained(str(tmp_path))
