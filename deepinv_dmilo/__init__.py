"""DMILO and DMILO-PGD for deepinv: reconstruction with a pretrained diffusion model, layer by layer."""

from deepinv_dmilo.dmplug import DMPlug
from deepinv_dmilo.prior import DiffusionPrior
from deepinv_dmilo.reconstructors import DMILO, DMILOPGD

__version__ = "0.1.0"
__all__ = ["DMILO", "DMILOPGD", "DMPlug", "DiffusionPrior"]
