r"""
Reconstructors and priors that installed packages offer, found by their entry points.

A package offers a reconstructor in its ``pyproject.toml``:

.. code-block:: toml

    [project.entry-points."deepinv.reconstructors"]
    my-method = "my_package:MyReconstructor"

and a prior, a function or class that returns a :class:`deepinv_dmilo.DiffusionPrior`, in the group ``deepinv.priors``.
deepinv 0.5 reads no entry points itself; this module does, and imports a package only when something of it is loaded.
Both are called with keywords, and with those alone that they take: a reconstructor with ``prior``, ``max_calls``,
``max_passes``, ``rng``, ``micro_batch``, ``verbose``, ``num_layers``, a prior with ``device``.
"""

from __future__ import annotations

import inspect
import warnings
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

RECONSTRUCTORS = "deepinv.reconstructors"
PRIORS = "deepinv.priors"


def available(group: str = RECONSTRUCTORS) -> list[str]:
    """
    Names that can be loaded, sorted; nothing is imported. A plugin whose package is gone warns and is left out.

    :param str group: ``"deepinv.reconstructors"`` or ``"deepinv.priors"``.

    :Examples:

    >>> from deepinv_dmilo import registry
    >>> [name for name in registry.available() if name.startswith("dm")]
    ['dmilo', 'dmilo-pgd', 'dmilo-sampler', 'dmplug']
    """
    return sorted(_found(group))


def get(name: str, group: str = RECONSTRUCTORS) -> Any:
    """
    The class or function behind a name; imports its package.

    :param str name: one of :func:`available`.
    :param str group: ``"deepinv.reconstructors"`` or ``"deepinv.priors"``.
    :raises ValueError: nothing installed has the name; lists what is.
    :raises ImportError: the package that offers it cannot be imported.
    """
    found = _found(group)
    if name not in found:
        raise ValueError(f"no {name!r} in {group}; installed are {', '.join(sorted(found)) or 'none'}")
    point = found[name]
    try:
        return point.load()
    except Exception as error:
        raise ImportError(f"{name!r} of {_origin(point)} cannot be imported: {error}") from error


def load(name: str, group: str = RECONSTRUCTORS, *, optional: dict[str, Any] | None = None, **settings: Any) -> Any:
    """
    A reconstructor or prior by its name.

    :param str name: one of :func:`available`; of a prior also a diffusers pipeline folder or a hub id.
    :param str group: ``"deepinv.reconstructors"`` or ``"deepinv.priors"``.
    :param dict optional: more settings, which a constructor that does not know them goes without.
    :param settings: arguments of its constructor; a reconstructor's ``prior`` may be the name of one.
    :return: the reconstructor, or the :class:`deepinv_dmilo.DiffusionPrior`.

    :Examples:

    >>> from deepinv_dmilo import registry
    >>> registry.load("dmilo", prior="digits", max_calls=50).max_calls
    50
    """
    if isinstance(settings.get("prior"), str):
        settings["prior"] = load(settings["prior"], PRIORS)
    if group == PRIORS and name not in _found(group):
        from deepinv_dmilo.priors.diffusers import DiffusionPrior

        return DiffusionPrior.from_pretrained(name, **settings, **(optional or {}))
    make = get(name, group)
    known = inspect.signature(make).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return make(**settings, **{key: value for key, value in (optional or {}).items() if takes_all or key in known})


def _found(group: str) -> dict[str, EntryPoint]:
    """Entry points by name; warns of those whose package is gone, and of two with one name, and takes the first."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=group), key=lambda p: (_origin(p), p.value)):
        try:
            is_there = find_spec(point.module.partition(".")[0]) is not None
        except (AttributeError, AssertionError, ValueError, ImportError):
            # A value that names no module (AssertionError: Python 3.13), a module half there.
            is_there = False
        if not is_there:
            _warn(f"{point.name!r} of {_origin(point)} is skipped: there is no module for {point.value}")
            continue
        first = found.setdefault(point.name, point)
        if first.value != point.value:
            _warn(f"{_origin(first)} and {_origin(point)} both offer {point.name!r}: the first is taken")
    return found


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)  # where available, get or load was called


def _origin(point: EntryPoint) -> str:
    """Name of the package that an entry point is from."""
    return point.dist.name if point.dist is not None else point.value.partition(":")[0]
