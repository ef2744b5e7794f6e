"""DMILO and DMILO-PGD for deepinv: reconstruction with a pretrained diffusion model, layer by layer."""

from deepinv_dmilo.dmilo import DMILO
from deepinv_dmilo.dmilo_pgd import DMILOPGD
from deepinv_dmilo.dmplug import DMPlug
from deepinv_dmilo.prior import DiffusionPrior

__version__ = "0.1.0"
__all__ = ["DMILO", "DMILOPGD", "DMPlug", "DiffusionPrior"]
