"""benchopt solver: deepinv's samplers on the same prior, and the pseudo-inverse."""

import deepinv as dinv
import torch
from benchopt import BaseSolver

from deepinv_dmilo import registry
from deepinv_dmilo.benchmarks.methods import METHODS, tuned_weight
from deepinv_dmilo.benchmarks.studies import PRESETS, Case


class Solver(BaseSolver):
    """A sampler with the weight that the report found for the task on other digits."""

    name = "deepinv"
    requirements = ["pip::deepinv-dmilo"]
    parameters = {
        "method": ["pseudo-inverse", "denoiser, one call", "DPS", "DiffPIR, zeta 1", "DDRM", "PiGDM"],
        "prior": ["digits"],
        "weight": ["tuned"],
    }

    def skip(self, train_dataset, physics):
        kind = METHODS[self.method].physics
        return not isinstance(physics, kind), f"{self.method} takes a {kind.__name__}"

    def set_objective(self, train_dataset=None, physics=None):
        device = dinv.utils.get_freer_gpu() if torch.cuda.is_available() else "cpu"
        prior = registry.load(self.prior, registry.PRIORS, optional={"device": device})
        task, noise = train_dataset.task, train_dataset.noise
        weight = self.weight
        if weight == "tuned":
            weight = tuned_weight(self.method, task, noise, PRESETS["digits"].record)
        self.model = METHODS[self.method].make(Case(prior, prior.image_shape, task, noise, weight))
        self.model.device = device

    def run(self, _):
        """Nothing: the objective calls the model."""

    def get_result(self):
        return {"model": self.model}
