"""Private copies of modules, so that a call never changes those of the caller, not even temporarily."""

from __future__ import annotations

import random as python_random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from threading import Lock
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

_T = TypeVar("_T")
_Module = TypeVar("_Module", bound=nn.Module)
#: dictionaries of a module's tensors and submodules, which ``functional_call`` and ``setattr`` write to
_OWN = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_LIBRARIES = Lock()
_PLAIN = (int, float, complex, bool, str, bytes, type(None))


def frozen(module: _Module, *, shared: tuple[object, ...] = ()) -> _Module:
    """A private copy in evaluation mode, also of a module that overrides ``eval``."""
    copy = private(module, shared=shared)
    for part in copy.modules():
        part.training = False
    return copy


def private(thing: _T, *, shared: tuple[object, ...] = ()) -> _T:
    """
    A copy with new modules and generators that shares the tensors of the original, detached from the graph.

    Setting a mode, a parameter of a physics or the state of a generator on the copy leaves the original as it is, so
    that several threads can share one model and one physics. Unlike ``deepcopy``, it copies neither weights nor hooks,
    nor objects other than modules: a module that only such an object holds is shared.

    :param thing: a module, or a container of modules.
    :param shared: objects that are not copied.
    """
    return _copied(thing, {id(one): one for one in shared})


@contextmanager
def seeded(physics: _T, seed: int) -> Iterator[_T]:
    """
    A private copy of a physics whose generators start at a seed, as do draws without a generator in this context.

    The global random state is neither read nor changed.
    """
    copy, random = seeded_copy(physics, seed)
    with random:
        yield copy


def seeded_copy(physics: _T, seed: int) -> tuple[_T, Seeded]:
    """That copy, and the context to call it in, which may be entered again: the draws continue."""
    memo: dict[int, Any] = {}
    copy = _copied(physics, memo)
    for made in memo.values():
        if isinstance(made, torch.Generator):
            made.manual_seed(seed)
    return copy, Seeded(seed)


@contextmanager
def seeded_libraries(seed: int) -> Iterator[None]:
    """
    Seed the global random states of numpy, Python and torch, and restore them afterwards.

    For third-party code that draws from them. They belong to the process, so that one thread at a time holds them.
    """
    with _LIBRARIES, torch.random.fork_rng(devices=[]):
        states = np.random.get_state(), python_random.getstate()  # noqa: NPY002
        try:
            np.random.seed(seed % 2**32)  # noqa: NPY002
            python_random.seed(seed)
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            python_random.setstate(states[1])


class Seeded(TorchDispatchMode):
    """Gives each operation of this thread that draws from the global random state a private generator instead."""

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
        device = torch.device(device or "cpu")
        if device not in self.rngs:
            self.rngs[device] = torch.Generator(device).manual_seed(self.seed)
        rng = self.rngs[device]
        name = func.overloadpacket.__name__
        if name in ("randn_like", "rand_like"):  # no generator argument before torch 2.10
            empty = torch.empty_like(*args, **kwargs)
            return empty.normal_(generator=rng) if name == "randn_like" else empty.uniform_(generator=rng)
        return func.overloadpacket(*args, **{**kwargs, "generator": rng})


def _copied(thing: Any, memo: dict[int, Any], *, own: bool = False) -> Any:
    """
    The copy of an object and its contents; the object itself where nothing in it needs a copy.

    :param bool own: copy containers in any case: those of a module, which may write into them.
    """
    if id(thing) in memo:
        return memo[id(thing)]
    kind = type(thing)
    if isinstance(thing, nn.Module):
        return _module(thing, memo)
    if kind in (dict, OrderedDict, list):
        return _container(thing, memo, own)
    if kind is FunctionType:
        return _function(thing, memo)
    copy = thing
    if isinstance(thing, torch.Generator):
        copy = torch.Generator(thing.device)
        copy.set_state(thing.get_state())
    elif isinstance(thing, np.random.Generator | np.random.RandomState | python_random.Random):
        copy = deepcopy(thing)
    elif isinstance(thing, Tensor) and not is_lazy(thing):
        copy = thing.clone() if thing.is_inference() else thing.detach() if thing.requires_grad else thing
    elif kind is tuple:
        parts = tuple(_copied(part, memo, own=own) for part in thing)
        copy = thing if all(a is b for a, b in zip(parts, thing, strict=True)) else parts
    elif kind is MethodType:
        owner = _copied(thing.__self__, memo)
        copy = thing if owner is thing.__self__ else MethodType(thing.__func__, owner)
    elif kind is partial:
        function, args, keywords = (_copied(part, memo) for part in (thing.func, thing.args, thing.keywords))
        copy = partial(function, *args, **keywords)
    memo[id(thing)] = copy
    return copy


def _container(thing: Any, memo: dict[int, Any], own: bool) -> Any:
    """A list or dictionary of copies; lists of plain numbers and strings are not searched."""
    copy = memo[id(thing)] = type(thing)()
    if isinstance(thing, list):
        plain = all(type(part) in _PLAIN for part in thing)
        copy.extend(thing if plain else [_copied(part, memo, own=own) for part in thing])
        same = all(a is b for a, b in zip(copy, thing, strict=True))
    else:
        copy.update({key: _copied(part, memo, own=own) for key, part in thing.items()})
        same = all(copy[key] is thing[key] for key in thing)
    if same and not own:
        memo[id(thing)] = thing
    return memo[id(thing)]


def _function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """A function whose closure holds copies, such as a ``forward`` that was patched into a network."""
    memo[id(function)] = function
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    enclosed = {}
    for name, cell in zip(names, cells, strict=True):
        with suppress(ValueError):  # the cell is still empty
            enclosed[name] = cell.cell_contents
    copies = {name: _copied(value, memo) for name, value in enclosed.items()}
    defaults, keywords = (_copied(part, memo) for part in (function.__defaults__, function.__kwdefaults__))
    changed = any(copies[name] is not value for name, value in enclosed.items())
    if not changed and defaults is function.__defaults__ and keywords is function.__kwdefaults__:
        return function
    own = tuple(CellType(copies[name]) if name in copies else cell for name, cell in zip(names, cells, strict=True))
    copy = memo[id(function)] = FunctionType(function.__code__, function.__globals__, function.__name__, defaults, own)
    copy.__kwdefaults__ = keywords
    copy.__dict__.update(function.__dict__)
    return copy


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A new module with copies of all attributes."""
    copy: nn.Module
    if isinstance(module, torch.jit.ScriptModule):  # mode and tensors live in the compiled module
        copy = memo[id(module)] = deepcopy(module)
        return copy
    if hasattr(module, "_orig_mod") and hasattr(module, "dynamo_ctx"):  # torch.compile, bound to its module
        copy = memo[id(module)] = type(module)(_copied(module._orig_mod, memo), module.dynamo_ctx)
        return copy
    copy = memo[id(module)] = object.__new__(type(module))
    for name, value in vars(module).items():
        if name in _OWN:
            value = {key: _copied(part, memo) for key, part in value.items()}
        elif name.endswith(_HOOKS) and isinstance(value, dict):  # hooks are not copied
            value = value.copy()
        else:
            value = _copied(value, memo, own=True)
        copy.__dict__[name] = value
    copy.__dict__["_compiled_call_impl"] = None  # Module.compile, bound to the original
    return copy
