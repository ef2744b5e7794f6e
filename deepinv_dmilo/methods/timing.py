"""The run time of a call, estimated from the time of one pass of the network and one evaluation of A."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from deepinv_dmilo.optim.descent import value_and_gradient
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import LatentTerm, Problem
from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS, Plan


def estimated_seconds(posterior: Posterior, plan: Plan, evaluations: int) -> tuple[float, float]:
    """
    The run time in the network, and in A, of all rows of a group; of a blind problem a rough estimate.

    :param int evaluations: of A and its adjoint, for a row.
    """
    x, z, levels = plan.first_image, posterior.noise("start"), plan.stages[0].levels[-2:]
    network = Problem(posterior.prior, levels, LatentTerm(x), penalty=0.0, micro_batch=posterior.micro_batch)
    data = posterior.likelihood if plan.stages[-1].fixed else posterior.profiled(posterior.likelihood)
    of_pass = _seconds_of(lambda: network.gradients({"latent": z})[1]["latent"])
    of_evaluation = _seconds_of(lambda: value_and_gradient(data, x)[1], repeats=2)
    return of_pass * plan.calls / CALLS_OF_A_PASS, of_evaluation * evaluations


def _seconds_of(function: Callable[[], Tensor], *, repeats: int = 1) -> float:
    """Of the last call: in the first a search for unknown parameters starts far off."""
    for _ in range(repeats):
        start = time.perf_counter()
        function().sum().item()  # a GPU has to be waited for
    return time.perf_counter() - start
