"""benchopt dataset: the first held-out digits of the bundled prior, through the physics of a task."""

import torch
from benchopt import BaseDataset
from deepinv.datasets import TensorDataset

from deepinv_dmilo.benchmarks.studies import KNOWN_TASKS
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.tasks import make_physics


class Dataset(BaseDataset):
    """Pairs (digit, measurements); ``task`` and ``noise`` are passed to the samplers that are tuned by them."""

    name = "digits"
    parameters = {"task": list(KNOWN_TASKS), "noise": [0.005, 0.05], "images": [8]}
    test_parameters = {"task": ["denoising"], "noise": [0.005], "images": [1]}

    def get_data(self):
        name, options = KNOWN_TASKS[self.task]
        physics = make_physics(name, (1, 32, 32), noise=self.noise, **options)
        with torch.no_grad():  # all digits at once, as in the report: the noise of one does not depend on ``images``
            y = physics(held_out_images("digits"))[: self.images]
        dataset = TensorDataset(x=held_out_images("digits")[: self.images], y=y)
        dataset.task, dataset.noise = self.task, self.noise
        return {"dataset": dataset, "physics": physics}
