"""Where priors come from: bundled folders, diffusers pipeline folders, the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BUNDLED = Path(__file__).parent


def bundled_priors() -> list[str]:
    """Names of the priors inside the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/model_index.json"))


def prior_folder(name: str) -> Path:
    """Folder of a bundled prior, or ``name`` itself as a path; it need not exist."""
    return BUNDLED / name if name in bundled_priors() else Path(name)


def held_out_images(name: str = "digits") -> Tensor:
    r"""
    The images that a prior of ``examples/train_prior.py`` never saw, for evaluation.

    :param str name: bundled prior or folder with ``held_out.npz``.
    :return: images in [0, 1], shape (N, C, H, W), float32.
    """
    file = prior_folder(name) / "held_out.npz"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give a prior that examples/train_prior.py made")
    with np.load(file, allow_pickle=False) as archive:
        return torch.from_numpy(archive["images"]).float() / 255


def load_unet_and_scheduler(name: str) -> tuple[Any, Any]:
    """The UNet and the scheduler of a diffusers pipeline, from a bundled name, a folder or the hub."""
    from diffusers import DiffusionPipeline, UNet2DModel
    from diffusers.utils import logging

    folder = prior_folder(name)
    is_local = folder.exists()
    if is_local:
        _check_folder(folder)
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise FileNotFoundError(
            f"{str(name)!r} is neither a bundled prior ({', '.join(bundled_priors())}), nor a folder, "
            "nor a hub id like 'google/ddpm-celebahq-256'"
        )
    bar_was_on = logging.is_progress_bar_enabled()
    if is_local:
        logging.disable_progress_bar()  # two files, no time
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder if is_local else name,
            use_safetensors=True,
            local_files_only=is_local,
            low_cpu_mem_usage=False,
        )
    except (OSError, RuntimeError, AttributeError) as error:
        if is_local:
            raise ValueError(f"{folder}: the pipeline cannot be read: {error}") from error
        raise FileNotFoundError(
            f"{name!r} is no folder here and cannot be loaded from the hub (offline, misspelt, or without safetensors "
            f"weights): {str(error).split('. ')[0]}. Offline, give a folder that was downloaded elsewhere, or "
            f"{' or '.join(bundled_priors())}"
        ) from error
    finally:
        if bar_was_on:
            logging.enable_progress_bar()
    if set(pipeline.components) != {"unet", "scheduler"}:
        raise ValueError(
            f"{name}: a {type(pipeline).__name__} is not supported; give a pipeline of a pixel-space 'unet' and a "
            "'scheduler' alone, as DDPMPipeline and DDIMPipeline are"
        )
    if not isinstance(pipeline.unet, UNet2DModel):
        raise ValueError(f"{name}: the network is a {type(pipeline.unet).__name__}; a UNet2DModel is needed")
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{name}: the scheduler is a {type(pipeline.scheduler).__name__}; a variance-preserving one is "
            "needed, such as DDPMScheduler or DDIMScheduler"
        )
    config = pipeline.unet.config  # type: ignore[attr-defined]
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise ValueError(f"{name}: the network wants class labels; give an unconditional one")
    return pipeline.unet, pipeline.scheduler


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no pixel-space pipeline, or has no safetensors weights, before diffusers reads it."""
    index_file = folder / "model_index.json"
    if not index_file.exists():
        raise FileNotFoundError(
            f"{folder} is no diffusers pipeline: it has no model_index.json; give the folder that "
            "pipeline.save_pretrained(FOLDER) or examples/train_prior.py wrote"
        )
    try:
        index = dict(json.loads(index_file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{index_file} is no pipeline index: {error}") from error
    components = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    if components != {"unet", "scheduler"}:
        raise ValueError(
            f"{folder}: a pipeline of {index.get('_class_name')} is not supported; give one with a pixel-space 'unet' "
            "and a 'scheduler', as DDPMPipeline and DDIMPipeline have"
        )
    weights = folder / "unet" if (folder / "unet").is_dir() else folder
    if not list(weights.glob("*.safetensors")):
        raise ValueError(
            f"{weights} has no *.safetensors weights (pickled ones are not read, they can run code); convert them with "
            "UNet2DModel.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        )
