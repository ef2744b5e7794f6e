"""The methods that the report compares, on the same network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.optim import L2
from deepinv.physics import DecomposablePhysics, Denoising, LinearPhysics, Physics, RandomPhaseRetrieval
from deepinv.sampling import DDRM, DPS, DDPMSolver, DiffPIR, PiGDMDataFidelity, PosteriorDiffusion
from deepinv.sampling import VariancePreservingDiffusion as VPDiffusion
from torch import Tensor, nn

from deepinv_dmilo.benchmarks.records import Trial, read_lines
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.reconstructors.dmilo import DMILO
from deepinv_dmilo.reconstructors.dmilo_pgd import DMILOPGD
from deepinv_dmilo.reconstructors.dmplug import DMPlug
from deepinv_dmilo.tools.demo import DPS_STEPS
from deepinv_dmilo.tools.task_names import TASK_PRESETS

TUNING = Path(__file__).parent / "tuning.csv"  # what tuning found so far, of all rivals
BUDGETS = {f"{passes} passes": (passes, 1) for passes in (25, 50, 100)}  # of our methods, and their samples
BUDGETS["2 x 100 passes"] = (200, 2)  # more than 100 passes gain nothing for one sample; the mean of two is worth more
PIGDM_STEPS = DPS_STEPS  # of the tuned runs; deepinv's default for DPS is 1000

# The preset that the published runs take; the paper has none for the last two lines.
PUBLISHED_PRESETS = {
    **TASK_PRESETS,
    "inpainting-70": "inpainting",
    "phase-retrieval": "nonlinear_deblurring",
    **dict.fromkeys(("inpainting-90", "box-inpainting", "compressed-sensing", "denoising"), "inpainting"),
}


@dataclass(frozen=True)
class Method:
    """A method of the report: how to run it, what it can do, and what of it is tuned."""

    make: Callable[[DiffusionPrior, str, float, float], nn.Module]  # (prior, task, noise, weight)
    physics: type[Physics] = Physics  # what kind it takes
    recommended: float | None = None  # weight that its authors or deepinv recommend
    grid: tuple[float, ...] = ()  # weights that tuning starts from
    scale: float = 2.0  # factor by which the grid grows until the best weight is inside; 0: it does not
    first_only: bool = False  # too long for more than the first images at the first noise level


class Sampler(nn.Module):
    """A posterior sampler of deepinv as a reconstructor, told the image shape that it asks for."""

    def __init__(self, sampler: nn.Module, prior: DiffusionPrior) -> None:
        super().__init__()
        self.sampler, self.image_shape = sampler, _told_shape(prior)

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        return self.sampler(y, physics, x_init=(len(y), *self.image_shape))

    def __getstate__(self) -> dict[str, Any]:
        # benchopt's cache pickles the model, which deepinv's diffusions do not allow: it gets one without its sampler.
        return {**super().__getstate__(), "_modules": {}}


class PseudoInverse(nn.Module):
    """``A_dagger``, from mid-grey where it is iterative."""

    def __init__(self, prior: DiffusionPrior) -> None:
        super().__init__()
        self.image_shape = _told_shape(prior)

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images, (B, C, H, W)."""
        if hasattr(physics, "A_adjoint") or isinstance(physics, RandomPhaseRetrieval):
            return physics.A_dagger(y)
        return physics.A_dagger(y, x_init=torch.full((len(y), *self.image_shape), 0.5, device=y.device))


class OneCall(nn.Module):
    """The network as a denoiser, called once with the true noise level: the mean of the images that go with y."""

    def __init__(self, prior: DiffusionPrior, noise: float) -> None:
        super().__init__()
        self.denoiser, self.noise = prior.denoiser(), noise

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images, (B, C, H, W)."""
        return self.denoiser(y, self.noise)


def _told_shape(prior: DiffusionPrior) -> tuple[int, ...]:
    if prior.image_shape is None:
        raise ValueError("the prior's network does not tell its image size; give a UNet2DModel with sample_size")
    return prior.image_shape


def _dps(steps: int | None = None) -> Callable[[DiffusionPrior, str, float, float], nn.Module]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
        model = DPS(
            prior.denoiser(), num_steps=steps or DPS_STEPS, weight=weight, device=prior.device, dtype=torch.float32
        )
        return Sampler(model, prior)

    return make


def _diffpir(zeta: float) -> Callable[[DiffusionPrior, str, float, float], nn.Module]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
        return DiffPIR(
            prior.denoiser(), data_fidelity=L2(), sigma=noise, lambda_=weight, zeta=zeta, device=prior.device
        )

    return make


def _ddrm(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
    return DDRM(prior.denoiser(), eta=weight)


def _pigdm(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
    times = torch.linspace(1, 0, PIGDM_STEPS, device=prior.device)
    model = PosteriorDiffusion(
        data_fidelity=PiGDMDataFidelity(weight=weight),
        denoiser=prior.denoiser(),
        sde=VPDiffusion(device=prior.device, dtype=torch.float32),
        solver=DDPMSolver(timesteps=times),
        dtype=torch.float32,
        device=prior.device,
    )
    return Sampler(model, prior)


def _ours(method: type[DMILO], passes: int, samples: int) -> Callable[[DiffusionPrior, str, float, float], nn.Module]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
        return method(prior, max_passes=passes, num_samples=samples)

    return make


def _published(method: type[DMILO]) -> Callable[[DiffusionPrior, str, float, float], nn.Module]:
    def make(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
        # The authors' step sizes fit their operators; those of theirs that they have none for take 1 / ||A||^2.
        own = method is DMILOPGD and task in ("compressed-sensing", "phase-retrieval")
        step = {"step_size": "auto", "gradient_steps": 10, "normalize_gradient": False} if own else {}
        return method.from_preset(PUBLISHED_PRESETS[task], prior, **step)

    return make


def _pseudo_inverse(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
    return PseudoInverse(prior)


def _dmplug(prior: DiffusionPrior, task: str, noise: float, weight: float) -> nn.Module:
    return DMPlug(prior)


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
    "denoiser, one call": Method(lambda prior, task, noise, weight: OneCall(prior, noise), Denoising),
    **{f"DMILO, {budget}": Method(_ours(DMILO, *numbers)) for budget, numbers in BUDGETS.items()},
    **RIVALS,
    **{f"DMILO-PGD, {budget}": Method(_ours(DMILOPGD, *numbers)) for budget, numbers in BUDGETS.items()},
    "DPS, 1000 steps": Method(_dps(1000), recommended=1.0, first_only=True),
    "DMPlug, 900 passes": Method(_dmplug, first_only=True),
    "DMILO, published": Method(_published(DMILO), first_only=True),
    "DMILO-PGD, published": Method(_published(DMILOPGD), first_only=True),
}


def tuned_weight(method: str, task: str, noise: float) -> float:
    """The weight recorded as best for a task, at the noise level nearest to ``noise``; a method without: its own."""
    if not METHODS[method].grid:
        return METHODS[method].recommended or 0.0
    trials = [t for t in read_lines(Trial, TUNING) if (t.method, t.task) == (method, task)]
    if not trials:
        raise ValueError(f"no weight of {method} is recorded for {task}; type a number, e.g. weight=1.0")
    nearest = min({t.noise for t in trials}, key=lambda recorded: abs(recorded - noise))
    return max((t for t in trials if t.noise == nearest), key=lambda t: t.psnr).weight
