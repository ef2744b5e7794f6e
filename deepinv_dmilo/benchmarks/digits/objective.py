"""benchopt objective: what a reconstructor makes of each digit, and what it costs."""

import torch
from benchopt import BaseObjective

from deepinv_dmilo.tools.metrics import perceptual_metrics
from deepinv_dmilo.tools.scoring import score


class Objective(BaseObjective):
    """
    One row per image; the protocol is that of deepinv's benchmarks: a solver gives a ``model(y, physics)``.

    The measurements come with the dataset, so that every solver gets the same.
    """

    name = "Reconstruction"
    url = "https://arxiv.org/abs/2505.20789"
    requirements = ["pip::deepinv-dmilo[bench]"]
    min_benchopt_version = "1.10"
    sampling_strategy = "run_once"
    parameters = {"batch_size": [8]}

    def set_data(self, dataset, physics):
        self.dataset, self.physics = dataset, physics

    def get_objective(self):
        return {"train_dataset": self.dataset, "physics": self.physics}

    def evaluate_result(self, model):
        device = torch.device(getattr(model, "device", None) or "cpu")
        physics = self.physics.to(device)
        if physics.noise_model.rng.device.type != device.type:  # a generator does not move with its physics
            physics.noise_model.rng = torch.Generator(device).manual_seed(0)
        model.eval()
        rows = []
        for start in range(0, len(self.dataset), self.batch_size):
            batch = [self.dataset[i] for i in range(start, min(start + self.batch_size, len(self.dataset)))]
            x, y = (torch.stack(parts).to(device) for parts in zip(*batch, strict=True))
            metrics = perceptual_metrics(tuple(x.shape[1:]), device)
            _, scores = score(model, x, y, physics, seed=start, metrics=metrics)
            rows += [{"image": start + i, **values} for i, values in enumerate(scores)]
        return rows

    def get_one_result(self):
        return {"model": torch.nn.Identity()}
