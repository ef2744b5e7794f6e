"""DMILO-PGD as a deepinv reconstructor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.run import Run
from deepinv_dmilo.utils.settings import check_choice, check_settings


@dataclass(eq=False, repr=False, kw_only=True)
class DMILOPGD(DMILO):
    r"""
    DMILO-PGD: DMILO as the projection of projected gradient descent.

    Algorithm 2 of :footcite:t:`zheng2025dmilo`. The image (as published, at first mid-grey) descends on the
    measurements before the latents are fitted to it,

    .. math::

        x \leftarrow x - \eta \nabla \tfrac12 \|A(x) - y\|^2.

    As published (``from_preset``, ``schedule=Chain()``) it does so before each outer step, which then fits the
    measurements :math:`A(x)` of that image in place of :math:`y`. With a schedule of levels it does so before each
    level, towards the proximal point of :math:`\|A(x) - y\|^2 / (2 \sigma^2)` at an image with errors of half the
    level's noise, 0.1 at most, so that noise is not taken for signal; the level starts from that image and fits
    :math:`y` itself.

    :param float, str step_size: :math:`\eta` in deepinv's convention, on :math:`A^\top(Ax - y)`; ``"auto"`` (default)
        with levels is that of L-BFGS (ours); from pure noise :math:`1/\|A\|^2` for linear physics (the paper's values
        for super-resolution and inpainting are that) and a backtracking step for nonlinear physics.
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

    # Step sizes: the authors' 8 (4x super-resolution) and 0.5 (inpainting) multiply the gradient of the squared norm,
    # twice ours: 16 and 1, which is 1 / ||A||^2 there, and "auto" at every factor. Their 2 and 0.3 (deblurring,
    # unsquared norm) move an image in [-1, 1], twice as far as one in [0, 1].
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {
            "latent_lr": 2e-2,
            "outer_steps": 5,
            "inner_steps": 200,
            "step_size": 1.0,
            "gradient_steps": 1,
        },
        "super_resolution": {
            "latent_lr": 1e-2,
            "outer_steps": 10,
            "inner_steps": 400,
            "step_size": "auto",
            "gradient_steps": 1,
        },
        "deblurring": {
            "latent_lr": 2e-2,
            "outer_steps": 5,
            "inner_steps": 500,
            "step_size": 1.0,
            "gradient_steps": 1000,
            "normalize_gradient": True,
        },
        "nonlinear_deblurring": {
            "latent_lr": 2e-2,
            "outer_steps": 10,
            "inner_steps": 200,
            "step_size": 0.15,
            "gradient_steps": 1000,
            "normalize_gradient": True,
        },
    }

    step_size: float | str = "auto"
    gradient_steps: int = 10
    normalize_gradient: bool = False

    def _check(self) -> None:
        if isinstance(self.step_size, str):
            check_choice("step_size", self.step_size, ("auto",), "a positive number")
            if self.normalize_gradient:
                raise ValueError("normalize_gradient=True needs a number: type step_size=1.0, as published")
        rates = {} if isinstance(self.step_size, str) else {"step_size": self.step_size}
        check_settings(steps={"gradient_steps": self.gradient_steps}, rates=rates, weights={})
        super()._check()

    def _iterates(self, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
        """Algorithm 2."""
        schedule = self._schedule(run)
        x, state = schedule.first_image(run), None
        chains = schedule.chains(run.prior)
        for levels, is_last in run.outer_steps(chains, schedule.taken(run, x, chains)):
            run.variance = schedule.variance(run, x, levels[0])
            x = self._descend(run, x, schedule.pull(run.observation, run.variance, levels[0]))
            fit = schedule.fit_after(run.observation, run.variance, x)
            state = schedule.start(run, levels, x, state)
            x, cost = self._pass(run, schedule, state, fit, x)
            x = schedule.finish(run, x) if is_last else x
            yield x, cost

    def _descend(self, run: Run, x: Tensor, pull: Tensor | None) -> Tensor:
        """The gradient steps on the measurements, of the images that take part."""
        if not len(run.rows):
            return x
        moved = run.descend(
            x,
            step_size=self.step_size,
            pull=pull,
            steps=self.gradient_steps,
            normalize=self.normalize_gradient,
        )
        return x.index_copy(0, run.rows, moved[run.rows])
