"""Samplers on a Gaussian prior, whose posterior has a closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.models import Denoiser
from deepinv.physics import Physics
from torch import Tensor
from tqdm import tqdm

from deepinv_dmilo.benchmarks.calibration import INTERVALS, SAMPLINGS, check_samples, coverage, draw, weight_of
from deepinv_dmilo.benchmarks.methods import METHODS
from deepinv_dmilo.benchmarks.records import append_lines, read_lines
from deepinv_dmilo.benchmarks.studies import KNOWN_TASKS, Case, measurements
from deepinv_dmilo.priors.denoiser import DenoiserPrior
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.tasks import make_physics

GAUSSIAN_TASKS = ("super-resolution", "inpainting-70", "deblurring", "motion-deblurring", "compressed-sensing")
GAUSSIAN_NOISES = (0.01, 0.05)
SIDE, MEAN, STD = 32, 0.5, 0.12
MOST_NOISE = 10.0  # that the prior is asked for
TRUTHS = 64  # draws of the exact posterior that the intervals are to hold


class GaussianImages(Denoiser):
    """Grey images of mean 0.5, deviation 0.12 and a 1/f spectrum: draws, and as a denoiser E[x | x + noise]."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (torch.fft.fftfreq(n, 1 / max(size), dtype=torch.float64).square() for n in size)
        power = 1 / (rows[:, None] + columns + 1)
        self.register_buffer("power", STD**2 * power / power.mean())

    def forward(self, x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
        """The mean of x (B, 1, H, W) given itself with noise of standard deviation ``sigma``."""
        gain = self.power / (self.power + torch.as_tensor(sigma, device=x.device).reshape(-1, 1, 1, 1) ** 2)
        return (MEAN + _filtered(x - MEAN, gain)).to(x.dtype)

    def draw(self, n: int) -> Tensor:
        """The same n images at every call, (n, 1, H, W), in float64."""
        white = torch.randn(n, 1, *self.power.shape, generator=torch.Generator().manual_seed(0))
        return MEAN + _filtered(white, self.power.sqrt())

    def posterior(self, y: Tensor, physics: Physics, noise: float) -> tuple[Tensor, Tensor]:
        """Means (B, 1, H, W) given y of a linear physics with white noise, and the covariance of pixels, in float64."""
        prior, seen, of_y = covariances(self.power, physics, noise, y.dtype)
        gain = torch.linalg.solve(of_y, seen)
        residual = y - physics.A(torch.full_like(self.power, MEAN, dtype=y.dtype)[None, None])
        mean = MEAN + (residual.double().flatten(1) @ gain).view(-1, 1, *self.power.shape)
        return mean, prior - seen.T @ gain


def covariances(
    power: Tensor, physics: Physics, noise: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Dense covariances in float64: of stationary images x, of y with x, and of y = A(x) with white noise.

    :param torch.dtype dtype: that the physics computes in.
    """
    units = torch.eye(power.numel(), dtype=dtype, device=power.device).view(-1, 1, *power.shape)
    prior = _filtered(units, power).flatten(1)
    a = physics.A(units).double().flatten(1).T
    return prior, a @ prior, a @ prior @ a.T + noise**2 * torch.eye(len(a)).to(a)


def _filtered(v: Tensor, gain: Tensor) -> Tensor:
    """v (n, 1, H, W) times a gain for each of its frequencies, in float64."""
    return torch.fft.ifft2(torch.fft.fft2(v.double()) * gain).real


@dataclass
class ClosedForm:
    """The samples of a method against the exact posterior; 1, 1 / S and the levels are exact."""

    task: str
    noise: float
    method: str
    samples: int
    variance: float  # over the exact one
    error: float  # squared, of the mean, over the exact variance
    coverage50: float
    coverage80: float
    coverage95: float
    calls: float
    seconds: float


def compared(samples: Tensor, mean: Tensor, variance: Tensor) -> dict[str, float]:
    """The statistics of samples (S, C, H, W) of a posterior of Gaussian pixels, (C, H, W)."""
    samples, rng = samples.double(), torch.Generator().manual_seed(0)
    noise = torch.randn(TRUTHS, *mean.shape, generator=rng, dtype=mean.dtype).to(mean.device)
    truths = mean + variance.sqrt() * noise
    held = {f"coverage{100 * level:.0f}": coverage(samples[:, None], truths, level) for level in INTERVALS}
    return {
        "variance": (samples.var(0).mean() / variance.mean()).item(),
        "error": ((samples.mean(0) - mean).square().mean() / variance.mean()).item(),
        **held,
    }


def run_closed_form(
    names: Sequence[str],
    out: Path,
    *,
    count: int = 64,
    tasks: Sequence[str] = GAUSSIAN_TASKS,
    noises: Sequence[float] = GAUSSIAN_NOISES,
    side: int = SIDE,
) -> None:
    """Run what is missing and append it to ``results.csv``; a tuned rival has no record here, and is left out."""
    if unknown := sorted(set(tasks) - set(GAUSSIAN_TASKS)):
        raise InputError(f"no task {unknown[0]!r} in closed form; type some of {', '.join(GAUSSIAN_TASKS)}")
    results, images = out / "results.csv", GaussianImages((side, side))
    prior: Any = DenoiserPrior(images, max_noise=MOST_NOISE)
    x = images.draw(1).float()
    check_samples(known := read_lines(ClosedForm, results), count, out)
    done = {(r.method, r.task, r.noise) for r in known}
    cells = [(name, noise, task) for name in names for noise in noises for task in tasks]
    for name, noise, task in tqdm(cells, desc="closed form", unit="cell"):
        sampling, (kind, options) = SAMPLINGS[name], KNOWN_TASKS[task]
        weight = weight_of(sampling, task, noise, None)
        physics = make_physics(kind, (1, side, side), noise=noise, **options)
        if weight is None or (name, task, noise) in done or not _takes(sampling.method, physics):
            continue
        y: Any = measurements(x, (0,), physics)
        samples, calls, seconds = draw(sampling, Case(prior, (1, side, side), task, noise, weight), y, physics, count)
        mean, covariance = images.posterior(y, physics, noise)
        found = compared(samples[0], mean[0], covariance.diagonal().view_as(mean[0]))
        append_lines([ClosedForm(task, noise, name, count, calls=calls, seconds=seconds, **found)], results)


def _takes(method: str | None, physics: Physics) -> bool:
    return method is None or isinstance(physics, METHODS[method].physics)
