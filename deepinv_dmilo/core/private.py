"""Private copies of modules: a call works on its own, so that nothing of the caller's is changed, even for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_T = TypeVar("_T")
#: what a module keeps its tensors and members in, which ``functional_call`` and ``setattr`` write to
_OWN = ("_parameters", "_buffers", "_modules")


def private(thing: _T, *, shared: tuple[object, ...] = ()) -> _T:
    """
    A copy with modules and generators of its own, and with the same tensors, of which no gradient is taken.

    What is set on the copy (a mode, a parameter of a physics, the state of a generator) is not set on the original, so
    that several threads may use one model and one physics. Neither weights nor hooks are copied, as by ``deepcopy``.

    :param thing: a module, or a container of modules.
    :param shared: what is not copied.
    """
    return _copied(thing, {id(one): one for one in shared})


@contextmanager
def seeded(physics: _T, seed: int) -> Iterator[_T]:
    """
    A private copy of a physics whose generators start at a seed, as does all that draws without one inside.

    The global random state is neither read nor changed.
    """
    copy, random = seeded_copy(physics, seed)
    with random:
        yield copy


def seeded_copy(physics: _T, seed: int) -> tuple[_T, Seeded]:
    """That copy, and what it is to be called in; each time the next numbers come."""
    memo: dict[int, Any] = {}
    copy = _copied(physics, memo)
    for made in memo.values():
        if isinstance(made, torch.Generator):
            made.manual_seed(seed)
    return copy, Seeded(seed)


class Seeded(TorchDispatchMode):
    """Gives every operation of this thread that draws from the global random state a generator of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.rngs: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        if given or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        device = next((value.device for value in args if isinstance(value, Tensor)), kwargs.get("device"))
        rng = self._rng(torch.device(device or "cpu"))
        name = func.overloadpacket.__name__
        if name in ("randn_like", "rand_like"):  # which take no generator before torch 2.10
            empty = torch.empty_like(*args, **kwargs)
            return empty.normal_(generator=rng) if name == "randn_like" else empty.uniform_(generator=rng)
        return func.overloadpacket(*args, **{**kwargs, "generator": rng})

    def _rng(self, device: torch.device) -> torch.Generator:
        if device not in self.rngs:
            self.rngs[device] = torch.Generator(device).manual_seed(self.seed)
        return self.rngs[device]


def _copied(thing: Any, memo: dict[int, Any]) -> Any:
    """The copy of a thing and of what it holds; a thing that holds nothing to be copied is its own copy."""
    if id(thing) in memo:
        return memo[id(thing)]
    if isinstance(thing, nn.Module):
        return _module(thing, memo)
    copy = thing
    if isinstance(thing, torch.Generator):
        copy = torch.Generator(thing.device)
        copy.set_state(thing.get_state())
    elif isinstance(thing, Tensor):
        copy = thing.detach() if thing.requires_grad else thing
    elif type(thing) in (list, tuple):
        parts = [_copied(part, memo) for part in thing]
        copy = thing if all(a is b for a, b in zip(parts, thing, strict=True)) else type(thing)(parts)
    elif type(thing) in (dict, OrderedDict):
        values = {name: _copied(value, memo) for name, value in thing.items()}
        copy = thing if all(values[name] is thing[name] for name in thing) else type(thing)(values)
    elif type(thing) is MethodType:
        owner = _copied(thing.__self__, memo)
        copy = thing if owner is thing.__self__ else MethodType(thing.__func__, owner)
    elif type(thing) is partial:
        parts = [_copied(part, memo) for part in (thing.func, thing.args, thing.keywords)]
        copy = partial(parts[0], *parts[1], **parts[2])
    memo[id(thing)] = copy
    return copy


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A module of its own dictionary, with copies of what is in it."""
    if hasattr(module, "_orig_mod") and hasattr(module, "dynamo_ctx"):  # of torch.compile, bound to the module inside
        copy = memo[id(module)] = type(module)(_copied(module._orig_mod, memo), module.dynamo_ctx)
        return copy
    copy = memo[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        own = name in _OWN
        copy.__dict__[name] = {key: _copied(t, memo) for key, t in value.items()} if own else _copied(value, memo)
    return copy
