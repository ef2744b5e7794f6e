"""Entry points: what is installed is found, what is broken is skipped, nothing is imported before it is loaded."""

import subprocess
import sys

import pytest
import torch

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior, DMPlug, registry

PLUGIN = """
import torch
from deepinv.models import Reconstructor


class Backprojection(Reconstructor):
    def __init__(self, *, gain=1.0):
        super().__init__()
        self.gain = gain

    def forward(self, y, physics):
        return self.gain * physics.A_adjoint(y)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package with one module and these entry points, as pip lays it out."""

    def install(name, entry_points, code=PLUGIN):
        site = tmp_path / "site"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        if code is not None:
            (site / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[deepinv.reconstructors]\n{entry_points}\n")
        monkeypatch.syspath_prepend(str(site))

    return install


def test_ours_are_found():
    assert {"dmilo", "dmilo-pgd", "dmplug"} <= set(registry.available())
    assert "digits" in registry.available(registry.PRIORS)
    assert [registry.get(name) for name in ("dmilo", "dmilo-pgd", "dmplug")] == [DMILO, DMILOPGD, DMPlug]


def test_load_takes_a_prior_by_name_or_as_it_is():
    prior = registry.load("digits", registry.PRIORS, clip_sample=False)
    assert isinstance(prior, DiffusionPrior)
    assert not prior.clip_sample
    assert registry.load("dmilo-pgd", prior=prior, max_passes=7).prior is prior
    assert registry.load("dmilo", prior="digits", max_calls=50).max_calls == 50
    assert registry.load("dmplug", prior="digits", num_layers=4).num_layers == 4


def test_a_package_that_somebody_else_wrote_is_found(install):
    install("their_method", "backprojection = their_method:Backprojection")
    assert "backprojection" in registry.available()
    assert "their_method" not in sys.modules
    model = registry.load("backprojection", gain=2.0)
    assert model.gain == 2
    assert registry.load("backprojection", optional={"gain": 3.0, "prior": "digits", "max_passes": 5}).gain == 3
    assert model.__class__.__module__ == "their_method"


def test_a_broken_package_warns_and_is_skipped(install):
    install("gone", "lost = gone:Lost", code=None)
    with pytest.warns(RuntimeWarning, match="'lost' of gone is skipped: there is no module for gone:Lost"):
        names = registry.available()
    assert "lost" not in names
    install("garbled", "odd = not-a-module:Thing", code=None)
    with pytest.warns(RuntimeWarning, match="'odd' of garbled is skipped"):
        assert "odd" not in registry.available()
    assert "dmilo" in names


def test_a_package_that_fails_to_import_says_which(install):
    install("failing", "fails = failing:Fails", code="import a_module_that_nobody_has")
    with pytest.raises(ImportError, match=r"'fails' of failing cannot be imported: No module named 'a_module"):
        registry.get("fails")


def test_of_two_with_one_name_the_first_is_taken_with_a_warning(install):
    install("another", "dmilo = another:Backprojection")
    with pytest.warns(RuntimeWarning, match="another and deepinv-dmilo both offer 'dmilo': the first is taken"):
        assert registry.get("dmilo").__name__ == "Backprojection"


def test_an_unknown_name_lists_what_is_installed():
    with pytest.raises(ValueError, match=r"no 'dmillo' in deepinv\.reconstructors; installed are dmilo, dmilo-pgd"):
        registry.load("dmillo", prior="digits")
    with pytest.raises(FileNotFoundError, match="neither a bundled prior"):
        registry.load("dmilo", prior="no such prior")


def test_nothing_heavy_is_imported_before_it_is_loaded():
    code = (
        "import sys; from deepinv_dmilo import registry; print(registry.available()); "
        "assert not {'torch', 'deepinv', 'diffusers'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "dmilo-pgd" in shown


def test_a_loaded_method_reconstructs(install):
    from deepinv.physics import Denoising

    install("their_method", "backprojection = their_method:Backprojection")
    y = torch.rand(2, 1, 8, 8)
    assert torch.equal(registry.load("backprojection")(y, Denoising()), y)
