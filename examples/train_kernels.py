r"""
Train a diffusion prior of blur kernels
=======================================

Trains a small DDPM (:footcite:t:`ho2020denoising`) on blur kernels that it generates, up to 33 x 33, and writes a
diffusers pipeline folder that ``DiffusionPrior.from_pretrained(FOLDER)`` reads::

    python examples/train_kernels.py --state scratch/kernels --out priors/kernels --hours 2

An image of the prior is the square root of a kernel divided by its maximum, in [0, 1]: faint tails become visible, and
small errors of the network, squared, do little harm. ``to_kernels`` inverts this: it crops, squares and normalises to
the sum 1. The network takes 36 x 36; three rows and columns of zeros follow the kernel below and to the right.

Kernels are motion blur and diffraction of deepinv's generators, Gaussians, disks of defocus, straight lines, a delta,
and sums and convolutions of two of these. The centre of mass of each is within half a pixel of the middle, as a shift
of the kernel and the opposite shift of the image cancel. The kernels are generated once and kept in ``--state``, with
the state of the training. Ctrl-C saves it. The same command with ``--resume`` continues, and a larger ``--hours``
extends the training, also after its end.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.physics.generator import DiffractionBlurGenerator, GaussianBlurGenerator, MotionBlurGenerator
from diffusers import DDPMScheduler
from torch import Tensor
from tqdm import tqdm
from train_prior import HELD_OUT_KEPT, card_rows, make_unet, train, write_prior

from deepinv_dmilo import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images

SIZE, PADDED = 33, 36  # of a kernel, and of the network
OF_ONE_DRAW = 5  # kernels that share the parameters of a generator
NOISE_LEVELS = (0.05, 0.2, 0.5)  # in the prior's images, for the card
ROWS, COLUMNS = torch.meshgrid(*[torch.arange(SIZE) - SIZE // 2.0] * 2, indexing="ij")


def uniform(rng: torch.Generator, low: float, high: float, n: int = 1) -> Tensor:
    """Random numbers, (n, 1, 1)."""
    return low + (high - low) * torch.rand(n, 1, 1, generator=rng)


def one_of(rng: torch.Generator, weights: list[float]) -> int:
    """A random index."""
    return int(torch.multinomial(torch.tensor(weights).float(), 1, generator=rng))


def embedded(kernels: Tensor) -> Tensor:
    """Kernels of an odd size in the middle of zeros, (n, SIZE, SIZE)."""
    return torch.nn.functional.pad(kernels.squeeze(1), [(SIZE - kernels.shape[-1]) // 2] * 4)


def motion(n: int, rng: torch.Generator) -> Tensor:
    """Trajectories, smooth to jagged, in windows of 7 to 33 pixels; with few points they are dotted."""
    side = 2 * int(uniform(rng, 3, SIZE // 2 + 1)) + 1
    points = (1000, 4000)[one_of(rng, [1, 1])]
    generator = MotionBlurGenerator((side, side), rng=rng, n_steps=points)
    return embedded(generator.step(n, sigma=uniform(rng, 0.1, 0.9).item(), l=uniform(rng, 0.1, 0.8).item())["filter"])


def diffraction(n: int, rng: torch.Generator) -> Tensor:
    """Aberrated apertures; the radius of the Airy disk is 2.4 to 15 pixels."""
    cutoff = 0.04 * 6.25 ** uniform(rng, 0, 1, n)[:, 0]
    generator = DiffractionBlurGenerator((SIZE, SIZE), rng=rng, pupil_size=(128, 128))
    return embedded(generator.step(n, fc=cutoff, max_zernike_amplitude=uniform(rng, 0, 0.5).item())["filter"])


def gaussian(n: int, rng: torch.Generator) -> Tensor:
    """Isotropic or not, of standard deviations 0.3 to 5; half of the draws at most 2."""
    widest, isotropic = (2.0, 5.0)[one_of(rng, [1, 1])], bool(one_of(rng, [2, 1]))
    return embedded(GaussianBlurGenerator((SIZE, SIZE), 0.3, widest, isotropic, rng=rng).step(n)["filter"])


def disk(n: int, rng: torch.Generator) -> Tensor:
    """Defocus, of radius 0.5 to 16."""
    return (uniform(rng, 0.5, 16, n) + 0.5 - (ROWS**2 + COLUMNS**2).sqrt()).clamp(0, 1)


def line(n: int, rng: torch.Generator) -> Tensor:
    """Straight motion at any angle, of length 1 to 33."""
    angle, half = uniform(rng, 0, torch.pi, n), uniform(rng, 0.5, SIZE / 2, n)
    along, across = ROWS * angle.sin() + COLUMNS * angle.cos(), ROWS * angle.cos() - COLUMNS * angle.sin()
    return (half + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(min=0)


def delta(n: int, rng: torch.Generator) -> Tensor:
    """No blur."""
    return ((ROWS == 0) & (COLUMNS == 0)).float().repeat(n, 1, 1)


def pair(n: int, rng: torch.Generator) -> Tensor:
    """The convolution, or a weighted sum, of two kinds."""
    first, second = (normalised(list(SHARES)[one_of(rng, SIMPLE)](n, rng)) for _ in range(2))
    if one_of(rng, [1, 1]):
        weight = uniform(rng, 0.1, 0.9, n)
        return weight * first + (1 - weight) * second
    spectrum = torch.fft.rfft2(first, s=[2 * SIZE] * 2) * torch.fft.rfft2(second, s=[2 * SIZE] * 2)
    middle = slice(SIZE // 2, SIZE // 2 + SIZE)
    product = torch.fft.irfft2(spectrum, s=[2 * SIZE] * 2)[:, middle, middle]
    return product * (product > 1e-6 * product.amax((1, 2), keepdim=True))  # zeros stay zeros


SHARES: dict[Callable[[int, torch.Generator], Tensor], float] = {
    motion: 0.35, diffraction: 0.12, gaussian: 0.14, disk: 0.06, line: 0.1, delta: 0.01, pair: 0.22
}  # fmt: skip
SIMPLE = [share for kind, share in SHARES.items() if kind is not pair]


def normalised(kernels: Tensor) -> Tensor:
    """With the sum 1."""
    return kernels / kernels.sum((-2, -1), keepdim=True).clamp(min=1e-12)


def off_centre(kernels: Tensor) -> Tensor:
    """The centre of mass, seen from the middle, (n, 2)."""
    return torch.stack([(kernels * axis).sum((1, 2)) for axis in (ROWS, COLUMNS)], 1)


def centred(kernels: Tensor) -> Tensor:
    """Kernels shifted by whole pixels; those that this does not centre, as they leave the window, are left out."""
    margin = SIZE // 2
    wide = torch.nn.functional.pad(kernels, [margin] * 4)
    shifts = [[-int(s) for s in shift] for shift in off_centre(kernels).round().clamp(-margin, margin)]
    moved = torch.stack([k.roll(shift, (0, 1)) for k, shift in zip(wide, shifts, strict=True)])
    moved = moved[:, margin:-margin, margin:-margin]
    whole = moved.sum((1, 2)) > 0.99
    moved = normalised(moved)
    return moved[(off_centre(moved).abs().amax(1) <= 0.5) & whole]


def generate(n: int, seed: int) -> Tensor:
    """Kernels of every kind, (n, 1, SIZE, SIZE), of sum 1."""
    rng = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    with tqdm(total=n, desc="kernels") as bar:
        while bar.n < n:
            kind = list(SHARES)[one_of(rng, list(SHARES.values()))]
            found.append(centred(normalised(kind(min(OF_ONE_DRAW, n - bar.n), rng))))
            bar.update(len(found[-1]))
    return torch.cat(found)[:, None]


def to_images(kernels: Tensor) -> Tensor:
    """Images of the prior, (n, 1, PADDED, PADDED), from kernels."""
    relative = kernels / kernels.amax((-2, -1), keepdim=True)
    return torch.nn.functional.pad(relative.sqrt(), [0, PADDED - SIZE] * 2)


def to_kernels(images: Tensor) -> Tensor:
    """Kernels, (n, 1, SIZE, SIZE), of sum 1, from images of the prior; what is outside [0, 1] is clipped."""
    return normalised(images[..., :SIZE, :SIZE].clamp(0, 1) ** 2)


def kept_images(file: Path, n: int, seed: int) -> list[Tensor]:
    """Images of generated kernels, each (1, PADDED, PADDED) uint8, from a file that is written if it is not there."""
    if not file.exists():
        partial = file.with_suffix(".partial.npy")
        np.save(partial, (to_images(generate(n, seed)) * 255).round().byte().numpy())
        partial.replace(file)
    return list(torch.from_numpy(np.load(file)))


@torch.no_grad()
def denoising_rows(folder: Path) -> str:
    """Rows of the card: errors of kernels that are denoised by the prior, and of those that are clipped."""
    x = held_out_images(folder)
    denoiser, rng = DiffusionPrior.from_pretrained(folder).denoiser(), torch.Generator().manual_seed(0)

    def error(images: Tensor) -> float:
        """Relative to the kernel, in the 2-norm, the mean over kernels."""
        kernels = to_kernels(x).flatten(1)
        return ((to_kernels(images).flatten(1) - kernels).norm(dim=1) / kernels.norm(dim=1)).mean().item()

    rows = ""
    for sigma in NOISE_LEVELS:
        noisy = x + sigma * torch.randn(x.shape, generator=rng)
        denoised = torch.cat([denoiser(part, sigma) for part in noisy.split(50)])
        rows += f"| error at noise {sigma} | {error(denoised):.3f}; clipped and normalised {error(noisy):.3f} |\n"
    return rows


def write_kernel_card(folder: Path, args: argparse.Namespace, facts: dict) -> None:
    """README.md of the prior."""
    options = f"--out OUT --state STATE --hours {args.hours:g} --channels {' '.join(map(str, args.channels))} --kernels {args.kernels}"
    text = f"""# Diffusion prior `{folder.name}`

![samples](samples.png)

| | |
|---|---|
| data | blur kernels up to {SIZE} x {SIZE}, generated: motion, diffraction, Gaussians, disks, lines, a delta, pairs; the square root of a kernel over its maximum, then zeros to {PADDED} x {PADDED}; [0, 1] scaled to [-1, 1] |
| kernel of an image | `k = image[..., :{SIZE}, :{SIZE}].clamp(0, 1) ** 2; k / k.sum((-2, -1), keepdim=True)` |
| licence | no data of others; weights: BSD-3-Clause |
| training / held-out kernels | {facts["train"]} / {facts["held_out"]}, of other seeds (held-out ones are in `held_out.npz`) |
{card_rows(args, facts)}{denoising_rows(folder)}
Made by `python examples/train_kernels.py {options}`.
The loss is the mean squared error of the predicted noise over all training steps, on the rounded weights, on fixed
noise. An error is |k' - k| / |k| of a held-out kernel k, the mean; the noise is in the image, whose range is [0, 1]. The
picture shows 50-step DDIM samples, as images of the prior.
"""
    (folder / "README.md").write_text(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a diffusion prior of blur kernels.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the prior's name")
    parser.add_argument("--state", type=Path, required=True, help="folder of the kernels and of the training's state")
    parser.add_argument("--hours", type=float, default=2, help="wall time to train, over all runs")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --state")
    parser.add_argument("--kernels", type=int, default=100_000, help="to train on")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64], help="multiples of 8, one a level")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(size=[PADDED], scales=False, workers=0, low_noise=1.0, bfloat16=False)  # of train_prior.py
    args = parser.parse_args()
    if args.resume and not (args.state / "training_state.pt").exists():
        parser.error(f"--resume: {args.state} has no training_state.pt; start without --resume")
    if args.resume:
        state = torch.load(args.state / "training_state.pt", weights_only=True, map_location="cpu")
        kernels, seed = state.get("images", args.kernels), state.get("seed", args.seed)  # older states have neither
        if (kernels, seed) != (args.kernels, args.seed):
            parser.error(f"--resume: {args.state} began with other kernels; type --kernels {kernels} --seed {seed}")
    return args


def main() -> None:
    args = parse_arguments()
    args.state.mkdir(parents=True, exist_ok=True)
    training = kept_images(args.state / f"kernels_{args.kernels}_{args.seed}.npy", args.kernels, args.seed)
    held_out = kept_images(args.state / f"held_out_{args.seed}.npy", HELD_OUT_KEPT, args.seed + 1_000_000)
    torch.manual_seed(args.seed)  # the initial weights
    unet: Any = make_unet(tuple(args.channels), PADDED, 1, attention=True)
    unet.to(args.device, memory_format=torch.channels_last)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    facts = train(args, training, held_out, unet, scheduler, args.state / "training_state.pt")
    write_prior(args.out, args, unet, scheduler, training, held_out, facts, write_kernel_card)


if __name__ == "__main__":
    main()
