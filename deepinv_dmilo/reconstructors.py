"""DMILO and DMILO-PGD as deepinv reconstructors."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.base import PriorReconstructor, Trace, check_settings
from deepinv_dmilo.layer import Fit, LayerProblem, check_finite, per_sample_mean, solve_with_adam
from deepinv_dmilo.measurements import Measurements, measure
from deepinv_dmilo.prior import DiffusionPrior
from deepinv_dmilo.projection import gradient_steps


class DMILO(PriorReconstructor):
    r"""
    DMILO: intermediate-layer optimisation with a diffusion model and sparse deviations
    (Zheng, Li and Liu, ICML 2025, arXiv:2505.20789, Algorithm 1).

    With the prior a chain :math:`G = g_{N-1} \circ \dots \circ g_0`, each outer step solves, from the image back to
    the noise, one problem per layer over its input :math:`z_i` and a sparse deviation :math:`\nu_i` added after it,

    .. math::

        \min_{z_i, \nu_i} \; \mathrm{fit}(g_i(z_i) + \nu_i) + \lambda \, \mathrm{mean}|\nu_i|
        + \rho \, \mathrm{mean}(z_i^2),

    where the last layer fits the measurements, :math:`4\,\mathrm{mean}|A(x) - y|^2`, and every other layer the
    latent just found for the layer after it, in the mean squared sense. Then the chain is run forward from
    :math:`z_0` with the deviations. Only one layer's graph is ever alive: memory does not grow with ``num_layers``.

    :param DiffusionPrior prior: the prior; its ``num_layers`` is N.
    :param int outer_steps: outer steps (paper: 5 or 10, see :meth:`from_preset`). Default ours, docs/defaults.md.
    :param int inner_steps: Adam steps per layer and outer step (paper: 200 to 1000). Default ours: with the larger
        ``latent_lr``, 20 are enough (measured on digits, see docs/defaults.md).
    :param float latent_lr: learning rate of the latents (paper: 8e-3 to 2e-2). Default ours.
    :param float deviation_lr: learning rate of the deviations (paper: 1e-3).
    :param float sparsity: weight :math:`\lambda` of the deviations (paper: 0.1).
    :param float latent_penalty: weight :math:`\rho` of the latents (authors' code: 1e-4).
    :param bool verbose: show a progress bar with outer step, layer and measurement residual.
    :param torch.Generator rng: where the first latent is drawn from, on any device; None: a fixed seed, one noise
        for every image, so that the same call gives the same image, whatever the batch.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMILO, DiffusionPrior
        >>> from deepinv_dmilo.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3)
        >>> y = physics(held_out_images("digits")[:2])
        >>> model = DMILO(DiffusionPrior.from_pretrained("digits"), outer_steps=1, inner_steps=5)
        >>> model(y, physics).shape
        torch.Size([2, 1, 32, 32])
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {"latent_lr": 2e-2, "outer_steps": 5, "inner_steps": 200},
        "super_resolution": {"latent_lr": 1e-2, "outer_steps": 5, "inner_steps": 1000},
        "deblurring": {"latent_lr": 8e-3, "outer_steps": 10, "inner_steps": 300},
        "nonlinear_deblurring": {"latent_lr": 1e-2, "outer_steps": 10, "inner_steps": 200},
    }

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        outer_steps: int = 5,
        inner_steps: int = 20,
        latent_lr: float = 5e-2,
        deviation_lr: float = 1e-3,
        sparsity: float = 0.1,
        latent_penalty: float = 1e-4,
        verbose: bool = False,
        rng: torch.Generator | None = None,
    ) -> None:
        check_settings(
            steps={"outer_steps": outer_steps, "inner_steps": inner_steps},
            rates={"latent_lr": latent_lr},
            weights={"deviation_lr": deviation_lr, "sparsity": sparsity, "latent_penalty": latent_penalty},
        )
        super().__init__(prior, verbose=verbose, rng=rng)
        self.outer_steps = outer_steps
        self.inner_steps = inner_steps
        self.latent_lr = latent_lr
        self.deviation_lr = deviation_lr
        self.sparsity = sparsity
        self.latent_penalty = latent_penalty

    def _solve(self, y: Measurements, physics: Physics, z: Tensor, trace: Trace) -> Tensor:
        nu = [torch.zeros_like(z) for _ in range(self.prior.num_layers)]
        zs, _ = self._run_chain(z, nu)
        x = torch.full_like(z, 0.5)
        rms = None
        for k in range(self.outer_steps):
            fit = self._measurement_fit(self._target(x, y, physics), physics)
            for i in reversed(range(self.prior.num_layers)):
                zs[i], nu[i], history = self._solve_layer(i, fit, zs[i], nu[i], trace)
                check_finite(history, f"outer step {k + 1}, layer {i}")
                if i == self.prior.num_layers - 1:
                    cost = history[-1]
                fit = _latent_fit(zs[i])
                trace.show(outer=f"{k + 1}/{self.outer_steps}", layer=i, residual="?" if rms is None else rms)
            zs, u = self._run_chain(zs[0], nu)
            x = self.prior.to_image(u.clamp(-1, 1))
            rms = trace.residual(x)
            trace.record(x, cost, rms)
        return x

    def _target(self, x: Tensor, y: Measurements, physics: Physics) -> Measurements:
        """What the last layer fits in the next outer step; x is the current image in [0, 1]."""
        return y

    def _solve_layer(self, i: int, fit: Fit, z: Tensor, nu: Tensor, trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
        problem = LayerProblem(self.prior, i, fit, self.sparsity, self.latent_penalty)
        with torch.enable_grad():
            return solve_with_adam(
                problem,
                z,
                nu,
                steps=self.inner_steps,
                latent_lr=self.latent_lr,
                deviation_lr=self.deviation_lr,
                on_step=trace.bar.update,
            )

    def _run_chain(self, z: Tensor, nu: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The input of every layer and the output of the last, deviations added."""
        zs = []
        for i in range(self.prior.num_layers):
            zs.append(z)
            z = self.prior.layer(i, z) + nu[i]
        return zs, z

    def _total_steps(self) -> int:
        return self.outer_steps * self.prior.num_layers * self.inner_steps


class DMILOPGD(DMILO):
    r"""
    DMILO-PGD: DMILO as the projection of projected gradient descent
    (Zheng, Li and Liu, ICML 2025, arXiv:2505.20789, Algorithm 2).

    Before each outer step the image, at first mid-grey, descends on the measurements,

    .. math::

        x \leftarrow x - \eta \nabla \tfrac12 \|A(x) - y\|^2,

    and the outer step of :class:`DMILO` fits the measurements :math:`A(x)` of that image in place of :math:`y`.

    :param DiffusionPrior prior: the prior; its ``num_layers`` is N.
    :param float, str step_size: :math:`\eta` in deepinv's convention, on :math:`A^\top(Ax - y)`; ``"auto"`` (default)
        is :math:`1/\|A\|^2` for linear physics (the paper's values for super-resolution and inpainting are that)
        and a backtracking step for nonlinear physics.
    :param int gradient_steps: gradient steps before each outer step (paper: 1, deblurring 1000). Default ours: they
        need no network, and where :math:`A A^\top` is no multiple of the identity one step stops far from y.
    :param bool normalize_gradient: descend :math:`\|A(x) - y\|` in place of half its square (authors' code for
        deblurring); needs a number as ``step_size``.

    The other parameters are those of :class:`DMILO`.

    :Examples:

        >>> import deepinv as dinv
        >>> from deepinv_dmilo import DMILOPGD, DiffusionPrior
        >>> from deepinv_dmilo.pretrained import held_out_images
        >>> physics = dinv.physics.Inpainting((1, 32, 32), mask=0.3)
        >>> y = physics(held_out_images("digits")[:2])
        >>> model = DMILOPGD(DiffusionPrior.from_pretrained("digits"), outer_steps=1, inner_steps=5)
        >>> model(y, physics).shape
        torch.Size([2, 1, 32, 32])
    """

    # Step sizes: the authors' 8 (super-resolution) and 0.5 (inpainting) multiply the gradient of the squared norm,
    # twice ours; their 2 and 0.3 (deblurring, unsquared norm) move an image in [-1, 1], twice as far as one in [0, 1].
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "inpainting": {"latent_lr": 2e-2, "outer_steps": 5, "inner_steps": 200, "step_size": 1.0, "gradient_steps": 1},
        "super_resolution": {
            "latent_lr": 1e-2,
            "outer_steps": 10,
            "inner_steps": 400,
            "step_size": 16.0,
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

    def __init__(
        self,
        prior: DiffusionPrior,
        *,
        step_size: float | str = "auto",
        gradient_steps: int = 10,
        normalize_gradient: bool = False,
        outer_steps: int = 5,
        inner_steps: int = 20,
        latent_lr: float = 5e-2,
        deviation_lr: float = 1e-3,
        sparsity: float = 0.1,
        latent_penalty: float = 1e-4,
        verbose: bool = False,
        rng: torch.Generator | None = None,
    ) -> None:
        if isinstance(step_size, str):
            if step_size != "auto":
                raise ValueError(f"step_size={step_size!r}: type 'auto' or a positive number")
            if normalize_gradient:
                raise ValueError("normalize_gradient=True needs a number: type step_size=1.0, as published")
        rates = {} if isinstance(step_size, str) else {"step_size": step_size}
        check_settings(steps={"gradient_steps": gradient_steps}, rates=rates, weights={})
        super().__init__(
            prior,
            outer_steps=outer_steps,
            inner_steps=inner_steps,
            latent_lr=latent_lr,
            deviation_lr=deviation_lr,
            sparsity=sparsity,
            latent_penalty=latent_penalty,
            verbose=verbose,
            rng=rng,
        )
        self.step_size = step_size
        self.gradient_steps = gradient_steps
        self.normalize_gradient = normalize_gradient

    def _target(self, x: Tensor, y: Measurements, physics: Physics) -> Measurements:
        x = gradient_steps(
            x,
            y,
            physics,
            steps=self.gradient_steps,
            step_size=self.step_size,
            normalize=self.normalize_gradient,
        )
        return measure(x, physics)


def _latent_fit(target: Tensor) -> Fit:
    """The misfit of an inner layer: mean squared distance to the latent found for the layer after it."""
    return lambda latent: per_sample_mean((latent - target).square())
