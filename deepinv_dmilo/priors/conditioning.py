"""What a network is told beside the latent and the time: labels, prompts, ..., a row for all images or for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Conditioning = Mapping[str, Any]  # tensors by name, or mappings of these


def mapped(conditioning: Conditioning, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A function of every tensor."""
    return {
        name: mapped(value, function) if isinstance(value, Mapping) else function(value)
        for name, value in conditioning.items()
    }


def leaves(conditioning: Conditioning) -> list[tuple[str, Any]]:
    """What is no mapping, and its name."""
    found = []
    for name, value in conditioning.items():
        found += leaves(value) if isinstance(value, Mapping) else [(name, value)]
    return found


def names_timestep(network: nn.Module) -> bool:
    """Whether the network's time has diffusers' name; transformers of diffusers have it at other places than second."""
    return "timestep" in inspect.signature(network.forward).parameters


def check_conditioning(network: nn.Module, conditioning: Conditioning) -> None:
    """Refuse conditions that are no tensors, that the network does not know, or that it lacks."""
    for name, row in leaves(conditioning):
        if not torch.is_tensor(row) or not row.ndim:
            raise TypeError(
                f"conditioning[{name!r}] is {row!r}; give a tensor with a row for all images or for each, such as "
                "torch.tensor([207])"
            )
    known = inspect.signature(network.forward).parameters
    kind = type(network).__name__
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    if unknown := conditioning.keys() - known.keys():
        raise TypeError(f"{kind} takes no {min(unknown)!r}; type some of {', '.join(known)} in conditioning")
    wanted = {name for name, p in list(known.items())[1:] if p.default is p.empty and name != "timestep"}
    if "timestep" not in known:
        wanted -= set(list(known)[1:2])  # it is given the time there
    config = getattr(network, "config", None)
    has_labels = any(getattr(config, name, None) is not None for name in ("num_class_embeds", "class_embed_type"))
    if has_labels or getattr(config, "norm_type", None) == "ada_norm_zero":
        wanted.add("class_labels")
    for name in sorted(wanted - conditioning.keys()):
        example = "torch.tensor([207])" if name == "class_labels" else "tensor of shape (1, ...)"
        raise TypeError(f"a {kind} wants {name}; in Python, type conditioning={{{name!r}: {example}}}")
