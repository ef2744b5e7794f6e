"""Sphinx configuration: ``python -m sphinx -W --keep-going docs docs/build`` builds the site."""

import builtins
import http.client
import sys
import urllib.request

import deepinv_dmilo

project = "deepinv_dmilo"
author = copyright = "The deepinv_dmilo contributors"
release = deepinv_dmilo.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
]
exclude_patterns = ["build", "report/*/remarks.md", "auto_examples/**/*.ipynb", "auto_examples/**/*.py"]
templates_path = ["_templates"]
nitpicky = True
autodoc_typehints = "none"  # the parameters' types are in the docstrings
myst_heading_anchors = 3
bibtex_bibfiles = ["refs.bib"]

# -- other projects --------------------------------------------------------
# A project whose inventory cannot be fetched gets no links, and its names are not looked for.

INVENTORIES = {
    "python": "https://docs.python.org/3",
    "numpy": "https://numpy.org/doc/stable",
    "torch": "https://docs.pytorch.org/docs/stable",
    "deepinv": "https://deepinv.github.io/deepinv",
    "diffusers": "https://huggingface.co/docs/diffusers/main/en",
}
PYTHON_NAMES = [*vars(builtins), *(rf"{module}\..*" for module in sys.stdlib_module_names)]


def is_reachable(address: str) -> bool:
    """Whether the inventory of a documentation site can be fetched, within seconds."""
    try:
        with urllib.request.urlopen(f"{address}/objects.inv", timeout=5) as response:
            return response.read(20).startswith(b"# Sphinx inventory")
    except (OSError, http.client.HTTPException):
        return False


reachable = {name: is_reachable(address) for name, address in INVENTORIES.items()}
intersphinx_mapping = {name: (INVENTORIES[name], None) for name, found in reachable.items() if found}
missing = [name for name, found in reachable.items() if not found]
nitpick_ignore_regex = [
    ("py:.*", "|".join(PYTHON_NAMES) if name == "python" else rf"{name}(\..*)?") for name in missing
]
if missing:
    print(f"intersphinx: no links into {', '.join(missing)}, whose inventories cannot be fetched")

# -- gallery ---------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/demo_",  # these are executed
    "ignore_pattern": "^(?!demo_)",  # command line scripts
    "subsection_order": ["../examples/problems", "../examples/method", "../examples/priors", "*"],
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "gen_modules/backreferences",
    "doc_module": ("deepinv_dmilo",),
    "image_scrapers": ("matplotlib",),
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}

# -- pages -----------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "deepinv_dmilo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_sidebars = {"*": []}  # pages of the top level have no section to navigate
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False, "header_links_before_dropdown": 5}
