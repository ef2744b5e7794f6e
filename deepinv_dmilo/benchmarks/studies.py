"""What a report compares methods on: a prior, pictures of one size, tasks and noise levels; and the presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from deepinv.physics import Physics
from torch import Tensor
from tqdm import tqdm

from deepinv_dmilo.likelihood.measurements import Measurements, join
from deepinv_dmilo.priors.families import VariancePreserving
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.folder import write_whole
from deepinv_dmilo.tools.images import open_images
from deepinv_dmilo.tools.options import open_prior
from deepinv_dmilo.tools.tasks import GUESS_STD, gaussian_kernel, make_physics
from deepinv_dmilo.utils.private import seeded

if TYPE_CHECKING:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior

#: tasks whose physics is known, by name: that of ``make_physics``, and its options
KNOWN_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "super-resolution": ("super-resolution", {}),
    "inpainting-70": ("inpainting", {"missing": 0.7}),
    "inpainting-90": ("inpainting", {"missing": 0.9}),
    "box-inpainting": ("box-inpainting", {}),
    "deblurring": ("deblurring", {}),
    "motion-deblurring": ("motion-deblurring", {}),
    "nonlinear-deblurring": ("nonlinear-deblurring", {}),
    "compressed-sensing": ("compressed-sensing", {"ratio": 100 / 1024}),
    "denoising": ("denoising", {}),
    "phase-retrieval": ("phase-retrieval", {}),
}
#: tasks with a first guess in place of the blur; what is measured is the same as where it is known
BLIND_TASKS = {f"blind-{task}": KNOWN_TASKS[task] for task in ("deblurring", "motion-deblurring")}
#: all tasks of the reports
REPORT_TASKS = KNOWN_TASKS | BLIND_TASKS
NOISES = (0.005, 0.05)
DRAWN = "drawn from the prior"  # the pictures of a preset that are
FIRST_SEED = 1_000_000  # of these: far from the seeds of measurements and samplers, whose noise is to be another


@dataclass(frozen=True)
class Preset:
    """The settings of a report."""

    title: str
    prior: str
    images: str  # as the command line's DATASET
    size: int | None = None  # of the pictures; None: as they are, or as the prior was trained
    limit: int = 12  # pictures that are reported, the first
    tuning: tuple[int, int | None] = (-4, None)  # first and end of the pictures that rivals are tuned on
    tasks: tuple[str, ...] = tuple(REPORT_TASKS)
    noises: tuple[float, ...] = NOISES
    batch_size: int = 4
    bfloat16: bool = False  # what the network computes in
    record: Path | None = None  # what tuning found before
    paper: tuple[tuple[str, str, float, float], ...] = ()  # method, task, PSNR, SSIM

    def with_settings(self, **settings: Any) -> Preset:
        """The same with other settings; on other pictures, rivals are tuned on the last four, from nothing."""
        changed = replace(self, **settings)
        if changed.prior == self.prior and changed.images == self.images and changed.size == self.size:
            return changed
        tuning = self.tuning if changed.images == self.images else (-4, None)
        return replace(changed, title="Report", record=None, tuning=tuning)


TUNING = Path(__file__).parent / "tuning"
PRESETS = {
    "digits": Preset(
        "Digits",
        "digits",
        "digits",
        limit=32,
        tasks=tuple(KNOWN_TASKS),
        tuning=(240, 244),
        batch_size=8,
        record=TUNING / "digits.csv",
    ),
    "photos": Preset("Photographs", "photos", "photos", size=128, tuning=(12, 14), record=TUNING / "photos.csv"),
    # The paper's settings: noise of 0.01 for images in [-1, 1], and its figures; nonlinear deblurring is on FFHQ.
    "faces": Preset(
        "Faces",
        "google/ddpm-celebahq-256",
        "",
        size=256,
        limit=100,
        tasks=("super-resolution", "inpainting-70", "deblurring", "motion-deblurring", "nonlinear-deblurring"),
        noises=(0.005,),
        batch_size=1,
        paper=(
            ("DMPlug", "super-resolution", 32.38, 0.875),
            ("DMILO-PGD", "super-resolution", 33.58, 0.906),
            ("DMPlug", "inpainting-70", 35.51, 0.935),
            ("DMILO-PGD", "inpainting-70", 36.42, 0.952),
            ("DMPlug", "motion-deblurring", 30.25, 0.824),
            ("DMILO", "motion-deblurring", 34.15, 0.908),
            ("DMPlug", "nonlinear-deblurring", 31.37, 0.866),
            ("DMILO-PGD", "nonlinear-deblurring", 34.02, 0.919),
        ),
    ),
}


class Case(NamedTuple):
    """What a method is made for."""

    prior: DiffusionPrior
    shape: tuple[int, int, int]  # (C, H, W) of the images
    task: str
    noise: float  # standard deviation, for images in [0, 1]
    weight: float  # what of the method is tuned
    guess: Tensor | None = None  # of the blur, (1, 1, h, w), where the physics has no more than that
    weights: Mapping[str, Path] = MappingProxyType({})  # files of networks that are not the prior


@dataclass(frozen=True)
class Study:
    """A prior, pictures in [0, 1], (N, C, H, W) each, and what is done with them."""

    preset: Preset
    prior: DiffusionPrior
    pictures: Tensor  # that are reported
    tuning: Tensor
    weights: Mapping[str, Path] = field(default_factory=dict)  # files of networks that are not the prior

    @classmethod
    def open(cls, preset: Preset, device: str) -> Study:
        """
        Load the prior and the pictures of a preset.

        :raises InputError, ValueError, FileNotFoundError: what is wrong with them.
        """
        if unknown := sorted(set(preset.tasks) - REPORT_TASKS.keys()):
            raise InputError(f"no task {unknown[0]!r}; type some of {', '.join(REPORT_TASKS)}")
        if not preset.images:
            raise InputError("no pictures: type --images FOLDER, or the name of a data set of deepinv.datasets")
        prior, shape = _prior_and_shape(preset, device)
        images, names = open_images(preset.images, shape)
        tuning = range(len(names))[slice(*preset.tuning)]
        count = min(preset.limit, tuning.start if tuning.stop == len(names) else len(names))
        if preset.limit < 1 or count < 1 or not tuning:
            raise InputError(
                f"--limit {preset.limit}, {len(names)} pictures: give at least 1, and {max(1, len(tuning))} more to "
                "tune rivals on"
            )
        pictures, tuned_on = (torch.stack([images[i] for i in rows]).to(device) for rows in (range(count), tuning))
        return cls(preset, prior, pictures, tuned_on)

    @classmethod
    def drawn(cls, preset: Preset, device: str, file: Path) -> Study:
        """
        Load the prior of a preset, and draw pictures from it or read those that are kept in a file; for no tuning.

        :raises InputError, ValueError, FileNotFoundError: what is wrong with it.
        """
        if preset.limit < 1:
            raise InputError(f"--limit {preset.limit}: type at least 1")
        prior, shape = _prior_and_shape(preset, device)
        if not (prior.affine and isinstance(getattr(prior, "family", None), VariancePreserving)):
            raise InputError(f"--drawn takes no flow or latent prior as {preset.prior}; type --images FOLDER instead")
        pictures = torch.load(file, weights_only=True) if file.exists() else torch.empty(0, *shape)
        for start in range(len(pictures), preset.limit, preset.batch_size):
            numbers = range(start, min(start + preset.batch_size, preset.limit))
            pictures = torch.cat([pictures, draw_pictures(prior, shape, numbers).cpu()])
            torch.save(pictures, stream := BytesIO())
            write_whole(file, stream.getvalue())
        pictures = pictures[: preset.limit].to(device)
        return cls(preset, prior, pictures, pictures[:0])

    def physics(self, task: str, noise: float, kernel: Tensor | None = None) -> Physics:
        """The operator of a task, the same at every call, or that with another blur kernel."""
        name, options = REPORT_TASKS[task]
        shape: tuple[int, int, int] = tuple(self.pictures.shape[1:])  # type: ignore[assignment]
        return make_physics(name, shape, noise=noise, kernel=kernel, device=self.prior.device, **options)

    def guess(self, task: str) -> Tensor | None:
        """The kernel that blind deblurring starts from, (1, 1, h, w); None where the physics is known."""
        if task not in BLIND_TASKS:
            return None
        return gaussian_kernel(GUESS_STD, self.physics(task, 0.0).filter.shape[-1]).to(self.prior.device)  # type: ignore[union-attr]


def _prior_and_shape(preset: Preset, device: str) -> tuple[DiffusionPrior, tuple[int, int, int]]:
    """The prior of a preset, and the shape of its pictures."""
    prior = open_prior(preset.prior, device, bfloat16=preset.bfloat16)
    if prior.image_shape is None:
        raise InputError(f"--prior {preset.prior}: its network does not tell its image size; give a UNet2DModel")
    channels, height, width = prior.image_shape
    shape = (channels, height, width) if preset.size is None else (channels, preset.size, preset.size)
    if prior.for_images(*shape[1:]) is not prior:
        raise InputError(f"--size {shape[1]}: the network takes multiples of a power of two; type 256, say")
    return prior, shape


@torch.no_grad()
def draw_pictures(prior: DiffusionPrior, shape: tuple[int, int, int], numbers: Sequence[int]) -> Tensor:
    """Images in [0, 1] by ancestral sampling (DDPM) over all steps of the training; each follows from its number."""
    from diffusers import DDPMScheduler

    prior, rngs = prior.frozen(), [torch.Generator().manual_seed(FIRST_SEED + number) for number in numbers]
    alphas = torch.tensor([1.0, *prior.family.alphas_cumprod], dtype=torch.float64)  # type: ignore[attr-defined]
    betas = (1 - alphas[1:] / alphas[:-1]).tolist()
    scheduler: Any = DDPMScheduler(len(betas), trained_betas=betas, prediction_type="sample", clip_sample=False)
    z = torch.cat([torch.randn(1, *shape, generator=rng) for rng in rngs]).to(prior.device)
    for t in tqdm(scheduler.timesteps.tolist(), desc=f"draws {numbers[0]}-{numbers[-1]}", unit="step"):
        u = prior.denoise(z, prior.family.at(t))  # type: ignore[attr-defined]
        z = scheduler.step(u, t, z, generator=rngs).prev_sample
    return prior.decode(z).clamp(0, 1)


def measurements(x: Tensor, numbers: Sequence[int], physics: Physics) -> Measurements:
    """Noisy measurements of pictures (n, C, H, W); the noise of a picture follows from its number alone."""
    measured = []
    for picture, number in zip(x.split(1), numbers, strict=True):
        with seeded(physics, number) as of_picture:
            measured.append(of_picture(picture))
    return join(measured)
