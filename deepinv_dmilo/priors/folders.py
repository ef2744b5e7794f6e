"""What a folder of diffusers has: its parts, of which class each is and where it lies; nothing is loaded."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deepinv_dmilo.utils.warning import warn

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
NETWORKS, AUTOENCODERS = ("unet", "transformer"), ("vae", "vqvae")
PARTS = (*NETWORKS, *AUTOENCODERS, "scheduler")  # that are read of a pipeline
#: what to type about a file of an adapter, of diffusers and of PEFT
ADAPTERS = {
    "pytorch_lora_weights.safetensors": "merge it into its network and save that: pipeline.load_lora_weights(FOLDER), "
    "pipeline.fuse_lora(), pipeline.unload_lora_weights(), pipeline.save_pretrained(MERGED)",
    "adapter_config.json": "merge it into its network and save that: model = model.merge_and_unload(), "
    "model.save_pretrained(MERGED)",
}
PARTS_GIVEN = "LatentPrior(DiffusionPrior(network, scheduler, clip_sample=False), autoencoder)"

Parts = dict[str, tuple[Any, Path]]  # by name: the class, and the folder


def find_parts(folder: Path) -> Parts:
    """
    The parts that are read of a pipeline, of its network alone, or of a training's checkpoint.

    :return: the class and the folder of a network, of its scheduler if there is one, and of an autoencoder, by names.
    :raises FileNotFoundError, ValueError: there is no network of diffusers, or something else beside it.
    """
    parts = _pipeline(folder) if (folder / INDEX).exists() else _around(_network_folder(folder))
    for place in {folder, *(inside for _, inside in parts.values())}:
        if adapter := _adapter(place):
            warn(f"the adapter {place / adapter} is not read; {ADAPTERS[adapter]}")
    return parts


def _adapter(folder: Path) -> str | None:
    """The file of an adapter that a folder has."""
    return next((name for name in ADAPTERS if (folder / name).exists()), None)


def _json(file: Path, what: str) -> dict[str, Any]:
    """What a file of a pipeline says."""
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no {what}: {error}") from error


def _network_folder(folder: Path) -> Path:
    """Where a folder without an index has its network: itself, or one inside, of a checkpoint the averaged weights."""
    inside = [folder / name for part in NETWORKS for name in (f"{part}_ema", part)]
    found = next((place for place in (folder, *inside) if (place / CONFIG).exists()), None)
    if found is not None:
        return found
    if adapter := _adapter(folder):
        raise FileNotFoundError(f"{folder} has an adapter, {adapter}, and no network; {ADAPTERS[adapter]}")
    if (folder / "model.safetensors").exists():
        raise FileNotFoundError(
            f"{folder} has weights as accelerate saves them, which do not tell the network; build it as the training "
            "did, type network.load_state_dict(safetensors.torch.load_file(FILE)) and give both: "
            "DiffusionPrior(network, scheduler)"
        )
    steps = {place: re.fullmatch(r"checkpoint[-_](\d+)", place.name) for place in folder.iterdir()}
    if checkpoints := {place: int(step[1]) for place, step in steps.items() if step}:
        raise FileNotFoundError(
            f"{folder} has no network but those of a training's checkpoints; give the newest, "
            f"{max(checkpoints, key=checkpoints.__getitem__)}"
        )
    raise FileNotFoundError(
        f"{folder} is no diffusers pipeline: it has no {INDEX}; give the folder that "
        "pipeline.save_pretrained(FOLDER) or examples/train_prior.py wrote, or one of a network, with its config.json"
    )


def _around(network: Path) -> Parts:
    """The parts of a network that lies alone: the others are those of the pipeline around it, or a scheduler."""
    kind = _class_of(network / CONFIG, "network")
    if hasattr(kind, "decode"):
        raise ValueError(f"{network} is an autoencoder, a {kind.__name__}; give the folder of the pipeline around it")
    above, output = network.absolute().parents[:2]
    places = network, above, *([output] if above.name.startswith("checkpoint") else [])  # output of the training
    parts: Parts = {}
    if pipeline := next((place for place in places if (place / INDEX).exists()), None):
        parts = {part: found for part, found in _pipeline(pipeline).items() if part not in NETWORKS}
    else:
        nearest = (inside for place in places for inside in (place / "scheduler", place))
        if inside := next((inside for inside in nearest if (inside / SCHEDULER_CONFIG).exists()), None):
            parts["scheduler"] = _class_of(inside / SCHEDULER_CONFIG, "scheduler"), inside
    return {NETWORKS[0]: (kind, network), **parts}


def _class_of(file: Path, part: str) -> Any:
    """The class of diffusers that a configuration names."""
    name = _json(file, "configuration").get("_class_name", "configuration without _class_name")
    return _diffusers_class("diffusers", name, part, file.parent)


def _pipeline(folder: Path) -> Parts:
    """The parts that are read of a pipeline; each has a folder of its own, or all lie in one."""
    index = _json(folder / INDEX, "pipeline index")
    parts: Parts = {}
    for part, kind in _parts(index, folder).items():
        inside = folder / part if (folder / part).is_dir() else folder
        if not (inside / (SCHEDULER_CONFIG if part == "scheduler" else CONFIG)).exists():
            raise ValueError(
                f"{folder} names a {part} and has none; download or save the pipeline again, with {folder / part}"
            )
        parts[part] = kind, inside
    return parts


def _parts(index: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The classes of the parts that are read, by their names in the index; only classes of diffusers are."""
    named = {part: value for part, value in index.items() if part in PARTS and isinstance(value, list) and value[0]}
    if broken := [part for part, value in named.items() if len(value) != 2]:
        raise ValueError(f"{folder / INDEX} is no pipeline index: {broken[0]} is {named[broken[0]]}")
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
