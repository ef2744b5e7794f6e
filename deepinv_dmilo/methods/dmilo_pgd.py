"""DMILO-PGD as a deepinv reconstructor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood, Squares
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.monitor import Monitor
from deepinv_dmilo.optim.descent import gradient_steps, proximal_point
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.schedules.initial import descend_likelihood
from deepinv_dmilo.schedules.schedule import Plan, Stage
from deepinv_dmilo.utils.settings import check_settings


@dataclass(eq=False, repr=False, kw_only=True)
class DMILOPGD(DMILO):
    r"""
    DMILO-PGD: projected gradient descent, with DMILO as the projection.

    Algorithm 2 of :footcite:t:`zheng2025dmilo`. Gradient steps on the data term precede each outer step,

    .. math::

        x \leftarrow x - \eta \nabla \tfrac12 \|A(x) - y\|^2.

    As published (``from_preset``, ``schedule=Chain()``), the first image is mid-grey, and the outer step fits the
    measurements :math:`A(x)` of the new image instead of :math:`y`. With a schedule of levels, the gradient steps
    compute a proximal point of :math:`\|A(x) - y\|^2 / (2 \sigma^2)`, so that they do not fit noise; the assumed error
    of the image is half the noise level, at most 0.1. The level starts from the new image and fits :math:`y`.

    :param float, str step_size: :math:`\eta` in deepinv's convention, on :math:`A^\top(Ax - y)`. The default
        ``"auto"`` is L-BFGS with levels (ours); with a chain :math:`1/\|A\|^2` for linear physics (the paper's value
        for super-resolution and inpainting) and backtracking for nonlinear physics.
    :param int gradient_steps: gradient steps before each outer step (paper: 1, deblurring 1000). Default ours: they
        need no network, and one step stops far from y unless :math:`A A^\top` is a multiple of the identity.
    :param bool normalize_gradient: descend :math:`\|A(x) - y\|` instead of half its square (authors' code for
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

    # Step sizes: the authors' 8 (4x super-resolution) and 0.5 (inpainting) multiply the gradient of the squared norm,
    # which is twice ours: 16 and 1, equal to 1 / ||A||^2, or "auto" for other factors. Their 2 and 0.3 (deblurring,
    # unsquared norm) are for images in [-1, 1]: half of it in [0, 1].
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": DMILO.presets["inpainting"] | {"step_size": 1.0, "gradient_steps": 1},
        "super_resolution": {"latent_lr": 1e-2, "outer_steps": 10, "inner_steps": 400}
        | {"step_size": "auto", "gradient_steps": 1},
        "deblurring": {"latent_lr": 2e-2, "outer_steps": 5, "inner_steps": 500}
        | {"step_size": 1.0, "gradient_steps": 1000, "normalize_gradient": True},
        "nonlinear_deblurring": {"latent_lr": 2e-2, "outer_steps": 10, "inner_steps": 200}
        | {"step_size": 0.15, "gradient_steps": 1000, "normalize_gradient": True},
    }

    step_size: float | str = "auto"
    gradient_steps: int = 10
    normalize_gradient: bool = False

    def _check(self) -> None:
        if isinstance(self.step_size, str):
            if self.step_size != "auto":
                raise ValueError(f"step_size={self.step_size!r}: type 'auto' or a positive number")
            if self.normalize_gradient:
                raise ValueError("normalize_gradient=True needs a number: type step_size=1.0, as published")
        rates = {} if isinstance(self.step_size, str) else {"step_size": self.step_size}
        check_settings(steps={"gradient_steps": self.gradient_steps}, rates=rates, weights={})
        super()._check()

    def reconstruct(self, posterior: Posterior, plan: Plan, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """Algorithm 2."""
        x, layers = plan.first_image, None
        for stage in plan.stages:
            likelihood = self.schedule.likelihood(posterior, plan, stage, x)
            target = likelihood
            if not stage.decoupled:
                x = self.descend(posterior, stage, likelihood, x)
                target = self.schedule.after_descent(likelihood, x)
            layers = self.schedule.start(posterior, stage, x, layers)
            x, cost = self.project(posterior, stage, layers, target, monitor, x)
            for finish in stage.finishing:
                x = finish(posterior, x)
            monitor.record(posterior, stage, x, cost, likelihood)
        return x, self.score(posterior, plan, x, cost)

    def _evaluations(self, stage: Stage) -> int:
        return super()._evaluations(stage) + (not stage.decoupled) * self.gradient_steps

    def descend(self, posterior: Posterior, stage: Stage, likelihood: Likelihood, x: Tensor) -> Tensor:
        """Gradient steps on the data term, with a proximal term if the stage has an image error."""
        how: dict[str, Any] = {"steps": self.gradient_steps, "limits": posterior.prior.limits}
        one = torch.ones_like(x[:, 0, 0, 0])
        if self.step_size == "auto" and stage.image_error is not None:
            return proximal_point(x, posterior.with_energy(likelihood), penalty=one / stage.image_error**2, **how)
        if self.step_size == "auto":
            return descend_likelihood(likelihood.gaussian(one), x, **how)
        squares: Likelihood = Squares(likelihood.forward, likelihood.y, likelihood.rows)
        if stage.image_error is None:
            penalty = None
        elif isinstance(likelihood, Gaussian):  # in the squared units of the measurements
            penalty = likelihood.variance * (likelihood.forward.units.scale / stage.image_error) ** 2
        else:
            squares, penalty = likelihood, one / stage.image_error**2
        how |= {"penalty": penalty, "normalize": self.normalize_gradient}
        return gradient_steps(x, squares, size=float(self.step_size) * one, **how)
