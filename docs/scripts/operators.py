r"""
Every operator of deepinv's own tests: which of them run, how closely they are fitted, and how good the images are.

    pip install '.[operators]'  # packages that some of them need
    python docs/scripts/operators.py --out docs/operators.md
    python docs/scripts/operators.py --out docs/operators.md --only MRI 3DMRI  # other rows stay

The table says which operators run, not how good the images are at a useful size: its pictures are as small as 6 x 8,
smaller than any training image. The operators are those of the installed deepinv's ``tests/test_physics.py``, at the
sizes there. Each measures one picture with Gaussian noise of a fiftieth of the measurements' root mean square. One
channel is a digit, scaled to the size, with the prior ``digits``; three are the middle of a photograph with ``photos``;
any other number (the two parts of MRI, the bands of a spectrum) are that many digits with ``Channelwise(digits)``. A
volume, or a film, is such a picture that moves by a pixel from slice to slice, with ``Slicewise(prior)``. Settings are
the defaults except ``max_passes=25``. Residual / noise is the ratio of root mean squares; 1 is a fit to the noise
level. Total variation has the best of three weights for each picture; it and ``A_dagger`` are for linear operators of
real images only. ``spatial_unwrapping_round`` maps values above 0.5 to below 0, so its gradient points away from the
truth, and no descent finds it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, Physics
from torch import Tensor
from torch.nn.functional import interpolate

from deepinv_dmilo.benchmarks.rivals import TotalVariation
from deepinv_dmilo.likelihood.measurements import (
    Measurements,
    like_parts,
    mean_energy,
    measure,
    operators,
    parts,
    working_dtype,
)
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmilo_pgd import DMILOPGD
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.priors.prior import Prior
from deepinv_dmilo.priors.slicewise import Slicewise
from deepinv_dmilo.priors.wrappers import Channelwise
from deepinv_dmilo.tools.provenance import provenance, sentence

_NOISE, _PASSES = 0.02, 25  # relative to the measurements; of the network
TV_WEIGHTS = (0.004, 0.016, 0.064)
#: operators that are left out of the table, and why
SLOW = {"scattering": "runs; an evaluation of A takes a second, a reconstruction minutes: left out here"}
#: operators with jumps, across which gradients do not see: they run, and need not end at the noise
JUMPS = ("spatial_unwrapping_round", "spatial_unwrapping_floor")


class NotRun(Exception):
    """Why an operator is left out: ``kind`` is package or no image; the message is a line for a reader."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class OperatorCase:
    """An operator, and the shape (C, H, W) of the images that it takes, or (C, D, H, W) of the volumes."""

    name: str
    physics: Physics
    shape: tuple[int, ...]

    def observe(self, x: Tensor, seed: int = 0) -> tuple[Measurements, float]:
        """Noisy measurements of images in [0, 1], (B, C, H, W), and the noise's standard deviation."""
        clean = measure(x, self.physics)
        sigma = _NOISE * mean_energy(clean).mean().sqrt().item()
        for physics in operators(self.physics):
            physics.noise_model = GaussianNoise(sigma)
        rng = torch.Generator().manual_seed(seed)
        noise = [sigma * torch.randn(t.shape, dtype=t.dtype, generator=rng) for t in parts(clean)]
        return clean + like_parts(clean, noise), sigma

    def residual(self, x: Tensor, y: Measurements) -> Tensor:
        """Root mean square of A(x) - y, (B,)."""
        return mean_energy(measure(x.to(working_dtype(y)), self.physics) - y).sqrt()


def _lists() -> dict[str, Callable[[str], tuple[Physics, object]]]:
    """How deepinv's tests build each operator that they list: its physics, and an image or the shape of one."""
    from deepinv.tests import test_physics as source  # which needs pytest

    return {
        **dict.fromkeys(source.OPERATORS, lambda name: source.find_operator(name, "cpu")[:2]),
        **dict.fromkeys(source.NONLINEAR_OPERATORS, lambda name: source.find_nonlinear_operator(name, "cpu")),
        **dict.fromkeys(
            source.PHASE_RETRIEVAL_OPERATORS, lambda name: source.find_phase_retrieval_operator(name, "cpu")
        ),
    }


def names() -> list[str]:
    """Those that the installed deepinv lists."""
    return list(_lists())


def find(name: str) -> OperatorCase:
    """
    An operator of deepinv's tests, the same at every call.

    :raises NotRun: it needs a package that is not installed, or takes no image.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            physics, image = _lists()[name](name)
        except BaseException as skipped:
            if type(skipped).__name__ != "Skipped":  # pytest's, which is no Exception
                raise
            raise NotRun("package", str(skipped)) from skipped
    if not isinstance(image, Tensor | tuple):
        raise NotRun("no image", f"it takes a {type(image).__name__} of several things, not an image")
    return OperatorCase(name, physics, tuple(image.shape[1:]) if isinstance(image, Tensor) else image)


def picture(shape: tuple[int, ...]) -> Tensor:
    """One image of a shape (C, H, W) or (C, D, H, W) that its :func:`bundled` prior knows, in [0, 1], (1, C, ...)."""
    channels, *slices, height, width = shape
    if slices:
        image = picture((channels, height, width))
        return torch.stack([image.roll(k - slices[0] // 2, -1) for k in range(slices[0])], 2)
    if channels == 3:
        top, left = 128 - height // 2, 128 - width // 2
        return held_out_images("photos")[3:4, :, top : top + height, left : left + width].contiguous()
    digits = held_out_images("digits")[:channels].transpose(0, 1)
    return interpolate(digits, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


def bundled(shape: tuple[int, ...]) -> Prior:
    """The bundled prior for images of a shape, (C, H, W) or (C, D, H, W)."""
    prior: Prior = DiffusionPrior.from_pretrained("photos" if shape[0] == 3 else "digits")
    prior = prior if shape[0] in (1, 3) else Channelwise(prior)
    return prior if len(shape) == 3 else Slicewise(prior)


def psnr(x_hat: Tensor, x: Tensor) -> float:
    """Of images in [0, 1], dB."""
    return -10 * (x_hat - x).square().mean().log10().item()


def row(name: str) -> list[str]:
    """A line of the table: name, runs, residual over noise of both methods, PSNR of all four."""
    try:
        case = find(name)
    except NotRun as reason:
        return [name, f"no: {' '.join(str(reason).split())}", *["-"] * 6]
    if name in SLOW:
        return [name, SLOW[name], *["-"] * 6]
    x = picture(case.shape)
    y, sigma = case.observe(x)
    fits, quality = [], []
    for method in (DMILO, DMILOPGD):
        x_hat = method(bundled(case.shape), max_passes=_PASSES)(y, case.physics)
        fits.append(f"{(case.residual(x_hat, y) / sigma).item():.2f}")
        quality.append(f"{psnr(x_hat, x):.1f}")
    return [name, "yes", *fits, *quality, *_rivals(case, x, y)]


def _rivals(case: OperatorCase, x: Tensor, y: Measurements) -> list[str]:
    if not isinstance(case.physics, LinearPhysics):
        return ["-", "-"]
    start = case.physics.A_dagger(y)
    start = start.real if start.is_complex() else start
    real_image = isinstance(y, Tensor) and not y.is_complex()
    inverse = f"{psnr(start.clamp(0, 1), x):.1f}" if start.shape == x.shape else "-"
    if not real_image or len(case.shape) != 3:
        return [inverse, "-"]
    return [inverse, f"{max(psnr(TotalVariation(case.shape, w)(y, case.physics), x) for w in TV_WEIGHTS):.1f}"]


def main(argv: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python docs/scripts/operators.py")
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--only", nargs="+", metavar="OPERATOR", help="measure these; other rows stay as in the file")
    args = parser.parse_args(argv)
    head = ["operator", "runs", "residual / noise, DMILO", "DMILOPGD", "PSNR (dB), DMILO", "DMILOPGD", "A_dagger", "TV"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    commands, rows = _earlier(args.out) if args.only else ([], {})
    for name in names():
        if name not in rows or name in args.only:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deepinv's own, on how its operators are built
                rows[name] = row(name)
            print(f"| {' | '.join(rows[name])} |", flush=True)
        lines.append(f"| {' | '.join(rows[name])} |")
    runs = sum(not rows[name][1].startswith("no:") for name in names())
    about = " ".join(str(__doc__).split("\n\n")[2].split()).replace("``", "`")
    command = f"`python docs/scripts/operators.py {' '.join(sys.argv[1:] if argv is None else argv)}`"
    commands.append(f"{command}; {sentence(provenance())}.")
    args.out.write_text(
        f"# Every operator of deepinv's tests\n\n{about}\n\n{runs} of {len(names())} run.\n\n"
        + "\n\n".join(commands)
        + "\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _earlier(table: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The commands of an earlier table, and its rows by operator."""
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [line for line in lines if line.startswith("`python ")], {cells[0]: cells for cells in rows}


if __name__ == "__main__":
    main()
