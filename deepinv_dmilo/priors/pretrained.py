"""Where priors come from: bundled folders, diffusers pipeline folders, the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepinv_dmilo.core.measurements import raise_out_of_memory
from deepinv_dmilo.priors.folders import AUTOENCODERS, NETWORKS, PARTS, PARTS_GIVEN, find_parts

BUNDLED = Path(__file__).parent
# Whole, or a shard; of a variant such as fp16, or of none. Older shards name the variant last.
_WEIGHT_FILE = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")


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
        names = " or ".join(bundled_priors())
        raise FileNotFoundError(f"{file} does not exist; type {names}, or a folder that examples/train_prior.py made")
    with np.load(file, allow_pickle=False) as archive:
        return torch.from_numpy(archive["images"]).float() / 255


def load_pipeline(name: str, scheduler: Any = None) -> tuple[Any, Any, Any]:
    """
    The denoising network, the scheduler and the autoencoder (None: in pixels) of a diffusers pipeline.

    :param str name: bundled name, hub id, or folder of a pipeline, of its network or of a training's checkpoint.
    :param scheduler: in place of the one that is saved there.
    """
    from diffusers.utils import logging

    if not isinstance(name, str | Path):
        raise TypeError(
            f"name is a {type(name).__name__}; type a bundled name, a folder or a hub id, or give parts: {PARTS_GIVEN}"
        )
    folder = prior_folder(str(name))
    if not folder.exists():
        folder = _from_the_hub(str(name))
    parts = find_parts(folder)
    if scheduler is not None:
        parts.pop("scheduler", None)
    elif "scheduler" not in parts:
        raise FileNotFoundError(
            f"{folder} has a network alone, without the scheduler that it was trained with; in Python, type "
            "DiffusionPrior.from_pretrained(FOLDER, scheduler=diffusers.DDPMScheduler(...)), with the settings of the "
            "training, or give the folder of the pipeline"
        )
    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a few files, no time
    try:
        loaded = {part: _load(inside, part, kind) for part, (kind, inside) in parts.items()}
    finally:
        if bar_was_on:
            logging.enable_progress_bar()
    network = next(loaded[part] for part in NETWORKS if part in loaded)
    autoencoder = next((loaded[part] for part in AUTOENCODERS if part in loaded), None)
    return network, loaded.get("scheduler", scheduler), autoencoder


def _from_the_hub(name: str) -> Path:
    """The folder that a pipeline of the hub is kept in, without what is not read of it."""
    from diffusers import DiffusionPipeline

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(
            f"{name!r} is neither a bundled prior ({', '.join(bundled_priors())}), nor a folder, "
            "nor a hub id like 'google/ddpm-celebahq-256'"
        )
    try:
        index = DiffusionPipeline.load_config(name)
        left = {part: None for part in index if not part.startswith("_") and part not in PARTS}
        try:
            return Path(DiffusionPipeline.download(name, use_safetensors=True, **left))
        except OSError:  # no weights in full precision
            return Path(DiffusionPipeline.download(name, use_safetensors=True, variant="fp16", **left))
    except (OSError, RuntimeError, AttributeError) as error:
        cause: BaseException = error  # what happened at first: the libraries between say less, and guess
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        raise FileNotFoundError(
            f"{name!r} is no folder here and cannot be loaded from the hub (offline, misspelt, or without safetensors "
            f"weights): {str(cause).split('. ')[0].strip('.')}. Offline, give a folder that was downloaded elsewhere, "
            f"or {' or '.join(bundled_priors())}"
        ) from error


def _variant(inside: Path, kind: Any) -> str | None:
    """Which weights of a network to read: None for those in full precision, else the only ones that are there."""
    found = [match for file in inside.iterdir() if (match := _WEIGHT_FILE.fullmatch(file.name))]
    variants = sorted({match[1] or match[2] or "" for match in found})
    if not variants:
        raise ValueError(
            f"{inside} has no *.safetensors weights (pickled ones are not read, they can run code); convert them with "
            f"{kind.__name__}.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        )
    if len(variants) > 1 and variants[0]:
        raise ValueError(
            f"{inside} has weights of the variants {' and '.join(variants)}, and none of full precision; leave one "
            "there, and move the others out"
        )
    return variants[0] or None


def _load(inside: Path, part: str, kind: Any) -> Any:
    """A part from its folder."""
    is_network = part != "scheduler"
    weights: dict[str, Any] = {}
    if is_network:
        settings = {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
        weights = {"variant": _variant(inside, kind), **settings}
    try:
        loaded = kind.from_pretrained(inside, local_files_only=True, **weights)
    except Exception as error:  # whatever diffusers and safetensors raise at what a file says
        raise_out_of_memory(error)
        raise ValueError(f"{inside}: the {kind.__name__} cannot be read: {error}") from error
    if not is_network:
        return loaded
    network, found = loaded
    if lacking := found["missing_keys"]:
        raise ValueError(
            f"{inside}: the weights lack {len(lacking)} tensors of the {kind.__name__}, such as {sorted(lacking)[0]}; "
            "download or save them again"
        )
    return network
