"""DMPlug, the method that DMILO improves on: the whole chain at once."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.base import PriorReconstructor, Trace, check_settings
from deepinv_dmilo.layer import check_finite
from deepinv_dmilo.measurements import Measurements
from deepinv_dmilo.prior import DiffusionPrior

STEPS_BETWEEN_CHECKS = 50


class DMPlug(PriorReconstructor):
    r"""
    DMPlug (Wang et al. 2024, arXiv:2405.16749): one latent, optimised with Adam through the whole chain,

    .. math::

        \min_z \; 4 \, \mathrm{mean}\,|A(G(z)) - y|^2.

    The graphs of all ``num_layers`` layers are alive at once: memory grows with their number. It is here for
    comparison. The last iterate is returned; the paper's early stopping is left out.

    :param DiffusionPrior prior: the prior (paper: 3 layers).
    :param int steps: Adam steps, each a pass through all layers (paper: 5000, nonlinear 10000). Default ours.
    :param float lr: learning rate (paper: 1e-2).
    :param bool verbose: show a progress bar.
    :param torch.Generator rng: see :class:`deepinv_dmilo.DMILO`.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMPlug, DiffusionPrior
        >>> from deepinv_dmilo.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3)
        >>> y = physics(held_out_images("digits")[:2])
        >>> DMPlug(DiffusionPrior.from_pretrained("digits"), steps=2)(y, physics).shape
        torch.Size([2, 1, 32, 32])
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {"steps": 5000, "lr": 1e-2},
        "super_resolution": {"steps": 5000, "lr": 1e-2},
        "deblurring": {"steps": 5000, "lr": 1e-2},
        "nonlinear_deblurring": {"steps": 10000, "lr": 1e-2},
    }

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        steps: int = 300,
        lr: float = 1e-2,
        verbose: bool = False,
        rng: torch.Generator | None = None,
    ) -> None:
        check_settings(steps={"steps": steps}, rates={"lr": lr}, weights={})
        super().__init__(prior, verbose=verbose, rng=rng)
        self.steps = steps
        self.lr = lr

    def _solve(self, y: Measurements, physics: Physics, z: Tensor, trace: Trace) -> Tensor:
        fit = self._measurement_fit(y, physics)
        z = z.requires_grad_()
        optimizer = torch.optim.Adam([z], lr=self.lr)
        for step in range(self.steps):
            with torch.enable_grad():
                u = self.prior(z)
                objective = fit(u)
                (z.grad,) = torch.autograd.grad(objective.sum(), z)
            optimizer.step()
            trace.bar.update()
            x, objective = self.prior.to_image(u.detach().clamp(-1, 1)), objective.detach()
            if trace.compute_metrics:
                trace.record(x, objective, trace.residual(x))
            if step % STEPS_BETWEEN_CHECKS == 0 or step == self.steps - 1:
                check_finite(objective[None], f"iteration {step + 1}")
                trace.show(residual=trace.residual(x))
        return self.prior.to_image(self.prior(z).detach().clamp(-1, 1))

    def _total_steps(self) -> int:
        return self.steps
