"""DMPlug, the method that DMILO improves on, as a deepinv reconstructor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepinv_dmilo.methods.base import PriorReconstructor
from deepinv_dmilo.methods.monitor import Monitor
from deepinv_dmilo.optim.solvers import Adam, Variables
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem
from deepinv_dmilo.schedules.chain import ENERGY, Chain, first_latent
from deepinv_dmilo.schedules.schedule import Plan
from deepinv_dmilo.utils.settings import check_settings


@dataclass(eq=False, repr=False, kw_only=True)
class DMPlug(PriorReconstructor):
    r"""
    DMPlug: the first latent is optimised with Adam through the whole chain.

    The method of :footcite:t:`wang2024dmplug`:

    .. math::

        \min_z \; 4 \, \mathrm{mean}\,|A(G(z)) - y|^2.

    The graphs of all ``num_layers`` layers are in memory at once. It is included for comparison. The last iterate is
    returned, without the paper's early stopping.

    :param Prior, deepinv.models.Denoiser prior: the prior, or any deepinv denoiser, which is wrapped as one.
    :param int num_layers: layers of the chain (paper: 3).
    :param int steps: Adam steps, each with a pass through all layers (paper: 5000, nonlinear 10000). Default ours.
    :param float lr: learning rate (paper: 1e-2).
    :param int max_calls: see :class:`deepinv_dmilo.DMILO`, as for ``max_passes``, ``num_samples``, ``micro_batch`` and
        ``rng``; a step takes one forward and backward pass per layer.
    :param bool verbose: show a progress bar.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMPlug, DiffusionPrior
        >>> from deepinv_dmilo.priors.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3)
        >>> y = physics(held_out_images("digits")[:2])
        >>> DMPlug(DiffusionPrior.from_pretrained("digits"), steps=2)(y, physics).shape
        torch.Size([2, 1, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {"steps": 5000, "lr": 1e-2},
        "super_resolution": {"steps": 5000, "lr": 1e-2},
        "deblurring": {"steps": 5000, "lr": 1e-2},
        "nonlinear_deblurring": {"steps": 10000, "lr": 1e-2},
    }

    moved: ClassVar[dict[str, str]] = {
        "latent_lr": "type lr=...",
        "inner_steps": "type steps=...",
        "unknown": "for blind problems, type DMILO(prior, unknown=...), or DMILOPGD",
    }

    num_layers: int = 3
    steps: int = 300
    lr: float = 1e-2

    def _check(self) -> None:
        check_settings(steps={"num_layers": self.num_layers, "steps": self.steps}, rates={"lr": self.lr}, weights={})
        super()._check()

    @property
    def schedule(self) -> Chain:
        """A chain with one outer step."""
        return Chain(self.num_layers, outer_steps=1, sparsity=None)

    @property
    def solver(self) -> Adam:
        """Adam."""
        return Adam(self.steps, latent_lr=self.lr)

    def reconstruct(self, posterior: Posterior, plan: Plan, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """Optimise the first latent through all layers."""
        (stage,) = plan.stages
        likelihood, pixels = posterior.likelihood, posterior.likelihood.forward.like[0].numel()
        how: dict[str, Any] = {"energy": ENERGY / pixels, "micro_batch": posterior.micro_batch}
        problem = Problem(posterior.prior, stage.levels, likelihood, penalty=0.0, **how)

        def image(z: Tensor) -> Tensor:
            return posterior.images(posterior.in_parts(lambda prior, part: prior(part, self.num_layers), z))

        def watch(v: Variables, value: Tensor) -> None:
            if monitor.is_watched:
                monitor.record(posterior, stage, image(v["latent"]), value, likelihood)

        start = {"latent": first_latent(posterior, stage.levels[0])}
        minimum = monitor.solve(self.solver, problem, start, posterior, stage, watch=watch)
        x = image(minimum.variables["latent"])
        monitor.record(posterior, stage, x, minimum.value, likelihood)
        return x, minimum.value
