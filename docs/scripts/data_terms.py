r"""
What the likelihood of the noise model gains over least squares, and what an unknown blur or another unknown parameter
costs.

    python docs/scripts/data_terms.py --out docs/data_terms.md

Pictures that no report uses: four digits, and the middle 64 x 64 of four photographs. All settings except the number of
passes are the defaults.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import (
    Blur,
    Downsampling,
    GaussianNoise,
    LaplaceNoise,
    NoiseModel,
    Physics,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltPepperNoise,
)
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torchvision.transforms.functional import center_crop
from tqdm import tqdm

from deepinv_dmilo.benchmarks.methods import RichardsonLucy
from deepinv_dmilo.likelihood.constraints import Positive, Simplex
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.tools.scoring import SHIFTS, registered
from deepinv_dmilo.tools.tasks import GUESS_STD, gaussian_kernel, make_physics
from deepinv_dmilo.utils.private import seeded

_PASSES, _BLIND_PASSES, _RL_STEPS, _BLIND_NOISES = 25, (100, 200), 10, (0.005, 0.05)
_NOISES: dict[str, Callable[[], NoiseModel]] = {
    **{f"{n} photons a pixel": lambda n=n: PoissonNoise(1 / n, clip_positive=True) for n in (5, 20, 100)},  # type: ignore[misc]
    "20 photons, read-out noise 0.05": lambda: PoissonGaussianNoise(1 / 20, 0.05, clip_positive=True),
    "salt and pepper, 10 %": lambda: SaltPepperNoise(0.05, 0.05),
    "dead pixels, 20 %": lambda: SaltPepperNoise(0.2, 0.0),
    "Laplace noise, b = 0.1": lambda: LaplaceNoise(0.1),
}
_OTHER = (
    f"Photographs: 70 % inpainting, and 2x super-resolution at noise 0.005 from a guess of a Gaussian of {GUESS_STD} "
    "pixels, 11 x 11."
)
_TASKS = ("denoising", "deblurring", "inpainting")


def pictures(name: str) -> Tensor:
    """Four held-out images that no report uses."""
    return held_out_images("digits")[240:244] if name == "digits" else held_out_images("photos")[12:16, :, 32:96, 32:96]


def mean_psnr(x_hat: Tensor, x: Tensor) -> str:
    """The mean over the images."""
    return f"{PSNR()(x_hat, x).mean().item():.2f}"


def measured(physics: Physics, x: Tensor) -> Tensor:
    """Measurements of x, the same at every call."""
    with seeded(physics, 0) as of_seed:
        return of_seed(x)


def noise_table(name: str) -> list[str]:
    """PSNR with the likelihood of the noise model, and with least squares and the true noise variance."""
    prior, x = DiffusionPrior.from_pretrained(name), pictures(name)
    titles = [f"{task}, {term}" for task in _TASKS for term in ("own", "least squares")]
    lines = [f"| noise | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for title, noise in tqdm(_NOISES.items(), desc=name):
        row = [title]
        for task in _TASKS:
            physics = make_physics(task, tuple(x.shape[1:]))  # type: ignore[arg-type]
            physics.noise_model = noise()
            y = measured(physics, x)
            std = (y - physics.A(x)).square().mean().sqrt().item()
            row += [mean_psnr(DMILO(prior, max_passes=_PASSES, noise_level=s)(y, physics), x) for s in (None, std)]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def blind_table(noise: float) -> list[str]:
    """Blind deblurring of photographs, compared with the true kernel and with the guess held fixed."""
    prior, middle = DiffusionPrior.from_pretrained("photos"), pictures("photos")
    photographs = held_out_images("photos")[12:16]
    corner, whole = photographs[..., :64, 64:128], photographs[..., 24:104, 24:104]
    shape: tuple[int, int, int] = tuple(middle.shape[1:])  # type: ignore[assignment]
    side = shape[1] // 4 + 1
    guess = gaussian_kernel(GUESS_STD, side)
    motion = make_physics("motion-deblurring", shape).filter.mean(1, keepdim=True)  # type: ignore[union-attr]
    blinds = [f"blind, {passes} passes" for passes in _BLIND_PASSES]
    titles = ["y", "guess fixed", *blinds, "registered", "error of the kernel", "true kernel"]
    titles.append("deepinv's BlindRL, registered")
    lines = [f"| blur | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    rows = {
        "Gaussian, 1.5 pixels": (gaussian_kernel(1.5, side), middle, "circular"),
        "motion": (motion, middle, "circular"),
        "motion, turned; the upper right of the photographs": (torch.rot90(motion, dims=(2, 3)), corner, "circular"),
        "Gaussian, open boundary": (gaussian_kernel(1.5, side), whole, "valid"),
        "motion, open boundary": (motion, whole, "valid"),
    }
    for title, (kernel, x, edges) in tqdm(rows.items(), desc="blind"):
        guessed, true = (Blur(k, padding=edges, noise_model=GaussianNoise(noise)) for k in (guess, kernel))
        y = measured(true, x)
        seen = partial(center_crop, output_size=list(y.shape[2:]))  # to the pixels of y
        inner = seen(x)
        row = [title, mean_psnr(y, inner), mean_psnr(seen(DMILO(prior)(y, guessed)), inner)]
        for passes in _BLIND_PASSES:
            model = DMILO(prior, unknown={"filter": Simplex(guess)}, max_passes=passes)
            x_hat, found = model(y, guessed, return_unknown=True)
            row.append(mean_psnr(seen(x_hat), inner))
        error = (found["filter"] - kernel).flatten(1).norm(dim=1) / kernel.norm()
        of_rl = RichardsonLucy(_RL_STEPS)(y, guessed)  # stopped early, its best setting here
        row += [mean_psnr(registered(x_hat, inner), inner), f"{error.mean().item():.0%}"]
        row += [mean_psnr(seen(DMILO(prior)(y, true)), inner), mean_psnr(registered(of_rl, inner), inner)]
        lines.append(f"| {' | '.join(row)} |")
    return lines


class Gain(Physics):
    """Inpainting with an unknown detector gain."""

    def __init__(self, inpainting: Physics, gain: float) -> None:
        super().__init__(noise_model=inpainting.noise_model)
        self.inpainting: Physics = inpainting
        self.register_buffer("gain", torch.full((1, 1, 1, 1), gain))

    def A(self, x: Tensor, gain: Tensor | None = None, **kwargs: object) -> Tensor:
        """Images (B, C, H, W) to measurements of that shape."""
        self.update(gain=gain)
        return self.gain * self.inpainting.A(x)  # type: ignore[operator]


def other_table() -> list[str]:
    """An unknown gain, an unknown noise level, and unknown blurs of super-resolution."""
    prior, x = DiffusionPrior.from_pretrained("photos"), pictures("photos")
    inpainting = make_physics("inpainting", tuple(x.shape[1:]), noise=0.02)  # type: ignore[arg-type]
    lines = ["| unknown | estimate | PSNR (dB) | PSNR, known |", "|---|---|---|---|"]
    y = measured(Gain(inpainting, 0.8), x)
    known = mean_psnr(DMILO(prior)(y, Gain(inpainting, 0.8)), x)
    model = DMILO(prior, unknown={"gain": Positive(torch.ones(1, 1, 1, 1))})
    x_hat, found = model(y, Gain(inpainting, 1.0), return_unknown=True)
    gains = ", ".join(f"{g:.3f}" for g in found["gain"].flatten().tolist())
    lines.append(f"| inpainting: gain of 0.8, from a guess of 1 | {gains} | {mean_psnr(x_hat, x)} | {known} |")
    y = measured(inpainting, x)
    known = mean_psnr(DMILO(prior)(y, inpainting), x)
    inpainting.noise_model = None
    unsaid = mean_psnr(DMILO(prior)(y, inpainting), x)
    lines.append(f"| inpainting: noise of 0.02, the physics has no noise model | | {unsaid} | {known} |")
    return [*lines, *super_resolution_rows(prior, x)]


def super_resolution_rows(prior: DiffusionPrior, x: Tensor) -> list[str]:
    """The rows of 2x super-resolution with an unknown blur, images registered."""
    side, rows = 11, []
    guess = gaussian_kernel(GUESS_STD, side)
    line = pad(torch.full((1, 1, 1, 7), 1 / 7), (2, 2, 5, 5))
    blurs = {
        "Gaussian, 1.2 pixels": gaussian_kernel(1.2, side),
        "line of 7 pixels": conv2d(line, gaussian_kernel(0.6, 5), padding=2),
    }
    for title, kernel in tqdm(blurs.items(), desc="super-resolution"):
        guessed, true = (
            Downsampling(x.shape[1:], filter=k, factor=2, padding="circular", noise_model=GaussianNoise(0.005))
            for k in (guess, kernel)
        )
        y = measured(true, x)
        x_hat, found = DMILO(prior, unknown={"filter": Simplex(guess)})(y, guessed, return_unknown=True)
        error = (found["filter"] - kernel).flatten(1).norm(dim=1).mean() / kernel.norm()
        scores = f"{mean_psnr(registered(x_hat, x), x)} | {mean_psnr(DMILO(prior)(y, true), x)}"
        rows.append(f"| 2x super-resolution: {title} | error of the kernel {error.item():.0%} | {scores} |")
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(prog="python docs/scripts/data_terms.py")
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    args = parser.parse_args(argv)
    heading, _, pictures_used = str(__doc__).strip().split("\n\n")
    command = f"`python docs/scripts/data_terms.py {' '.join(sys.argv[1:] if argv is None else argv)}`"
    text = ["# Likelihoods and unknown parameters", "", heading, "", pictures_used, ""]
    text += [f"{command}; {sentence(provenance())}. Mean PSNR in dB."]
    for name in ("digits", "photos"):
        text += ["", f"## Noise models, {name}, {_PASSES} passes", "", *noise_table(name)]
        text += [
            "",
            "*Own*: likelihood of the noise model. *Least squares*: with the true noise variance, `noise_level=...`.",
        ]
    for noise in _BLIND_NOISES:
        text += ["", f"## Blind deblurring of photographs, noise {noise}", "", *blind_table(noise)]
    text += [
        "",
        f"* The guess is a Gaussian kernel of a standard deviation of {GUESS_STD} pixels, 17 x 17. BlindRL takes "
        f"{_RL_STEPS} steps from it.",
        f"* *Registered*: PSNR of the image of the column before, shifted by up to {SHIFTS.max():.0f} pixels, since a "
        "shift of the image and the opposite shift of the kernel cancel.",
        "* *Open boundary*, as in a camera: y is the central 64 x 64 pixels of a blurred image of 80 x 80, and images "
        "are compared on these pixels. The other blurs have a periodic boundary.",
    ]
    text += ["", "## Other parameters", "", _OTHER, "", *other_table(), ""]
    text += ["For super-resolution the image is registered, the kernel is not: its error is mostly that of a shift."]
    args.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
