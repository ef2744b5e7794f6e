"""
The four problems of deepinv's benchmarks (github.com/deepinv/benchmarks, June 2026), without its package.

Pictures, operators, noise and metrics are those there, and ``deepinv.test`` runs them as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import deepinv
import torch
from deepinv.datasets import ImageFolder
from deepinv.loss.metric import LPIPS, PSNR, Metric
from deepinv.physics import Blur, Denoising, Downsampling, GaussianNoise, Inpainting, Physics
from deepinv.physics.blur import gaussian_blur
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from deepinv_dmilo.benchmarks.methods import diffpir
from deepinv_dmilo.benchmarks.own_networks import dpir, ram
from deepinv_dmilo.benchmarks.studies import Case
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmilo_pgd import DMILOPGD
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.images import picture_files
from deepinv_dmilo.tools.pictures import read_picture

NOISE_OF_DIFFPIR = 0.05  # deepinv's default, where the physics does not tell


@dataclass(frozen=True)
class BenchmarkProblem:
    """A problem of deepinv's: its name there, data set, operator and noise, and the settings of the solvers there."""

    title: str
    data: str
    facts: Mapping[str, Any]  # columns p_dataset_*
    physics: Callable[[int, torch.Generator], Physics]  # of the side of the pictures, and what noise is drawn from
    dpir: tuple[float, ...]  # noise levels that DPIR is told
    zeta: float = 0.45  # of DiffPIR
    crop: int | None = None  # pixels at the edge that do not count


PROBLEMS = {
    "cbsd68_gaussian_denoising": BenchmarkProblem(
        "CBSD68 denoising",
        "CBSD68",
        {"physics": "Denoising", "noise": "GaussianNoise", "sigma": 0.1},
        lambda side, rng: Denoising(GaussianNoise(0.1, rng=rng)),
        dpir=(0.1,),
    ),
    "div2k_gaussian_deblurring": BenchmarkProblem(
        "DIV2K Gaussian Deblurring",
        "DIV2K",
        {"physics": "Blur", "noise": "GaussianNoise", "sigma": 0.05, "sigma_blur": 2},
        lambda side, rng: Blur(filter=gaussian_blur(2), noise_model=GaussianNoise(0.05, rng=rng)),
        dpir=(0.1, 0.2),
        crop=-16,
    ),
    "div2k_inpainting_easy": BenchmarkProblem(
        "DIV2K Inpainting (30% random)",
        "DIV2K",
        {"physics": "Inpainting", "noise": "ZeroNoise", "mask": 0.3},
        lambda side, rng: Inpainting(mask=0.3, img_size=(3, side, side), rng=rng, device=rng.device),
        dpir=(0.05, 0.1),
        zeta=0.95,
    ),
    "div2k_super_resolution_2x": BenchmarkProblem(
        "DIV2K Super Resolution (2x)",
        "DIV2K",
        {"physics": "Downsampling", "noise": "ZeroNoise", "factor": 2, "filter": "bicubic"},
        lambda side, rng: Downsampling(factor=2, filter="bicubic"),
        dpir=(0.1, 0.2),
    ),
}

SolverMaker = Callable[[Case], nn.Module]


def solvers(problem: BenchmarkProblem, prior: str) -> dict[str, tuple[SolverMaker, str]]:
    """Methods as the leaderboard names them: how they are made, and the network of their own that they need."""
    told = {f"DPIR[sigma={sigma}]": (partial(_told, make=dpir, noise=sigma), "DRUNet") for sigma in problem.dpir}
    return {
        f"DMILO[prior={prior}]": (lambda case: DMILO(case.prior), ""),
        f"DMILO-PGD[prior={prior}]": (lambda case: DMILOPGD(case.prior), ""),
        "RAM": (ram, "RAM"),
        **told,
        f"DiffPIR[denoiser={prior},zeta={problem.zeta}]": (
            partial(_told, make=partial(diffpir, zeta=problem.zeta), noise=NOISE_OF_DIFFPIR),
            "",
        ),
    }


def _told(case: Case, *, make: SolverMaker, noise: float) -> nn.Module:
    return make(case._replace(noise=noise))


def pictures(problem: BenchmarkProblem, source: str | None, size: int, limit: int | None) -> Any:
    """
    The pictures of a problem, or of a folder, resized to a square as there, whatever their shape.

    :raises InputError: they cannot be had; with what to type.
    """
    square = transforms.Resize((size, size))
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: type at least 1")
    if source is not None:
        if not Path(source).is_dir():
            raise InputError(f"--images {source}: no such folder")
        images: Any = ImageFolder(source, x_path="*", loader=read_picture, transform=square)
        images.x_paths = picture_files(Path(source))
    else:
        options = {"mode": "val"} if problem.data == "DIV2K" else {}
        transform = transforms.Compose([square, transforms.ToTensor()])
        try:
            kind = getattr(deepinv.datasets, problem.data)
            images = kind(str(Path("datasets") / problem.data), download=True, transform=transform, **options)
        except Exception as error:  # of downloads, packages, files
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(f"{problem.data}: pictures not reachable: {reason}; type --images FOLDER") from error
    if not len(images):
        raise InputError(f"{source or problem.data} has no pictures")
    return Subset(images, range(len(images))[:limit])


def solve(
    problem: BenchmarkProblem, make: SolverMaker, case: Case, images: Any, metrics: list[Metric]
) -> dict[str, Any]:
    """What ``deepinv.test`` finds: means over the pictures, standard deviations, seconds in all."""
    rng = torch.Generator(case.prior.device).manual_seed(0)  # every method gets the same measurements
    physics = problem.physics(case.shape[-1], rng).to(case.prior.device)
    torch.manual_seed(0)
    with torch.no_grad():
        return deepinv.test(
            make(case),
            DataLoader(images),
            physics,
            metrics=metrics,
            online_measurements=True,
            device=case.prior.device,
            compare_no_learning=False,
            verbose=False,
        )


@cache
def metrics_of(crop: int | None, device: str) -> list[Metric]:
    """PSNR, and LPIPS where its weights can be had."""
    metrics: list[Metric] = [PSNR(center_crop=crop)]
    try:
        metrics.append(LPIPS(device=device, norm_inputs="min_max", center_crop=crop))
    except Exception as error:  # of downloads, packages
        print(f"left out: LPIPS: {' '.join(str(error).split())[:300]}")
    return metrics
