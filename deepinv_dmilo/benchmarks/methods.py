"""The methods that the report compares: most on the same network, and those that come with one of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.optim import L2, BlindRL
from deepinv.physics import Blur, DecomposablePhysics, Denoising, LinearPhysics, PhaseRetrieval, Physics
from deepinv.sampling import (
    DDRM,
    DPS,
    DDPMSolver,
    DiffPIR,
    MomentMatchingDataFidelity,
    PiGDMDataFidelity,
    PosteriorDiffusion,
)
from deepinv.sampling import VariancePreservingDiffusion as VPDiffusion
from torch import Tensor, nn

from deepinv_dmilo.benchmarks.blind_rivals import BlindDPS, FastDiffusionEM
from deepinv_dmilo.benchmarks.own_networks import EstimatedBlur, PlugAndPlay, dpir, drunet_as_prior, mprnet, ram
from deepinv_dmilo.benchmarks.records import Trial, read_lines
from deepinv_dmilo.benchmarks.rivals import DAPS, FASTDIPS, SITCOM, TotalVariation
from deepinv_dmilo.benchmarks.studies import BLIND_TASKS, KNOWN_TASKS, REPORT_TASKS, Case
from deepinv_dmilo.likelihood.constraints import BlurKernel, Simplex
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmilo_pgd import DMILOPGD
from deepinv_dmilo.methods.dmilo_sampler import DMILOSampler
from deepinv_dmilo.methods.dmplug import DMPlug
from deepinv_dmilo.priors.blur_kernels import middle
from deepinv_dmilo.tools.demo import DPS_STEPS
from deepinv_dmilo.tools.task_names import TASK_PRESETS

BUDGETS = {f"{passes} passes": (passes, 1) for passes in (25, 50, 100)}  # of our methods, and their samples
BUDGETS["2 x 100 passes"] = (200, 2)  # more than 100 passes gain nothing for one sample; the mean of two is worth more
MOMENT_STEPS = 25
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
    """A method of the report: how to make it, what it can do, and what of it is tuned."""

    make: Callable[[Case], Callable[[Tensor, Physics], Tensor]]
    physics: type[Physics] = Physics  # what kind it takes
    recommended: float | None = None  # weight that its authors or deepinv recommend
    grid: tuple[float, ...] = ()  # weights that tuning starts from
    scale: float = 2.0  # factor by which the grid grows until the best weight is inside; 0: it does not
    first_only: bool = False  # too long for more than the first images at the first noise level
    tasks: tuple[str, ...] = tuple(KNOWN_TASKS)  # that it is run on
    own_network: str = ""  # of ``OWN_NETWORKS``, that it comes with; none: it takes the prior, or no network
    products: int = 0  # further backward passes for each pass, which the meter does not see


class Sampler(nn.Module):
    """A posterior sampler of deepinv as a reconstructor, given the image shape that it needs."""

    def __init__(self, sampler: nn.Module, case: Case) -> None:
        super().__init__()
        self.sampler, self.image_shape = sampler, case.shape

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        return self.sampler(y, physics, x_init=(len(y), *self.image_shape))

    def __getstate__(self) -> dict[str, Any]:
        # benchopt's cache pickles the model, which deepinv's diffusions do not allow: it gets one without its sampler.
        return {**super().__getstate__(), "_modules": {}}


class PseudoInverse(nn.Module):
    """``A_dagger``, from mid-grey where it is iterative."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.image_shape = case.shape

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images, (B, C, H, W)."""
        if hasattr(physics, "A_adjoint") or isinstance(physics, PhaseRetrieval):
            return physics.A_dagger(y)
        return physics.A_dagger(y, x_init=torch.full((len(y), *self.image_shape), 0.5, device=y.device))


class RichardsonLucy(nn.Module):
    """deepinv's ``BlindRL`` from the measurements and the blur that it is given, stopped after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images, (B, C, H, W)."""
        guess: Any = physics.filter
        x, kernels = y.clamp(min=1e-3), guess.repeat(len(y), 1, 1, 1)
        model = BlindRL(kernel_size=guess.shape[-1], max_iter=self.steps, use_fft=True, init=(x, kernels))
        return model(x, Blur(filter=guess, padding="circular"))[0]


class OneCall(nn.Module):
    """The network as a denoiser, called once with the true noise level: the mean of the images that go with y."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.denoiser, self.noise = case.prior.denoiser(), case.noise

    def forward(self, y: Tensor, physics: Physics) -> Tensor:
        """Images, (B, C, H, W)."""
        return self.denoiser(y, self.noise)


def _dps(case: Case, *, steps: int | None = None, guidance: str = "norm") -> nn.Module:
    settings: dict[str, Any] = {"device": case.prior.device, "dtype": torch.float32}
    sampler = DPS(
        case.prior.denoiser(), num_steps=steps or DPS_STEPS, weight=case.weight, guidance=guidance, **settings
    )
    return Sampler(sampler, case)


def diffpir(case: Case, *, zeta: float) -> nn.Module:
    settings: dict[str, Any] = {"sigma": case.noise, "lambda_": case.weight, "zeta": zeta}
    return DiffPIR(case.prior.denoiser(), data_fidelity=L2(), device=case.prior.device, **settings)


def _ddrm(case: Case) -> nn.Module:
    return DDRM(case.prior.denoiser(), eta=case.weight)


def _pigdm(case: Case) -> nn.Module:
    return _diffusion(case, PiGDMDataFidelity(weight=case.weight), PIGDM_STEPS)


def _moment_matching(case: Case) -> nn.Module:
    """deepinv's moment matching (Rozet et al., 2024), of about 150 calls: six for a step."""
    return _diffusion(case, MomentMatchingDataFidelity(weight=case.weight), MOMENT_STEPS)


def _diffusion(case: Case, data_fidelity: nn.Module, steps: int) -> nn.Module:
    device = case.prior.device
    model = PosteriorDiffusion(
        data_fidelity=data_fidelity,
        denoiser=case.prior.denoiser(),
        sde=VPDiffusion(device=device, dtype=torch.float32),
        solver=DDPMSolver(timesteps=torch.linspace(1, 0, steps, device=device)),
        dtype=torch.float32,
        device=device,
    )
    return Sampler(model, case)


def _rival(case: Case, *, kind: Any, **settings: int) -> nn.Module:
    return kind(case.prior, case.shape, case.noise, case.weight, **settings)


def _ours(case: Case, *, method: type[DMILO], passes: int, samples: int) -> nn.Module:
    unknown = None if case.guess is None else {"filter": Simplex(case.guess)}
    return method(case.prior, max_passes=passes, num_samples=samples, unknown=unknown)


def _blur_kernel(case: Case) -> nn.Module:
    assert case.guess is not None  # of blind tasks alone
    return DMILO(case.prior, max_calls=200, unknown={"filter": BlurKernel(middle(case.guess))})


def _published(case: Case, *, method: type[DMILO]) -> nn.Module:
    # The authors' step sizes fit their operators; those of theirs that they have none for take 1 / ||A||^2.
    own = method is DMILOPGD and case.task in ("compressed-sensing", "phase-retrieval")
    step = {"step_size": "auto", "gradient_steps": 10, "normalize_gradient": False} if own else {}
    return method.from_preset(PUBLISHED_PRESETS[case.task], case.prior, **step)


def _budgets(method: type[DMILO]) -> dict[str, Method]:
    """A method of this package at each of the budgets."""
    return {
        f"{'DMILO-PGD' if method is DMILOPGD else 'DMILO'}, {name}": Method(
            partial(_ours, method=method, passes=passes, samples=samples), tasks=tuple(REPORT_TASKS)
        )
        for name, (passes, samples) in BUDGETS.items()
    }


RIVALS = {
    "FAST-DIPS, 75 calls": Method(partial(_rival, kind=FASTDIPS, steps=75), grid=(20.0, 60.0, 200.0), scale=3.0),
    # Its zeta counts for more than its weight, which is why both are shown: 1, and deepinv's default of 0.1.
    "DiffPIR, zeta 1": Method(partial(diffpir, zeta=1.0), LinearPhysics, grid=(0.2, 1.0, 5.0)),
    "DiffPIR": Method(partial(diffpir, zeta=0.1), LinearPhysics, 7.0),
    "DDRM": Method(_ddrm, DecomposablePhysics, 0.85, (0.0, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0), scale=0),  # a fraction
    "SITCOM, 10 x 10": Method(partial(_rival, kind=SITCOM, steps=10, inner=10), grid=(0.01, 0.03, 0.1), scale=3.0),
    "DAPS, 100 calls": Method(partial(_rival, kind=DAPS, steps=50, flow=2), grid=(0.03, 0.1, 0.3), scale=3.0),
    "DPS": Method(_dps, grid=(100.0, 200.0, 400.0)),  # its recommended settings are a method of their own
    "PiGDM": Method(_pigdm, LinearPhysics, 1.0, (0.5, 1.0, 2.0)),
    "DPS, annealed": Method(partial(_dps, guidance="annealed"), recommended=1.0, grid=(0.5, 1.0, 2.0)),
    # A step is a forward pass and five products with the Jacobian, one of which is that of the pass: four for three
    # conjugate gradients, one for the gradient.
    "moment matching": Method(_moment_matching, LinearPhysics, 1.0, (0.5, 1.0, 2.0), products=4),
    "SITCOM, 20 x 30": Method(partial(_rival, kind=SITCOM, steps=20, inner=30), grid=(0.01, 0.03, 0.1), scale=3.0),
    "DAPS, 1000 calls": Method(partial(_rival, kind=DAPS, steps=200, flow=5), grid=(0.03, 0.1, 0.3), scale=3.0),
}
#: every method by name, in the order in which the report runs and shows them
METHODS = {
    "pseudo-inverse": Method(PseudoInverse),
    "TV": Method(
        lambda case: TotalVariation(case.shape, case.weight), LinearPhysics, grid=(0.004, 0.016, 0.064), scale=4.0
    ),
    "BlindRL": Method(
        lambda case: RichardsonLucy(round(case.weight)), tasks=tuple(BLIND_TASKS), grid=(5.0, 10.0, 20.0)
    ),
    "Fast Diffusion EM, 50 passes": Method(
        partial(_rival, kind=FastDiffusionEM, steps=50), tasks=tuple(BLIND_TASKS), grid=(1.0, 2.0, 4.0)
    ),
    "BlindDPS, 100 passes": Method(
        partial(_rival, kind=BlindDPS, steps=100), tasks=tuple(BLIND_TASKS), grid=(3.0, 6.0, 12.0)
    ),
    "denoiser, one call": Method(OneCall, Denoising),
    **_budgets(DMILO),
    **_budgets(DMILOPGD),
    "DMILOSampler, 8 x 100 calls": Method(lambda case: DMILOSampler(case.prior)),  # the mean of its samples
    # The default there, and four such searches, of which the most probable is returned.
    "DMILO, 200 passes": Method(partial(_ours, method=DMILO, passes=200, samples=1), tasks=tuple(BLIND_TASKS)),
    "DMILO, 4 x 200 passes": Method(partial(_ours, method=DMILO, passes=800, samples=4), tasks=tuple(BLIND_TASKS)),
    "DMILO, BlurKernel, 200 calls": Method(_blur_kernel, tasks=tuple(BLIND_TASKS)),
    **RIVALS,
    "DPS, 1000 steps": Method(partial(_dps, steps=1000), recommended=1.0, first_only=True),
    "DMPlug, 900 passes": Method(lambda case: DMPlug(case.prior), first_only=True),
    "DMILO, published": Method(partial(_published, method=DMILO), first_only=True),
    "DMILO-PGD, published": Method(partial(_published, method=DMILOPGD), first_only=True),
    "RAM": Method(ram, LinearPhysics, own_network="RAM"),
    "DPIR": Method(dpir, LinearPhysics, own_network="DRUNet"),
    "DRUNet, PnP-PGD": Method(PlugAndPlay, LinearPhysics, grid=(0.01, 0.03, 0.1), scale=3.0, own_network="DRUNet"),
    "DRUNet as our prior": Method(drunet_as_prior, own_network="DRUNet"),
    "kernel network, DMILO": Method(EstimatedBlur, tasks=tuple(BLIND_TASKS), own_network="KernelIdentificationNetwork"),
    "MPRNet": Method(mprnet, tasks=tuple(BLIND_TASKS), own_network="MPRNet"),
}


def method_of(line: str) -> str:
    """The method of a line of the report."""
    return line.removesuffix(", tuned").removesuffix(", recommended")


def own_network(line: str) -> str:
    """The network that the method of a line of the report comes with; none: it takes the prior, or no network."""
    return METHODS[method_of(line)].own_network if method_of(line) in METHODS else ""


def tuned_weight(method: str, task: str, noise: float, record: Path) -> float:
    """The weight recorded as best for a task, at the noise level nearest to ``noise``; a method without: its own."""
    if not METHODS[method].grid:
        return METHODS[method].recommended or 0.0
    trials = [t for t in read_lines(Trial, record) if (t.method, t.task) == (method, task)]
    if not trials:
        raise ValueError(f"no weight of {method} is recorded for {task}; type a number, e.g. weight=1.0")
    nearest = min({t.noise for t in trials}, key=lambda recorded: abs(recorded - noise))
    return max((t for t in trials if t.noise == nearest), key=lambda t: t.psnr).weight
