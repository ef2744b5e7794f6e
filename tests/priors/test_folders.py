"""Folders of diffusers as people have them: half precision, shards, a network alone, a checkpoint of a training."""

import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, LDMPipeline
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
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


# What is no prior's folder


def saved_pipeline(folder):
    """A pipeline of a tiny network, and the file of its weights."""
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder / "unet" / f"{WEIGHTS}.safetensors"


@pytest.mark.parametrize("file", ["model_index.json", f"unet/{WEIGHTS}.safetensors"])
def test_a_file_of_a_pipeline_is_no_folder(file, tmp_path):
    saved_pipeline(tmp_path)
    with pytest.raises(ValueError, match="is a file; give its folder, ") as told:
        DiffusionPrior.from_pretrained(str(tmp_path / file))
    DiffusionPrior.from_pretrained(str(told.value).split("give its folder, ")[1])  # what it says is what works


def test_a_single_file_of_weights_is_no_folder(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match=r"is a file; give a folder that pipeline.save_pretrained"):
        DiffusionPrior.from_pretrained(tmp_path / "model.ckpt")


def test_weights_of_another_name_are_named(tmp_path):
    weights = saved_pipeline(tmp_path)
    weights.rename(weights.parent / "model.safetensors")
    with pytest.raises(ValueError, match=rf"has model.safetensors, and weights are read from {WEIGHTS}.safetensors"):
        DiffusionPrior.from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_wrapped_network_are_told(prefix, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)  # to caplog
    weights = saved_pipeline(tmp_path)
    save_file({prefix + name: t for name, t in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"'{prefix}' before each name; .*: wrapper.{prefix}save_pretrained\(FOLDER\)"
    ):
        DiffusionPrior.from_pretrained(tmp_path)
    assert not caplog.records  # of diffusers, a line for each tensor


def test_weights_that_no_part_of_the_network_has_are_told(tmp_path):
    weights = saved_pipeline(tmp_path)
    save_file({**load_file(weights), "extra.weight": torch.zeros(2)}, weights, {"format": "pt"})
    with pytest.warns(RuntimeWarning, match="1 tensors are none of the UNet2DModel and are not read, such as extra.we"):
        DiffusionPrior.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    weights = saved_pipeline(tmp_path)
    tensors = load_file(weights)
    tensors["conv_in.weight"][0] = value
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors have NaN or infinite weights, such as conv_in.weight: the train"):
        DiffusionPrior.from_pretrained(tmp_path)


ADAPTERS = {"pytorch_lora_weights.safetensors": r"fuse_lora\(\)", "adapter_config.json": r"merge_and_unload\(\)"}


@pytest.mark.parametrize(("adapter", "told"), ADAPTERS.items())
def test_an_adapter_is_no_network(adapter, told, tmp_path):
    for name in (adapter, "model.safetensors"):  # beside what accelerate saves of a training
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=rf"{adapter}, and no network; merge it .*{told}"):
        DiffusionPrior.from_pretrained(tmp_path)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("place", [".", "unet"])
def test_an_adapter_beside_a_network_is_not_read_and_that_is_told(adapter, place, tmp_path):
    saved_pipeline(tmp_path)
    (tmp_path / place / adapter).touch()
    with pytest.warns(RuntimeWarning, match=f"{adapter} is not read; merge it") as told:
        DiffusionPrior.from_pretrained(tmp_path)
    assert len(told) == 1


def test_a_folder_of_checkpoints_names_the_newest(tmp_path):
    for step in (500, 5000, 1500):
        tiny_unet().save_pretrained(tmp_path / f"checkpoint-{step}" / "unet")
    with pytest.raises(FileNotFoundError, match=r"give the newest, .*checkpoint-5000$"):
        DiffusionPrior.from_pretrained(tmp_path)


# Bundled names, folders of these names, and home


def test_a_path_is_a_folder_also_by_a_bundled_name(tmp_path, monkeypatch):
    saved_pipeline(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    for name in (Path("digits"), "./digits"):
        assert same_weights(DiffusionPrior.from_pretrained(name), tiny_unet())
    with pytest.raises(FileNotFoundError, match="photos does not exist; give the folder of a prior, or as text a name"):
        DiffusionPrior.from_pretrained(Path("photos"))


def test_a_bundled_name_that_a_folder_has_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DiffusionPrior.from_pretrained("digits").image_shape == (1, 32, 32)
    saved_pipeline(tmp_path / "digits")
    with pytest.warns(RuntimeWarning, match="'digits' is the bundled prior; for the folder .* type './digits'"):
        assert DiffusionPrior.from_pretrained("digits").image_shape == (1, 32, 32)


def test_a_folder_of_home(tmp_path, monkeypatch):
    saved_pipeline(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert same_weights(DiffusionPrior.from_pretrained("~/mine"), tiny_unet())


# A network alone


def test_a_network_does_not_take_the_scheduler_of_a_pipeline_two_folders_up(tmp_path):
    saved_pipeline(tmp_path)
    tiny_unet().save_pretrained(tmp_path / "mine" / "cosine_unet")
    with pytest.raises(FileNotFoundError, match="a network alone, without the scheduler"):
        DiffusionPrior.from_pretrained(tmp_path / "mine" / "cosine_unet")


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
