"""A benchopt objective as deepinv/benchmarks has them: dinv.test over a loader of single images, without gradients."""

import deepinv as dinv
from benchopt import BaseObjective
from torch.utils.data import DataLoader


class Objective(BaseObjective):
    name = "protocol"
    min_benchopt_version = "1.8"
    sampling_strategy = "run_once"

    def set_data(self, dataset, physics):
        self.dataset, self.physics = dataset, physics

    def get_objective(self):
        return {"train_dataset": self.dataset, "physics": self.physics}

    def evaluate_result(self, model):
        device = getattr(model, "device", None)
        return dinv.test(
            model,
            DataLoader(self.dataset),
            self.physics.to(device),
            online_measurements=True,
            device=device,
            metrics=[dinv.loss.PSNR(), dinv.loss.SSIM()],
            compare_no_learning=False,
        )

    def get_one_result(self):
        return {"model": dinv.models.ArtifactRemoval(lambda x, sigma: x)}
