"""DMILO-PGD as a deepinv reconstructor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepinv_dmilo.core.measurements import Measurements
from deepinv_dmilo.core.observation import Observation
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.reconstructors.base import check_choice, check_settings
from deepinv_dmilo.reconstructors.dmilo import DMILO, LEVELS, PUBLISHED

IMAGE_ERROR = 0.1  # that the projection assumes the image so far to have, in [0, 1]: ours


class DMILOPGD(DMILO):
    r"""
    DMILO-PGD: DMILO as the projection of projected gradient descent.

    Algorithm 2 of :footcite:t:`zheng2025dmilo`. The image (as published, at first mid-grey) descends on the
    measurements before the latents are fitted to it,

    .. math::

        x \leftarrow x - \eta \nabla \tfrac12 \|A(x) - y\|^2.

    As published (``from_preset``) it does so before each outer step, which then fits the measurements :math:`A(x)` of
    that image in place of :math:`y`. With a schedule of ``levels`` it does so before each level, towards the proximal
    point of :math:`\|A(x) - y\|^2 / (2 \sigma^2)` at an image with errors of 0.1, so that noise is not taken
    for signal; the level starts from that image and fits :math:`y` itself.

    :param DiffusionPrior prior: the prior; its ``num_layers`` is N where ``levels`` is None.
    :param float, str step_size: :math:`\eta` in deepinv's convention, on :math:`A^\top(Ax - y)`; ``"auto"`` (default)
        is :math:`1/\|A\|^2` for linear physics (the paper's values for super-resolution and inpainting are that)
        and a backtracking step for nonlinear physics.
    :param int gradient_steps: gradient steps in a row (paper: 1, deblurring 1000). Default ours: they need no
        network, and where :math:`A A^\top` is no multiple of the identity one step stops far from y.
    :param bool normalize_gradient: descend :math:`\|A(x) - y\|` in place of half its square (authors' code for
        deblurring); needs a number as ``step_size``.

    The other parameters are those of :class:`deepinv_dmilo.DMILO`.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMILOPGD, DiffusionPrior
        >>> from deepinv_dmilo.priors.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3)
        >>> y = physics(held_out_images("digits")[:2])
        >>> model = DMILOPGD(DiffusionPrior.from_pretrained("digits"), max_passes=5)
        >>> model(y, physics).shape
        torch.Size([2, 1, 32, 32])

    .. rubric:: References

    .. footbibliography::
    """

    # Step sizes: the authors' 8 (super-resolution) and 0.5 (inpainting) multiply the gradient of the squared norm,
    # twice ours; their 2 and 0.3 (deblurring, unsquared norm) move an image in [-1, 1], twice as far as one in [0, 1].
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {
            **PUBLISHED,
            "latent_lr": 2e-2,
            "outer_steps": 5,
            "inner_steps": 200,
            "step_size": 1.0,
            "gradient_steps": 1,
        },
        "super_resolution": {
            **PUBLISHED,
            "latent_lr": 1e-2,
            "outer_steps": 10,
            "inner_steps": 400,
            "step_size": 16.0,
            "gradient_steps": 1,
        },
        "deblurring": {
            **PUBLISHED,
            "latent_lr": 2e-2,
            "outer_steps": 5,
            "inner_steps": 500,
            "step_size": 1.0,
            "gradient_steps": 1000,
            "normalize_gradient": True,
        },
        "nonlinear_deblurring": {
            **PUBLISHED,
            "latent_lr": 2e-2,
            "outer_steps": 10,
            "inner_steps": 200,
            "step_size": 0.15,
            "gradient_steps": 1000,
            "normalize_gradient": True,
        },
    }

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        step_size: float | str = "auto",
        gradient_steps: int = 10,
        normalize_gradient: bool = False,
        levels: Sequence[float] | None = LEVELS,
        layers_per_level: int = 1,
        outer_steps: int = 1,
        inner_steps: int | None = None,
        solver: str = "lbfgs",
        tolerance: float = 1e-2,
        latent_lr: float = 5e-2,
        deviation_lr: float = 1e-3,
        sparsity: float | str | None = "auto",
        latent_penalty: float | str = "auto",
        noise_level: float | None = None,
        max_passes: int | None = None,
        num_samples: int = 1,
        micro_batch: int | None = None,
        verbose: bool = False,
        rng: torch.Generator | int = 0,
    ) -> None:
        if isinstance(step_size, str):
            check_choice("step_size", step_size, ("auto",), "a positive number")
            if normalize_gradient:
                raise ValueError("normalize_gradient=True needs a number: type step_size=1.0, as published")
        rates = {} if isinstance(step_size, str) else {"step_size": step_size}
        check_settings(steps={"gradient_steps": gradient_steps}, rates=rates, weights={})
        super().__init__(
            prior,
            levels=levels,
            layers_per_level=layers_per_level,
            outer_steps=outer_steps,
            inner_steps=inner_steps,
            solver=solver,
            tolerance=tolerance,
            latent_lr=latent_lr,
            deviation_lr=deviation_lr,
            sparsity=sparsity,
            latent_penalty=latent_penalty,
            noise_level=noise_level,
            max_passes=max_passes,
            num_samples=num_samples,
            micro_batch=micro_batch,
            verbose=verbose,
            rng=rng,
        )
        self.step_size = step_size
        self.gradient_steps = gradient_steps
        self.normalize_gradient = normalize_gradient

    def _before_level(self, x: Tensor, noise: Tensor, observation: Observation) -> Tensor:
        return self._gradient_steps(x, observation, noise / IMAGE_ERROR**2)

    def _targets(self, x: Tensor, observation: Observation) -> list[Measurements]:
        if self.levels is not None:
            return super()._targets(x, observation)
        return observation.measure(self._gradient_steps(x, observation, None))

    def _gradient_steps(self, x: Tensor, observation: Observation, pull: Tensor | None) -> Tensor:
        return observation.gradient_steps(
            x,
            pull,
            steps=self.gradient_steps,
            step_size=self.step_size,
            normalize=self.normalize_gradient,
        )
