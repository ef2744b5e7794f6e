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
#: from the ground up; a room imports from itself and those below it, the command line from all
ROOMS = ("core", "priors", "reconstructors", "registry", "tools", "benchmarks")


def imported(module):
    """Names that a module imports, at its top or inside a function; those for a type checker alone do not count."""
    names = set()
    tree = ast.parse(FILES[module].read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(module):
    return module.split(".")[1] if "." in module else "deepinv_dmilo"


@pytest.mark.parametrize("module", [m for m in FILES if room(m) == "core"])
def test_the_core_knows_no_family_file_or_command(module):
    foreign = {"diffusers", "accelerate", "argparse", "PIL", "matplotlib", "pathlib", "safetensors"}
    assert not foreign & {name.partition(".")[0] for name in imported(module)}


@pytest.mark.parametrize("module", [m for m in FILES if room(m) in ROOMS and m != "deepinv_dmilo.tools.cli"])
def test_a_room_imports_from_those_below_it(module):
    below = ROOMS[: ROOMS.index(room(module)) + 1]
    ours = {name for name in imported(module) if name in FILES and name != "deepinv_dmilo"}
    assert {room(name) for name in ours} <= set(below)


def test_no_imports_go_in_a_circle():
    graph = {module: imported(module) & FILES.keys() - {"deepinv_dmilo"} for module in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # raises CycleError otherwise
