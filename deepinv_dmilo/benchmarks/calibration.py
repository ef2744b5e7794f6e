"""Whether the spread of posterior samples is the error of their mean: the statistics, and the methods that sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.loss.metric import PSNR, SSIM, Metric
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.benchmarks.methods import METHODS, tuned_weight
from deepinv_dmilo.benchmarks.studies import Case
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmilo_sampler import DMILOSampler
from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.scoring import Meter

INTERVALS = (0.5, 0.8, 0.95)  # nominal coverage
BETWEEN = (0.02, 0.98)  # pixels of the truth that count for coverage: neither black nor white
SAMPLED_TASKS = ("super-resolution", "inpainting-70", "deblurring", "nonlinear-deblurring", "compressed-sensing")
DEFAULT_SAMPLER = "DMILOSampler, 100 calls"

#: case and number of samples -> a function of y and physics that gives them, (B, S, C, H, W)
Maker = Callable[[Case, int], Callable[[Tensor, Physics], Tensor]]


def squared_error(samples: Tensor, x: Tensor) -> float:
    """The mean squared error of the mean of samples (S, ...) of x."""
    return (samples.mean(0) - x).square().mean().item()


def predicted_error(samples: Tensor) -> float:
    """What samples (S, ...) predict for it: (1 + 1 / S) times their variance, for x a draw as they are."""
    return (1 + 1 / len(samples)) * samples.var(0).mean().item()


def central_probability(t: Tensor, freedom: int) -> Tensor:
    """P(|T| <= t) for t >= 0 and a Student T of so many degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta, odd = torch.atan(t / freedom**0.5), freedom % 2
    term = theta.cos() if odd else torch.ones_like(theta)
    total = torch.zeros_like(theta)
    for k in range(1 + odd, freedom, 2):
        total, term = total + term, term * theta.cos().square() * k / (k + 1)
    return 2 / math.pi * (theta + theta.sin() * total) if odd else theta.sin() * total


def coverage(samples: Tensor, x: Tensor, level: float) -> float:
    """
    The share of the entries of x that the intervals of a level hold; NaN where there are none.

    An interval is the mean of samples (S, ...) plus and minus a quantile of Student's t with S - 1 degrees of freedom
    times the root of (1 + 1 / S) times their variance: exact for any S if the samples and x are Gaussian draws.
    """
    if not x.numel():
        return math.nan
    spread = ((1 + 1 / len(samples)) * samples.var(0)).sqrt().clamp(min=torch.finfo(samples.dtype).tiny)
    inside = central_probability((samples.mean(0) - x).abs() / spread, len(samples) - 1) <= level
    return inside.to(samples.dtype).mean().item()


@dataclass
class Calibration:
    """The samples of a method for one image; calls and seconds are per sample."""

    task: str
    noise: float
    method: str
    image: int
    samples: int
    psnr: float  # of the mean
    psnr_one: float  # of one sample, their mean in dB
    error: float
    predicted: float
    coverage50: float
    coverage80: float
    coverage95: float
    calls: float
    seconds: float
    ssim: float = math.nan
    ssim_one: float = math.nan
    stlpips: float = math.nan
    stlpips_one: float = math.nan


@dataclass(frozen=True)
class Sampling:
    """A method that samples: how it is made, and its method in the reports."""

    make: Maker
    method: str | None = None  # None: it is ours, and has neither a weight nor a kind of physics
    tuned: bool = False  # its weight is the recorded one, else the recommended one

    @property
    def calls_of_a_pass(self) -> int:
        """What a pass costs in calls, with the products that are not counted."""
        return CALLS_OF_A_PASS + (0 if self.method is None else METHODS[self.method].products)


def _ours(case: Case, count: int, *, calls: int) -> Callable[[Tensor, Physics], Tensor]:
    model = DMILOSampler(case.prior, num_samples=count, max_calls=calls * count, rng=_generator())
    return lambda y, physics: model(y, physics, return_samples=True)[1]


def _dmilo(case: Case, count: int) -> Callable[[Tensor, Physics], Tensor]:
    model = DMILO(case.prior, num_samples=count, rng=_generator())
    return lambda y, physics: model.solve(y, physics).samples


def _generator() -> torch.Generator:
    """Of the seed that the others take; as a number it would give all images the same noise."""
    return torch.Generator().manual_seed(torch.initial_seed())


def _copies(case: Case, count: int, *, make: Callable[[Case], Any]) -> Callable[[Tensor, Physics], Tensor]:
    model = make(case)
    return lambda y, physics: model(y.repeat_interleave(count, 0), physics).unflatten(0, (-1, count))


def _rival(method: str, *, tuned: bool = False) -> Sampling:
    return Sampling(partial(_copies, make=METHODS[method].make), method, tuned)


#: in the order in which they are run and shown
SAMPLINGS = {
    DEFAULT_SAMPLER: Sampling(partial(_ours, calls=100)),
    "DiffPIR, recommended": _rival("DiffPIR"),
    "DDRM, recommended": _rival("DDRM"),
    "DMILOSampler, 30 calls": Sampling(partial(_ours, calls=30)),
    "DMILOSampler, 40 calls": Sampling(partial(_ours, calls=40)),
    "DMILOSampler, 60 calls": Sampling(partial(_ours, calls=60)),
    "DiffPIR, zeta 1, tuned": _rival("DiffPIR, zeta 1", tuned=True),
    "DMILO": Sampling(_dmilo),
    "PiGDM, recommended": _rival("PiGDM"),
    "moment matching, recommended": _rival("moment matching"),
    "DPS, tuned": _rival("DPS", tuned=True),
    "DAPS, 100 calls, tuned": _rival("DAPS, 100 calls", tuned=True),
    "DMILOSampler, 200 calls": Sampling(partial(_ours, calls=200)),
    "DMILOSampler, 400 calls": Sampling(partial(_ours, calls=400)),
}


def check_samples(rows: Sequence[Any], count: int, out: Path) -> None:
    """Refuse a folder with results of another number of samples, which a table would mix."""
    if theirs := next((row.samples for row in rows if row.samples != count), None):
        raise InputError(f"{out} holds results of {theirs} samples; type --samples {theirs}, or another --out")


def draw(
    sampling: Sampling, case: Case, y: Tensor, physics: Physics, count: int, seed: int = 0
) -> tuple[Tensor, float, float]:
    """Samples (B, S, C, H, W), and what one costs in calls of the network and in seconds."""
    forked = torch.random.fork_rng([y.device] if y.is_cuda else [])
    with forked, torch.no_grad(), Meter(case.prior.network, y.device) as meter:
        torch.manual_seed(seed)
        samples = sampling.make(case, count)(y, physics)
    total = samples.shape[0] * samples.shape[1]
    return samples, (meter.calls + sampling.calls_of_a_pass * meter.passes) / total, meter.seconds / total


def weight_of(sampling: Sampling, task: str, noise: float, record: Path | None) -> float | None:
    """The weight of a rival; None: there is no record of its tuning for the task."""
    if not sampling.tuned:
        return 0.0 if sampling.method is None else METHODS[sampling.method].recommended
    try:
        return None if record is None else tuned_weight(str(sampling.method), task, noise, record)
    except ValueError:
        return None


def measured(samples: Tensor, x: Tensor, metrics: Mapping[str, Metric] | None = None) -> dict[str, float]:
    """The statistics of the samples (S, C, H, W) of an image (C, H, W), with PSNR, SSIM and more metrics."""
    grey = (x > BETWEEN[0]) & (x < BETWEEN[1])
    held = {f"coverage{100 * level:.0f}": coverage(samples[:, grey], x[grey], level) for level in INTERVALS}
    quality = {}
    for name, metric in {"psnr": PSNR(), "ssim": SSIM(), **(metrics or {})}.items():
        quality[name] = metric(samples.mean(0)[None], x[None]).item()
        quality[f"{name}_one"] = metric(samples, x.expand_as(samples)).mean().item()
    return {"error": squared_error(samples, x), "predicted": predicted_error(samples), **quality, **held}
