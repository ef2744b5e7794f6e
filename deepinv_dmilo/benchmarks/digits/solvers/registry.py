"""
benchopt solver: any reconstructor of the registry ``deepinv.reconstructors``, for this and deepinv's own benchmarks.

    benchopt run BENCHMARK -s "$(deepinv-dmilo benchmark --solver-path)[method=dmilo-pgd,prior=my_prior]"
"""

import deepinv as dinv
import torch
from benchopt import BaseSolver

from deepinv_dmilo import registry


class Solver(BaseSolver):
    """DMILO and the others, with their default settings."""

    name = "registry"
    requirements = ["pip::deepinv-dmilo"]
    parameters = {"method": ["dmilo", "dmilo-pgd"], "prior": ["google/ddpm-celebahq-256"], "max_passes": [100]}
    test_config = {"prior": "digits", "max_passes": 1}

    def set_objective(self, train_dataset=None, physics=None):
        device = dinv.utils.get_freer_gpu() if torch.cuda.is_available() else "cpu"
        prior = registry.load(self.prior, registry.PRIORS, optional={"device": device})
        settings = {"prior": prior, "max_passes": self.max_passes}
        self.model = registry.load(self.method, optional=settings).to(device)
        self.model.device = device

    def run(self, _):
        """Nothing: the objective calls the model."""

    def get_result(self):
        return {"model": self.model}
