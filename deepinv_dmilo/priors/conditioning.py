"""The configuration of a network, and its inputs other than latent and time: labels, prompts, ..."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Conditioning = Mapping[str, Any]  # tensors by name, or mappings of these
#: what to do about a network that does not take what it is given
REMEDY = "give a prior, a physics and conditioning that go together in channels, size and type"
#: transformers of diffusers whose time argument is that of their scheduler
TRANSFORMERS = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel")


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


def unwrapped(network: Any) -> Any:
    """The network inside of what trains, compiles or adapts it, such as torch's DataParallel or PEFT's adapters."""
    if callable(base := getattr(network, "get_base_model", None)):
        return unwrapped(base())
    is_torchs = type(network).__module__.startswith("torch.") and not isinstance(network, torch.jit.ScriptModule)
    names = ("_orig_mod", "module") if is_torchs else ()
    inside = next((part for name in names if isinstance(part := getattr(network, name, None), nn.Module)), None)
    return network if inside is None else unwrapped(inside)


def configuration(network: Any, name: str) -> Any:
    """What a network's configuration has under a name; None if there is no such entry."""
    return getattr(getattr(unwrapped(network), "config", None), name, None)


def _arguments(network: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What a network takes, by name; of one in TorchScript by its schema, after the module itself."""
    forward = unwrapped(network).forward
    if not isinstance(forward, torch.ScriptMethod):
        return inspect.signature(forward).parameters
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    return {
        a.name: inspect.Parameter(a.name, kind, default=a.default_value if a.has_default_value() else empty)
        for a in forward.schema.arguments[1:]
    }


def remedy(network: nn.Module) -> str:
    """What to do about a network that does not take what it is given; of one around a single network, give that."""
    inside = [name for name, part in network.named_children() if getattr(unwrapped(part), "config", None) is not None]
    if getattr(unwrapped(network), "config", None) is None and len(inside) == 1:
        kind = type(network).__name__
        return f"the {kind} does not tell what it takes: give the network inside it, such as wrapper.{inside[0]}"
    return REMEDY


def names_timestep(network: nn.Module) -> bool:
    """Whether the network's time has diffusers' name; transformers of diffusers have it at other places than second."""
    return "timestep" in _arguments(network)


def check_time(network: nn.Module) -> None:
    """Refuse transformers of diffusers whose time argument has another form."""
    kind = type(unwrapped(network))
    is_transformer = kind.__module__.startswith("diffusers.") and "Transformer" in kind.__name__
    if is_transformer and kind.__name__ not in TRANSFORMERS:
        raise ValueError(
            f"how a {kind.__name__} is told the time is not known; give one of {', '.join(TRANSFORMERS)}, a UNet, "
            "or a module of your own that calls it, as network(z, t) with the scheduler's t"
        )


def check_conditioning(network: nn.Module, conditioning: Conditioning) -> None:
    """Refuse conditions that are no tensors, that the network does not know, or that it lacks."""
    for name, row in leaves(conditioning):
        if not torch.is_tensor(row) or not row.ndim:
            raise TypeError(
                f"conditioning[{name!r}] is {row!r}; give a tensor with a row for all images or for each, such as "
                "torch.tensor([207])"
            )
    known = _arguments(network)
    kind = type(unwrapped(network)).__name__
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    if unknown := conditioning.keys() - known.keys():
        raise TypeError(f"{kind} takes no {min(unknown)!r}; type some of {', '.join(known)} in conditioning")
    wanted = {name for name, p in list(known.items())[1:] if p.default is p.empty and name != "timestep"}
    if "timestep" not in known:
        wanted -= set(list(known)[1:2])  # it is given the time there
    has_labels = any(configuration(network, name) is not None for name in ("num_class_embeds", "class_embed_type"))
    if has_labels or configuration(network, "norm_type") == "ada_norm_zero":
        wanted.add("class_labels")
    for name in sorted(wanted - conditioning.keys()):
        example = "torch.tensor([207])" if name == "class_labels" else "tensor of shape (1, ...)"
        raise TypeError(f"a {kind} wants {name}; in Python, type conditioning={{{name!r}: {example}}}")
