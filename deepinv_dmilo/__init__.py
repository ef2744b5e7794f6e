"""DMILO and DMILO-PGD for deepinv: reconstruction with a pretrained diffusion model, layer by layer."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepinv_dmilo.likelihood.constraints import BlurKernel, Custom, Free, Positive, Simplex
    from deepinv_dmilo.methods.dmilo import DMILO
    from deepinv_dmilo.methods.dmilo_pgd import DMILOPGD
    from deepinv_dmilo.methods.dmilo_sampler import DMILOSampler
    from deepinv_dmilo.methods.dmplug import DMPlug
    from deepinv_dmilo.optim.solvers import LBFGS, Adam
    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.latent import LatentPrior
    from deepinv_dmilo.priors.slicewise import Slicewise
    from deepinv_dmilo.priors.tiled import Tiled
    from deepinv_dmilo.priors.wrappers import Channelwise, Complex, Greyscale
    from deepinv_dmilo.schedules.chain import Chain
    from deepinv_dmilo.schedules.levels import Levels

__version__ = "0.3.0"
__all__ = [
    "DMILO",
    "DMILOPGD",
    "LBFGS",
    "Adam",
    "BlurKernel",
    "Chain",
    "Channelwise",
    "Complex",
    "Custom",
    "DMILOSampler",
    "DMPlug",
    "DiffusionPrior",
    "Free",
    "Greyscale",
    "LatentPrior",
    "Levels",
    "Positive",
    "Simplex",
    "Slicewise",
    "Tiled",
]

_HOMES = {
    "DMILO": "methods.dmilo",
    "DMILOPGD": "methods.dmilo_pgd",
    "DMILOSampler": "methods.dmilo_sampler",
    "DMPlug": "methods.dmplug",
    "DiffusionPrior": "priors.diffusers",
    "LatentPrior": "priors.latent",
    "Slicewise": "priors.slicewise",
    "Tiled": "priors.tiled",
    "Channelwise": "priors.wrappers",
    "Complex": "priors.wrappers",
    "Greyscale": "priors.wrappers",
    **dict.fromkeys(("BlurKernel", "Custom", "Free", "Positive", "Simplex"), "likelihood.constraints"),
    "LBFGS": "optim.solvers",
    "Adam": "optim.solvers",
    "Levels": "schedules.levels",
    "Chain": "schedules.chain",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def __getattr__(name: str) -> object:
    # at first use, so that the registry can tell what is installed without importing torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
