"""Folders of diffusers as people have them: half precision, shards, a network alone, a checkpoint of a training."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, LDMPipeline
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from toys import tiny_autoencoder, tiny_unet

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.priors.latent import LatentPrior

WEIGHTS = "diffusion_pytorch_model"
SHARDS = {"max_shard_size": "60KB"}  # several of a tiny network, of 80 KB in half precision


def shifted(network, by):
    """The network with other weights."""
    with torch.no_grad():
        for p in network.parameters():
            p += by
    return network


def same_weights(prior, network, dtype=torch.float32):
    """Whether a prior has a network's weights, kept in a type."""
    saved = network.state_dict()
    return all(torch.equal(w, saved[name].to(dtype).float()) for name, w in prior.network.state_dict().items())


# Half precision and shards


@pytest.mark.parametrize("shards", [{}, SHARDS])
def test_weights_in_half_precision_alone(shards, tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "unet" / f"{WEIGHTS}.safetensors").unlink()
    tiny_unet().half().save_pretrained(tmp_path / "unet", variant="fp16", **shards)
    prior = DiffusionPrior.from_pretrained(str(tmp_path))
    assert same_weights(prior, tiny_unet(), torch.float16)
    assert {p.dtype for p in prior.parameters()} == {torch.float32}


def test_shards_of_half_precision_by_their_old_names(tmp_path):
    """As diffusers named them up to 0.30."""
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    folder = tmp_path / "unet"
    (folder / f"{WEIGHTS}.safetensors").unlink()
    tiny_unet().half().save_pretrained(folder, variant="fp16", **SHARDS)
    index = next(folder.glob("*.index.fp16.json"))
    weights = index.read_text()
    for shard in folder.glob("*.safetensors"):
        number = shard.stem.removeprefix(f"{WEIGHTS}.fp16")
        weights = weights.replace(shard.name, f"{WEIGHTS}{number}.fp16.safetensors")
        shard.rename(folder / f"{WEIGHTS}{number}.fp16.safetensors")
    index.unlink()
    (folder / f"{WEIGHTS}.safetensors.fp16.index.json").write_text(weights)
    assert same_weights(DiffusionPrior.from_pretrained(str(tmp_path)), tiny_unet(), torch.float16)


@pytest.mark.parametrize("shards", [{}, SHARDS])
def test_full_precision_comes_before_half(shards, tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "unet" / f"{WEIGHTS}.safetensors").unlink()
    tiny_unet().save_pretrained(tmp_path / "unet", **shards)
    shifted(tiny_unet(), 1.0).half().save_pretrained(tmp_path / "unet", variant="fp16", **shards)
    assert same_weights(DiffusionPrior.from_pretrained(str(tmp_path)), tiny_unet())


def test_several_variants_and_no_full_precision_are_told(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")
    tiny_unet().save_pretrained(tmp_path / "unet", variant="bf16")
    with pytest.raises(ValueError, match="variants bf16 and fp16, and none of full precision; leave one there"):
        DiffusionPrior.from_pretrained(str(tmp_path))


def test_a_model_of_the_hub_in_half_precision_alone(tmp_path, monkeypatch):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")

    def download(name, *, use_safetensors, variant=None):
        if variant is None:
            raise OSError("Could not find the necessary `safetensors` weights in {...} (variant=None)")
        return str(tmp_path)

    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    pipeline = SimpleNamespace(load_config=lambda name: index, download=download)
    monkeypatch.setattr("diffusers.DiffusionPipeline", pipeline)
    assert same_weights(DiffusionPrior.from_pretrained("somebody/model"), tiny_unet())


# A network alone


def test_a_network_alone_with_its_scheduler(tmp_path):
    tiny_unet().save_pretrained(tmp_path)
    prior = DiffusionPrior.from_pretrained(str(tmp_path), scheduler=DDIMScheduler(prediction_type="sample"))
    assert prior.family.prediction_type == "sample"
    assert same_weights(prior, tiny_unet())


@pytest.mark.parametrize("place", ["scheduler", "net", "."])
def test_a_network_alone_has_the_scheduler_beside_it(place, tmp_path, monkeypatch):
    tiny_unet().save_pretrained(tmp_path / "net")
    DDPMScheduler(prediction_type="sample").save_pretrained(tmp_path / place)
    monkeypatch.chdir(tmp_path)  # a folder that is named from where one stands has neighbours, too
    assert DiffusionPrior.from_pretrained("net").family.prediction_type == "sample"


def test_a_scheduler_that_is_given_takes_the_place_of_that_of_the_pipeline(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    prior = DiffusionPrior.from_pretrained(str(tmp_path), scheduler=DDPMScheduler(prediction_type="v_prediction"))
    assert prior.family.prediction_type == "v_prediction"


def test_the_network_of_a_latent_pipeline_has_its_autoencoder(tmp_path):
    LDMPipeline(tiny_autoencoder(), tiny_unet(4), DDIMScheduler()).save_pretrained(tmp_path)
    other = shifted(tiny_unet(4), 1.0)
    other.save_pretrained(tmp_path / "checkpoint-5000" / "unet")
    for folder, network in (("unet", tiny_unet(4)), ("checkpoint-5000", other)):
        prior = DiffusionPrior.from_pretrained(str(tmp_path / folder))
        assert isinstance(prior, LatentPrior)
        assert same_weights(prior, network)
    with pytest.raises(ValueError, match="vqvae is an autoencoder, a AutoencoderKL; give the folder of the pipeline"):
        DiffusionPrior.from_pretrained(str(tmp_path / "vqvae"))


# A checkpoint of a training


def test_a_checkpoint_of_a_training_gives_the_averaged_weights(tmp_path):
    """As diffusers' own scripts save them, which publish the average; the others by their folder."""
    network, checkpoint = shifted(tiny_unet(), 1.0), tmp_path / "checkpoint-5000"
    average = EMAModel(tiny_unet().parameters(), model_cls=type(network), model_config=network.config)
    average.save_pretrained(checkpoint / "unet_ema")
    network.save_pretrained(checkpoint / "unet")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (checkpoint / name).touch()
    with pytest.raises(FileNotFoundError, match="a network alone, without the scheduler that it was trained with"):
        DiffusionPrior.from_pretrained(str(checkpoint))
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    for folder, expected in ((checkpoint, tiny_unet()), (checkpoint / "unet", network)):
        assert same_weights(DiffusionPrior.from_pretrained(str(folder)), expected)


def test_a_checkpoint_of_accelerate_does_not_tell_its_network(tmp_path):
    save_file(tiny_unet().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"as accelerate saves them.*; build it as the training did, type net"):
        DiffusionPrior.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "its network is a configuration without _class_name of diffusers, which is not read"),
        ({"_class_name": "DDPMPipeline"}, "its network is a DDPMPipeline of diffusers, which is not read"),
        ({"_class_name": ["os", "system"]}, "which is not read"),
        ([1], r"config.json is no configuration"),
    ],
)
def test_a_configuration_of_no_network_is_told(config, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=told):
        DiffusionPrior.from_pretrained(str(tmp_path))
