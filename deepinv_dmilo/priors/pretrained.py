"""Where priors come from: bundled folders, diffusers pipeline folders, the hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepinv_dmilo.priors.folders import AUTOENCODERS, CONFIG, INDEX, NETWORKS, PARTS, PARTS_GIVEN, find_parts
from deepinv_dmilo.priors.prior import not_finite
from deepinv_dmilo.utils.memory import raise_out_of_memory
from deepinv_dmilo.utils.warning import warn

BUNDLED = Path(__file__).parent
# Whole, or a shard; of a variant such as fp16, or of none. Older shards name the variant last.
_WEIGHT_FILE = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")


def bundled_priors() -> list[str]:
    """Names of the priors inside the package."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/model_index.json"))


def prior_folder(name: str | Path) -> Path:
    """Folder of a bundled prior, or ``name`` itself as a path; it need not exist. A ``Path`` is no bundled name."""
    bundled = isinstance(name, str) and name in bundled_priors()
    return BUNDLED / name if bundled else Path(os.path.expanduser(name))


def held_out_images(name: str | Path = "digits") -> Tensor:
    r"""
    The images that a prior of ``examples/train_prior.py`` was not trained on, for evaluation.

    :param str, pathlib.Path name: bundled prior or folder with ``held_out.npz``.
    :return: images in [0, 1], shape (N, C, H, W), float32.
    """
    file = prior_folder(name) / "held_out.npz"
    if not file.exists():
        names = " or ".join(bundled_priors())
        raise FileNotFoundError(f"{file} does not exist; type {names}, or a folder that examples/train_prior.py made")
    with np.load(file, allow_pickle=False) as archive:
        return torch.from_numpy(archive["images"]).float() / 255


def load_pipeline(name: str | Path, scheduler: Any = None) -> tuple[Any, Any, Any]:
    """
    The denoising network, the scheduler and the autoencoder (None: in pixels) of a diffusers pipeline.

    :param str, pathlib.Path name: bundled name, hub id, or folder of a pipeline, of its network or of a training's
        checkpoint; a path is a folder.
    :param scheduler: in place of the one that is saved there.
    """
    if not isinstance(name, str | Path):
        raise TypeError(
            f"name is a {type(name).__name__}; type a bundled name, a folder or a hub id, or give parts: {PARTS_GIVEN}"
        )
    folder = _folder(name)
    parts = find_parts(folder)
    if scheduler is not None:
        parts.pop("scheduler", None)
    elif "scheduler" not in parts:
        raise FileNotFoundError(
            f"{folder} has a network alone, without the scheduler that it was trained with; in Python, type "
            "DiffusionPrior.from_pretrained(FOLDER, scheduler=diffusers.DDPMScheduler(...)), with the settings of the "
            "training, or give the folder of the pipeline"
        )
    with _silent():
        loaded = {part: _load(inside, part, kind) for part, (kind, inside) in parts.items()}
    network = next(loaded[part] for part in NETWORKS if part in loaded)
    autoencoder = next((loaded[part] for part in AUTOENCODERS if part in loaded), None)
    return network, loaded.get("scheduler", scheduler), autoencoder


@contextmanager
def _silent() -> Iterator[None]:
    """No progress bar of diffusers, for a few files; missing or unused weights are reported here."""
    from diffusers.utils import logging as of_diffusers

    bar_was_on, logger = of_diffusers.is_progress_bar_enabled(), logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    of_diffusers.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar_was_on:
            of_diffusers.enable_progress_bar()


def _folder(name: str | Path) -> Path:
    """The folder that a name means; a text that is the name of a bundled prior means that one."""
    folder = prior_folder(name)
    if name in bundled_priors() and Path(name, INDEX).exists():
        warn(f"{name!r} is the bundled prior; for the folder of that name here type './{name}'")
    if folder.is_file():
        whole = any((folder.parent / file).exists() for file in (INDEX, CONFIG))
        place = f"its folder, {folder.parent}" if whole else "a folder that pipeline.save_pretrained(FOLDER) wrote"
        raise ValueError(f"{name} is a file; give {place}")
    if not folder.exists() and isinstance(name, Path):
        raise FileNotFoundError(f"{folder} does not exist; give the folder of a prior, or as text a name or a hub id")
    return folder if folder.exists() else _from_the_hub(str(name))


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
    if not variants and (others := sorted(file.name for file in inside.glob("*.safetensors"))):
        raise ValueError(
            f"{inside} has {', '.join(others[:3])}, and weights are read from diffusion_pytorch_model.safetensors; "
            f"rename what are those of the {kind.__name__}, or save it again with save_pretrained(FOLDER)"
        )
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
    _check_weights(network, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), str(inside))
    return network


def _check_weights(network: Any, lacking: list[str], unknown: list[str], where: str) -> None:
    """Refuse weights that are not those of the network, or not finite; warn of unused ones."""
    kind = type(network).__name__
    if lacking:
        wrapper = next((name.removesuffix(lacking[0]) for name in unknown if name.endswith(f".{lacking[0]}")), None)
        if wrapper and {wrapper + name for name in lacking} <= set(unknown):
            raise ValueError(
                f"{where}: the weights are those of a {kind} inside of something else (DataParallel, torch.compile, "
                f"...), {wrapper!r} before each name; save the network alone: wrapper.{wrapper}save_pretrained(FOLDER)"
            )
        raise ValueError(
            f"{where}: the weights lack {len(lacking)} tensors of the {kind}, such as {lacking[0]}; "
            "download or save them again"
        )
    if unknown:
        warn(f"{where}: {len(unknown)} tensors are none of the {kind} and are not read, such as {unknown[0]}")
    if diverged := not_finite(network):
        raise ValueError(
            f"{where}: {len(diverged)} tensors have NaN or infinite weights, such as {diverged[0]}: the training "
            "diverged, or half precision overflowed; give a checkpoint from before"
        )
