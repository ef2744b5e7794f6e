"""A solver, because a benchmark has one."""

import deepinv as dinv
from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "adjoint"
    parameters = {}

    def set_objective(self, train_dataset=None, physics=None):
        self.model = dinv.models.ArtifactRemoval(lambda x, sigma: x)

    def run(self, _):
        pass

    def get_result(self):
        return {"model": self.model}
