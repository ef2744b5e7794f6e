"""What the package imports is what it declares, it has one version, and a name means one thing."""

import ast
import re
import sys
from pathlib import Path

import pytest

import deepinv_dmilo

ROOT = Path(__file__).parent.parent
PACKAGE = Path(deepinv_dmilo.__file__).parent
DISTRIBUTIONS = {"PIL": "pillow", "stlpips_pytorch": "stlpips-pytorch"}  # those whose module has another name


def imported():
    """The package's modules that come from elsewhere, each with the file that imports it last."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found.update((name.partition(".")[0], file) for name in names)
    return found


in_repository = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="tests outside the repository")


@in_repository
def test_every_import_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|bench|perceptual) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    declared = set(re.findall(r'"([\w-]+)', " ".join(lists))) | {"deepinv_dmilo"}
    assert len(lists) == 3
    foreign = {DISTRIBUTIONS.get(name, name) for name in imported() if name not in sys.stdlib_module_names}
    assert foreign - declared == set()


@in_repository
def test_a_version_is_the_same_everywhere():
    def first(pattern, file):
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]

    found = {
        deepinv_dmilo.__version__,
        first(r'^version = "(.*)"$', "pyproject.toml"),
        first(r"^version: (.*)$", "CITATION.cff"),
        first(r"^## (\d\S*)", "CHANGELOG.md"),
    }
    assert len(found) == 1


def test_no_tool_for_tests_is_used_by_the_package():
    assert imported().keys().isdisjoint({"unittest", "pytest"})


def test_a_public_name_means_one_thing():
    """Each is defined in one module; ``main`` and benchopt's ``Solver`` are what others call them."""
    homes = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            defined = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in filter(None, targets):
                defined += [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
            for name in defined:
                homes.setdefault(name, set()).add(file)
    twice = {name for name, files in homes.items() if len(files) > 1 and not name.startswith("_")}
    assert twice == {"main", "Solver"}
