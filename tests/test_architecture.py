"""Imports point one way, and the core knows no network family, file or command."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import deepinv_dmilo

PACKAGE = Path(deepinv_dmilo.__file__).parent
FILES = {
    ".".join(("deepinv_dmilo", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}
#: from the ground up; a room imports from itself and those below it
ROOMS = (
    "utils",
    "optim",
    "priors",
    "likelihood",
    "posterior",
    "schedules",
    "methods",
    "registry",
    "deepinv_dmilo",
    "tools",
    "benchmarks",
    "__main__",
)
CORE = ("utils", "optim", "likelihood", "posterior", "schedules", "methods")
#: what a module imports for a type checker alone and thereby closes a circle
CIRCLES = {}


def imported(module):
    """Names that a module imports, at its top, inside a function, or for a type checker alone."""
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= parts if parts <= FILES.keys() else {node.module, *parts}
    return names


def room(module):
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("module", [m for m in FILES if room(m) in CORE or m == "deepinv_dmilo.priors.prior"])
def test_the_core_knows_no_family_file_or_command(module):
    foreign = {"diffusers", "accelerate", "argparse", "PIL", "matplotlib", "pathlib", "safetensors"}
    assert not foreign & {name.partition(".")[0] for name in imported(module)}


@pytest.mark.parametrize("module", FILES)
def test_a_room_imports_from_those_below_it(module):
    below = ROOMS[: ROOMS.index(room(module)) + 1]
    assert {room(name) for name in imported(module) & FILES.keys()} <= set(below)


def test_no_imports_go_in_a_circle():
    graph = {module: (imported(module) & FILES.keys()) - CIRCLES.get(module, set()) for module in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # raises CycleError otherwise
