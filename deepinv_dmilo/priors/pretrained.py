"""Where priors come from: bundled folders, diffusers pipeline folders, the hub."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepinv_dmilo.core.measurements import raise_out_of_memory

BUNDLED = Path(__file__).parent
NETWORKS, AUTOENCODERS = ("unet", "transformer"), ("vae", "vqvae")
PARTS = (*NETWORKS, *AUTOENCODERS, "scheduler")  # that are read of a pipeline
PARTS_GIVEN = "LatentPrior(DiffusionPrior(network, scheduler, clip_sample=False), autoencoder)"


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


def load_pipeline(name: str) -> tuple[Any, Any, Any]:
    """
    The denoising network, the scheduler and the autoencoder (None: in pixels) of a diffusers pipeline.

    :param str name: bundled name, pipeline folder or hub id.
    """
    from diffusers.utils import logging

    if not isinstance(name, str | Path):
        raise TypeError(
            f"name is a {type(name).__name__}; type a bundled name, a folder or a hub id, or give parts: {PARTS_GIVEN}"
        )
    folder = prior_folder(str(name))
    if not folder.exists():
        folder = _from_the_hub(str(name))
    parts = _parts(_index(folder), folder)
    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a few files, no time
    try:
        loaded = {part: _load(folder, part, kind) for part, kind in parts.items()}
    finally:
        if bar_was_on:
            logging.enable_progress_bar()
    network = next(loaded[part] for part in NETWORKS if part in loaded)
    return network, loaded["scheduler"], next((loaded[part] for part in AUTOENCODERS if part in loaded), None)


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
        return Path(DiffusionPipeline.download(name, use_safetensors=True, **left))
    except (OSError, RuntimeError, AttributeError) as error:
        cause: BaseException = error  # what happened at first: the libraries between say less, and guess
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        raise FileNotFoundError(
            f"{name!r} is no folder here and cannot be loaded from the hub (offline, misspelt, or without safetensors "
            f"weights): {str(cause).split('. ')[0].strip('.')}. Offline, give a folder that was downloaded elsewhere, "
            f"or {' or '.join(bundled_priors())}"
        ) from error


def _index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says."""
    file = folder / "model_index.json"
    if not file.exists():
        if (folder / "config.json").exists():
            raise FileNotFoundError(
                f"{folder} has a network alone, without the scheduler that it was trained with; give the folder of the "
                f"pipeline, or both: {PARTS_GIVEN}"
            )
        raise FileNotFoundError(
            f"{folder} is no diffusers pipeline: it has no model_index.json; give the folder that "
            "pipeline.save_pretrained(FOLDER) or examples/train_prior.py wrote"
        )
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no pipeline index: {error}") from error


def _parts(index: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The classes of the parts that are read, by their names in the index; only classes of diffusers are."""
    named = {part: value for part, value in index.items() if part in PARTS and isinstance(value, list) and value[0]}
    if broken := [part for part, value in named.items() if len(value) != 2]:
        raise ValueError(f"{folder / 'model_index.json'} is no pipeline index: {broken[0]} is {named[broken[0]]}")
    networks = [part for part in NETWORKS if part in named]
    if len(networks) != 1 or "scheduler" not in named:
        raise ValueError(
            f"{folder}: a pipeline of {index.get('_class_name')} is not supported; give one with a denoising network "
            f"({' or '.join(NETWORKS)}), a scheduler and, of latents, an autoencoder ({' or '.join(AUTOENCODERS)})"
        )
    if lacking := [part for part in AUTOENCODERS if part in index and part not in named]:
        raise ValueError(
            f"{folder}: the pipeline has lost its {lacking[0]}, which its latents need; give both: {PARTS_GIVEN}"
        )
    others = [part for part, value in index.items() if part not in PARTS and _is_network(value)]
    if others:
        raise ValueError(
            f"{folder}: a pipeline with a {others[0]} beside {networks[0]} is not supported; give one of a network "
            f"alone, or with an autoencoder ({' or '.join(AUTOENCODERS)})"
        )
    return {part: _diffusers_class(library, kind, part, folder) for part, (library, kind) in named.items()}


def _is_network(value: Any) -> bool:
    """Whether an entry of an index names a network of diffusers."""
    import diffusers

    if not isinstance(value, list) or len(value) != 2 or value[0] != "diffusers":
        return False
    kind = getattr(diffusers, str(value[1]), None)
    return isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)


def _diffusers_class(library: str, name: str, part: str, folder: Path) -> Any:
    import diffusers

    kind = getattr(diffusers, str(name), None)
    if name == "KarrasVeScheduler":  # a dummy at the top, where transformers is not installed
        from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler as kind
    base = diffusers.SchedulerMixin if part == "scheduler" else diffusers.ModelMixin
    if library not in ("diffusers", "deprecated") or not isinstance(kind, type) or not issubclass(kind, base):
        raise ValueError(
            f"{folder}: its {part} is a {name} of {library}, which is not read; give one of diffusers "
            f"{version('diffusers')} (no code but that of diffusers is run)"
        )
    return kind


def _load(folder: Path, part: str, kind: Any) -> Any:
    """A part from its own folder, or from the pipeline's where everything lies in one."""
    inside = folder / part if (folder / part).is_dir() else folder
    is_network = part != "scheduler"
    if not (inside / ("config.json" if is_network else "scheduler_config.json")).exists():
        raise ValueError(
            f"{folder} names a {part} and has none; download or save the pipeline again, with {folder / part}"
        )
    if is_network and not list(inside.glob("*.safetensors")):
        raise ValueError(
            f"{inside} has no *.safetensors weights (pickled ones are not read, they can run code); convert them with "
            f"{kind.__name__}.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(FOLDER)"
        )
    weights = {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True} if is_network else {}
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
