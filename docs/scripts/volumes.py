r"""
What a total variation along the axis gains for volumes, by its ``slice_difference``.

    python docs/scripts/volumes.py --passes 25

Three volumes: six slices of 32 x 32 from one digit to another, and five of 40 x 40 of a photograph: it moves by a pixel
along both sides from slice to slice, or is zoomed in by 3 %. The blur is a Gaussian of a standard deviation of one
pixel along all three axes; of the Fourier coefficients in 3D a fifth and the lowest are known, with noise 0.02.
"""

from __future__ import annotations

import argparse
from statistics import mean, stdev

import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import Blur, Denoising, GaussianNoise, LinearPhysics, Physics
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.priors.slicewise import Slicewise
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.utils.private import seeded

_DIFFERENCES = (None, 0.1)


class Fourier(LinearPhysics):
    """Fourier coefficients of volumes, (B, C, D, H, W): a part of them at random, the lowest always."""

    def __init__(self, size: tuple[int, ...], part: float = 0.2, **kwargs: object) -> None:
        super().__init__(**kwargs)
        drawn = torch.rand(size, generator=torch.Generator().manual_seed(0)) < part
        radius = sum(
            torch.fft.fftfreq(n).square().view([-1 if k == i else 1 for k in range(3)]) for i, n in enumerate(size)
        )
        self.register_buffer("mask", (drawn | (radius < 0.1**2)).float())

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.mask * torch.fft.fftn(x, dim=(-3, -2, -1), norm="ortho")

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return torch.fft.ifftn(self.mask * y, dim=(-3, -2, -1), norm="ortho").real


def morphed(one: Tensor, other: Tensor, slices: int = 6) -> Tensor:
    """A volume from one digit to another, (1, 1, H, W) each, by their signed distances."""
    side = one.shape[-1]
    large = [interpolate(x, scale_factor=4, mode="bilinear")[0, 0] > 0.4 for x in (one, other)]
    first, last = (torch.from_numpy(distance_transform_edt(x) - distance_transform_edt(~x)).float() for x in large)
    volume = torch.stack([torch.lerp(first, last, k / (slices - 1)).div(1.5).sigmoid() for k in range(slices)])
    return interpolate(volume[None], size=(side, side), mode="area")[None]


def moved(photo: Tensor, slices: int = 5, side: int = 40) -> Tensor:
    """A volume of a window that moves by a pixel, (1, 3, D, H, W)."""
    return torch.stack([photo[..., 80 + k : 80 + k + side, 80 + k : 80 + k + side] for k in range(slices)], 2)


def zoomed(photo: Tensor, slices: int = 5, side: int = 40) -> Tensor:
    """A volume of a window that shrinks by 3 % from slice to slice."""
    sizes = [round(1.5 * side * 0.97**k) for k in range(slices)]
    windows = [photo[..., 128 - n // 2 : 128 - n // 2 + n, 128 - n // 2 : 128 - n // 2 + n] for n in sizes]
    return torch.stack([interpolate(w, size=(side, side), mode="area") for w in windows], 2)


def volumes() -> dict[str, tuple[str, Tensor]]:
    """The prior and the volume, by name."""
    digits, photos = held_out_images("digits"), held_out_images("photos")
    return {
        "digits, one into another": ("digits", morphed(digits[241:242], digits[243:244])),
        "photograph, moved": ("photos", moved(photos[12:13])),
        "photograph, zoomed": ("photos", zoomed(photos[14:15])),
    }


def problems(size: tuple[int, ...]) -> dict[str, Physics]:
    """Physics of volumes of a size (D, H, W), by name."""
    line = torch.exp(-torch.arange(-2.0, 3.0).square() / 2)
    kernel = line[:, None, None] * line[:, None] * line
    kernel = (kernel / kernel.sum())[None, None]
    return {
        "denoising, 0.1": Denoising(GaussianNoise(0.1)),
        "deblurring, 0.02": Blur(kernel, padding="circular", noise_model=GaussianNoise(0.02)),
        "Fourier, 20 %, 0.02": Fourier(size, noise_model=GaussianNoise(0.02)),
    }


def difference(x: Tensor) -> float:
    """The root mean square of the differences between neighbouring slices."""
    return x.diff(dim=2).square().mean().sqrt().item()


def psnr(prior: DiffusionPrior, x: Tensor, physics: Physics, told: float | None, passes: int, seed: int) -> float:
    """The PSNR of a volume whose noise, and whose noise of the method, are those of a seed."""
    with seeded(physics, seed) as of_seed:
        y = of_seed(x)
    model = DMILO(Slicewise(prior, slice_difference=told), max_passes=passes, rng=seed)
    return PSNR()(model(y, physics), x).item()


def summary(values: list[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    return f"{mean(values):.2f}" + (f" ({stdev(values):.2f})" if len(values) > 1 else "")


def table(passes: int, seeds: int) -> list[str]:
    """A row for each volume and problem."""
    titles = ["volume", "difference", "problem", *(str(d or "independent slices") for d in _DIFFERENCES)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, (prior_name, x) in tqdm(volumes().items()):
        prior = DiffusionPrior.from_pretrained(prior_name)
        for problem, physics in problems(tuple(x.shape[2:])).items():
            found = [[psnr(prior, x, physics, d, passes, seed) for seed in range(seeds)] for d in _DIFFERENCES]
            cells = [name, f"{difference(x):.3f}", problem, *map(summary, found)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python docs/scripts/volumes.py")
    parser.add_argument("--passes", type=int, default=25, help="budget, max_passes")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the noise, from 0")
    args = parser.parse_args(argv)
    print(
        f"{sentence(provenance())}. PSNR in dB, mean and standard deviation over seeds.",
        *table(args.passes, args.seeds),
        sep="\n",
    )


if __name__ == "__main__":
    main()
