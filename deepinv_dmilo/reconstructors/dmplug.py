"""DMPlug, the method that DMILO improves on: the whole chain at once."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from deepinv_dmilo.core.measurements import working_dtype
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.core.problem import LayerProblem, check_finite
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.reconstructors.base import PriorReconstructor, Trace, check_settings

STEPS_BETWEEN_CHECKS = 50


class DMPlug(PriorReconstructor):
    r"""
    DMPlug: one latent, optimised with Adam through the whole chain.

    The method of :footcite:t:`wang2024dmplug`:

    .. math::

        \min_z \; 4 \, \mathrm{mean}\,|A(G(z)) - y|^2.

    The graphs of all ``num_layers`` layers are alive at once: memory grows with their number. It is here for
    comparison. The last iterate is returned; the paper's early stopping is left out.

    :param DiffusionPrior prior: the prior (paper: 3 layers).
    :param int steps: Adam steps, each a pass through all layers (paper: 5000, nonlinear 10000). Default ours.
    :param float lr: learning rate (paper: 1e-2).
    :param int max_passes: see :class:`deepinv_dmilo.DMILO`, as are ``num_samples`` and ``micro_batch``; a step takes a
        pass for each layer.
    :param bool verbose: show a progress bar.
    :param torch.Generator, int rng: see :class:`deepinv_dmilo.DMILO`.

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

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        steps: int = 300,
        lr: float = 1e-2,
        max_passes: int | None = None,
        num_samples: int = 1,
        micro_batch: int | None = None,
        verbose: bool = False,
        rng: torch.Generator | int = 0,
    ) -> None:
        check_settings(steps={"steps": steps}, rates={"lr": lr}, weights={})
        if max_passes is not None and max_passes < num_samples * prior.num_layers:
            raise ValueError(f"max_passes={max_passes} is no step; type at least {num_samples * prior.num_layers}")
        super().__init__(
            prior, max_passes=max_passes, num_samples=num_samples, micro_batch=micro_batch, verbose=verbose, rng=rng
        )
        self.steps = steps
        self.lr = lr

    def _solve(self, observation: Observation, shape: tuple[int, ...], init: Tensor | None, trace: Trace) -> Tensor:
        z = self._noise(shape, 0, working_dtype(observation.y)) if init is None else init.clone()
        problem = LayerProblem(
            self.prior,
            self.prior.timesteps,
            observation.fit(),
            sparsity=0.0,
            latent_penalty=torch.zeros_like(z[:, 0, 0, 0]),
            micro_batch=self.micro_batch,
            on_pass=lambda rows: trace.on_pass(rows, self.prior.num_layers),
        )
        optimizer = torch.optim.Adam([z], lr=self.lr)
        for step in range(self._total_steps()):
            objective, z.grad, _ = problem.gradients(z, None)
            last = step == self._total_steps() - 1
            if step % STEPS_BETWEEN_CHECKS == 0 or last or trace.compute_metrics:
                check_finite(objective[None], f"iteration {step + 1}")
                if trace.verbose or trace.compute_metrics:
                    trace.record(self._image(z), objective)
                    trace.show()
            optimizer.step()
        return self._image(z)

    def _image(self, z: Tensor) -> Tensor:
        """The image in [0, 1] of a latent."""
        return self.prior.to_image(torch.cat([self.prior(part) for part in self._split(z)]).clamp(-1, 1))

    def _total_steps(self) -> int:
        if self.max_passes is None:
            return self.steps
        return min(self.steps, self.max_passes // (self.num_samples * self.prior.num_layers))
