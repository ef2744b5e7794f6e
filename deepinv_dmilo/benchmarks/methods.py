"""The methods that the report compares, on the same network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.optim import L2
from deepinv.physics import DecomposablePhysics, LinearPhysics, Physics
from deepinv.sampling import DDRM, DPS, DDPMSolver, DiffPIR, PiGDMDataFidelity, PosteriorDiffusion
from deepinv.sampling import VariancePreservingDiffusion as VPDiffusion
from torch import Tensor

from deepinv_dmilo.dmilo import DMILO
from deepinv_dmilo.dmilo_pgd import DMILOPGD
from deepinv_dmilo.dmplug import DMPlug
from deepinv_dmilo.prior import DiffusionPrior
from deepinv_dmilo.tasks import TASK_PRESETS

BUDGETS = (25, 50, 100, 200)  # passes of our methods
DPS_STEPS, PIGDM_STEPS = 200, 200  # of the tuned runs; deepinv's default for DPS is 1000

# The preset that the published runs take; the paper has none for the last two lines.
PUBLISHED_PRESETS = {
    **TASK_PRESETS,
    "inpainting-70": "inpainting",
    "phase-retrieval": "nonlinear_deblurring",
    **dict.fromkeys(("inpainting-90", "box-inpainting", "compressed-sensing", "denoising"), "inpainting"),
}

Reconstruct = Callable[[Tensor, Physics, "tuple[int, ...]"], Tensor]  # (y, physics, image shape) -> images in [0, 1]


@dataclass(frozen=True)
class Method:
    """A method of the report: how to run it, what it can do, and what of it is tuned."""

    make: Callable[[DiffusionPrior, str, float, float], Reconstruct]  # (prior, task, noise, weight)
    physics: type[Physics] = Physics  # what kind it takes
    recommended: float | None = None  # weight that its authors or deepinv recommend
    grid: tuple[float, ...] = ()  # weights that tuning starts from
    scale: float = 2.0  # factor by which the grid grows until the best weight is inside; 0: it does not
    first_only: bool = False  # too long for more than the first images at the first noise level


def _dps(steps: int | None = None) -> Callable[[DiffusionPrior, str, float, float], Reconstruct]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
        model = DPS(
            prior.denoiser(), num_steps=steps or DPS_STEPS, weight=weight, device=prior.device, dtype=torch.float32
        )
        return lambda y, physics, shape: model(y, physics, x_init=shape)

    return make


def _diffpir(zeta: float) -> Callable[[DiffusionPrior, str, float, float], Reconstruct]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
        model = DiffPIR(
            prior.denoiser(), data_fidelity=L2(), sigma=noise, lambda_=weight, zeta=zeta, device=prior.device
        )
        return lambda y, physics, shape: model(y, physics)

    return make


def _ddrm(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
    model = DDRM(prior.denoiser(), eta=weight)
    return lambda y, physics, shape: model(y, physics)


def _pigdm(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
    times = torch.linspace(1, 0, PIGDM_STEPS, device=prior.device)
    model = PosteriorDiffusion(
        data_fidelity=PiGDMDataFidelity(weight=weight),
        denoiser=prior.denoiser(),
        sde=VPDiffusion(device=prior.device, dtype=torch.float32),
        solver=DDPMSolver(timesteps=times),
        dtype=torch.float32,
        device=prior.device,
    )
    return lambda y, physics, shape: model(y, physics, x_init=shape)


def _ours(method: type[DMILO], passes: int) -> Callable[[DiffusionPrior, str, float, float], Reconstruct]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
        # More than 100 passes gain nothing for one sample; the mean of two is worth more.
        model = method(prior, max_passes=passes, num_samples=max(1, passes // 100))
        return lambda y, physics, shape: model(y, physics)

    return make


def _published(method: type[DMILO]) -> Callable[[DiffusionPrior, str, float, float], Reconstruct]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
        # The authors' step sizes fit their operators; those of theirs that they have none for take 1 / ||A||^2.
        own = method is DMILOPGD and task in ("compressed-sensing", "phase-retrieval")
        step = {"step_size": "auto", "gradient_steps": 10, "normalize_gradient": False} if own else {}
        model = method.from_preset(PUBLISHED_PRESETS[task], prior, **step)
        return lambda y, physics, shape: model(y, physics)

    return make


def _pseudo_inverse(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
    def run(y: Tensor, physics: Physics, shape: tuple[int, ...]) -> Tensor:
        if hasattr(physics, "A_adjoint") or task == "phase-retrieval":
            return physics.A_dagger(y)
        return physics.A_dagger(y, x_init=torch.full(shape, 0.5, device=y.device))

    return run


def _dmplug(prior: DiffusionPrior, task: str, noise: float, weight: float) -> Reconstruct:
    model = DMPlug(prior)
    return lambda y, physics, shape: model(y, physics)


RIVALS = {
    "DPS": Method(_dps(), grid=(100.0, 200.0, 400.0)),  # its recommended settings are a method of their own
    # Its zeta counts for more than its weight, which is why both are shown: 1, and deepinv's default of 0.1.
    "DiffPIR, zeta 1": Method(_diffpir(1.0), LinearPhysics, grid=(0.2, 1.0, 5.0)),
    "DiffPIR": Method(_diffpir(0.1), LinearPhysics, 7.0),
    "DDRM": Method(_ddrm, DecomposablePhysics, 0.85, (0.0, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0), scale=0),  # a fraction
    "PiGDM": Method(_pigdm, LinearPhysics, 1.0, (0.5, 1.0, 2.0)),
}
#: every method by name, in the order in which the report runs and shows them
METHODS = {
    "pseudo-inverse": Method(_pseudo_inverse),
    **{f"DMILO, {passes} passes": Method(_ours(DMILO, passes)) for passes in BUDGETS},
    **RIVALS,
    **{f"DMILO-PGD, {passes} passes": Method(_ours(DMILOPGD, passes)) for passes in BUDGETS},
    "DPS, 1000 steps": Method(_dps(1000), recommended=1.0, first_only=True),
    "DMPlug, 900 passes": Method(_dmplug, first_only=True),
    "DMILO, published": Method(_published(DMILO), first_only=True),
    "DMILO-PGD, published": Method(_published(DMILOPGD), first_only=True),
}
