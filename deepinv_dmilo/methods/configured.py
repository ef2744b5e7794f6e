"""Settings as the fields of a class: checked for misspelt names, filled from presets, printed."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any, ClassVar, TypeVar

import torch
from deepinv.models import Reconstructor

from deepinv_dmilo.priors.prior import Prior

_Model = TypeVar("_Model", bound="Configured")


class Configured(Reconstructor):
    """A reconstructor whose settings are the fields of a dataclass, each defined once."""

    #: settings of the paper, by task
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: hints for settings that the constructor does not take
    moved: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **settings: Any) -> None:
        """Keep the identity semantics of a module in subclasses under a bare ``@dataclass``, too."""
        super().__init_subclass__(**settings)
        for name in ("__hash__", "__eq__", "__repr__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        """Refuse unknown settings, and initialise the torch module before its fields are set."""
        taken = list(signature(cls.__init__).parameters.values())[1:]
        known = [p.name for p in taken if p.kind is not Parameter.VAR_POSITIONAL]
        takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in taken)  # in a subclass with its own constructor
        for name in () if takes_any else settings:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = cls.moved.get(name, f"type {close[0]}" if close else f"type some of {', '.join(known)}")
                raise TypeError(f"{cls.__name__} has no setting {name!r}: {hint}")
        self = super().__new__(cls)
        Reconstructor.__init__(self)
        return self

    @classmethod
    def from_preset(cls: type[_Model], name: str, prior: Prior, **overrides: Any) -> _Model:
        """
        The method with the paper's settings for a task.

        :param str name: one of ``presets``: inpainting, super_resolution, deblurring, nonlinear_deblurring,
            of DMILO also blind_deblurring, which needs ``unknown=``.
        :param Prior prior: the prior.
        :param overrides: settings that replace those of the preset, e.g. ``outer_steps=2``.
        :return: the reconstructor.
        """
        if not isinstance(name, str):
            raise TypeError(f"from_preset takes the task first: type {cls.__name__}.from_preset('inpainting', prior)")
        preset = cls.presets.get(name.replace("-", "_"))
        if preset is None:
            known = f"one of {', '.join(cls.presets)}" if cls.presets else f"{cls.__name__}(prior), it has none"
            raise ValueError(f"no preset {name!r} for {cls.__name__}; type {known}")
        if parts := overrides.keys() & {"schedule", "solver"}:
            raise TypeError(
                f"from_preset sets {' and '.join(sorted(parts))} itself; type names of their settings, such as "
                f"outer_steps=2, inner_steps=50, or {cls.__name__}(prior, ...)"
            )
        return cls._from_flat(prior, {**preset, **overrides})

    @classmethod
    def _from_flat(cls: type[_Model], prior: Prior, settings: dict[str, Any]) -> _Model:
        """The method from the settings of a preset."""
        return cls(prior, **settings)

    def extra_repr(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {k: v for k, v in shown.items() if not isinstance(v, torch.nn.Module)}  # torch prints modules itself
        shown = {k: f"a generator on {v.device}" if isinstance(v, torch.Generator) else v for k, v in shown.items()}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())
