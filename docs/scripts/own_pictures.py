"""
What a wrong forward operator costs on pictures of programs and cameras: docs/own_pictures.md.

Middle crops of 72 x 72 pixels of the held-out photographs, stored in 8 bits, and `DMILO` at 25 passes, as
`deepinv-dmilo reconstruct` calls it. Mean PSNR in dB; of blurs within what the camera saw.
"""

from __future__ import annotations

import argparse
import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import deepinv as dinv
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import center_crop, to_tensor

from deepinv_dmilo import DMILO, DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.pictures import as_png
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.tools.reconstruct_command import SMALL_NOISE
from deepinv_dmilo.tools.resampling import Resampling
from deepinv_dmilo.tools.tasks import RESAMPLER, make_physics

SIDE, FACTORS = 72, (2, 3, 4)
CLIPPED = 0.05  # of the measurements of a picture that is too bright
FILTERS = Image.Resampling
#: how pictures are made small, and which of our resamplers that is
SMALL: dict[str, tuple[Callable[[Image.Image, int], Image.Image], str | None]] = {
    "Pillow, box; OpenCV, area": (lambda picture, side: picture.resize((side, side), FILTERS.BOX), "area"),
    "Pillow, bilinear": (lambda picture, side: picture.resize((side, side), FILTERS.BILINEAR), "bilinear"),
    "Pillow, Hamming": (lambda picture, side: picture.resize((side, side), FILTERS.HAMMING), None),
    "Pillow, bicubic": (lambda picture, side: picture.resize((side, side), FILTERS.BICUBIC), "bicubic"),
    "Pillow, Lanczos": (lambda picture, side: picture.resize((side, side), FILTERS.LANCZOS), "lanczos"),
    "the same, JPEG 90": (lambda picture, side: jpeg(picture.resize((side, side), FILTERS.LANCZOS), 90), "lanczos"),
    "the same, JPEG 75": (lambda picture, side: jpeg(picture.resize((side, side), FILTERS.LANCZOS), 75), "lanczos"),
    "OpenCV, linear (its default)": (
        lambda picture, side: without_antialiasing(picture, side, "bilinear"),
        "opencv-linear",
    ),
    "OpenCV, cubic": (lambda picture, side: without_antialiasing(picture, side, "bicubic"), "opencv-cubic"),
    "every n-th pixel; OpenCV, nearest": (
        lambda picture, side: without_antialiasing(picture, side, "nearest"),
        "opencv-nearest",
    ),
    "Pillow, nearest": (lambda picture, side: picture.resize((side, side), FILTERS.NEAREST), "nearest"),
}
PSNR = dinv.loss.metric.PSNR()


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """A picture as JPEG keeps it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def without_antialiasing(picture: Image.Image, side: int, mode: str) -> Image.Image:
    """A picture made smaller by torch, which is OpenCV's way to 4e-6 (checked with OpenCV 4)."""
    return as_png(interpolate(to_tensor(picture)[None], size=(side, side), mode=mode)[0])


def stacked(pictures: list[Image.Image]) -> Tensor:
    """Pictures as a batch in [0, 1]."""
    return torch.stack([to_tensor(picture) for picture in pictures])


def psnr(x_hat: Tensor, x: Tensor) -> float:
    """The mean over the pictures, within the middle that both have."""
    size = [min(a, b) for a, b in zip(x_hat.shape[2:], x.shape[2:], strict=True)]
    return PSNR(center_crop(x_hat.clamp(0, 1), size), center_crop(x, size)).mean().item()


def enlargement_table(prior: DiffusionPrior, x: Tensor) -> list[str]:
    """Bicubic enlargement, the command by default, and with the resampler given."""
    columns = [f"{factor}x, {what}" for factor in FACTORS for what in ("bicubic", "default", "known")]
    lines = [f"| reduced by | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, (shrink, told) in SMALL.items():
        row = [name]
        for factor in FACTORS:
            small = [shrink(as_png(one), SIDE // factor) for one in x]
            bicubic = stacked([one.resize((SIDE, SIDE), FILTERS.BICUBIC) for one in small])
            row.append(f"{psnr(bicubic, x):.2f}")
            for resampler in (RESAMPLER, told):
                if resampler is None:
                    row.append("")
                    continue
                physics = Resampling((3, SIDE, SIDE), small[0].size[::-1], resampler)
                model = DMILO(prior, max_passes=25, noise_level=SMALL_NOISE)
                row.append(f"{psnr(model(stacked(small), physics), x):.2f}")
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return lines


def blur_table(prior: DiffusionPrior, x: Tensor) -> list[str]:
    """Deblurring of what a camera stores, where its noise is estimated."""
    lines = ["| stored as | Gaussian blur, blurred | DMILO | motion blur, blurred | DMILO |", "|---" * 5 + "|"]
    rows: dict[str, list[str]] = {}
    for task in ("deblurring", "motion-deblurring"):
        srgb, light = (
            make_physics(task, tuple(x.shape[1:]), is_photograph=True, linear_light=linear)  # type: ignore[arg-type]
            for linear in (False, True)
        )
        y, y_light = srgb(x), light(x)
        bright = x / srgb.A(x).flatten(1).quantile(1 - CLIPPED, dim=1).view(-1, 1, 1, 1)
        cases = {
            "8 bits": (stored(y), x, srgb),
            "JPEG 90": (stored(y, 90), x, srgb),
            "JPEG 75": (stored(y, 75), x, srgb),
            "8 bits, blurred in linear light": (stored(y_light), x, srgb),
            "the same, `--linear-light`": (stored(y_light), x, light),
            f"8 bits, the brightest {CLIPPED:.0%} clipped": (stored(srgb(bright)), bright.clamp(0, 1), srgb),
        }
        for name, (picture, truth, physics) in cases.items():
            told = copy.copy(physics)
            told.noise_model = dinv.physics.ZeroNoise()
            ours = DMILO(prior, max_passes=25)(picture, told)
            seen = center_crop(truth, list(picture.shape[2:]))
            rows.setdefault(name, []).extend([f"{psnr(picture, seen):.2f}", f"{psnr(ours, seen):.2f}"])
            print(task, name, rows[name][-2:], flush=True)
    return lines + [f"| {name} | {' | '.join(row)} |" for name, row in rows.items()]


def stored(y: Tensor, quality: int | None = None) -> Tensor:
    """Pictures as a file has them: PNG of 8 bits, or JPEG."""
    pictures = [as_png(one) for one in y]
    return stacked(pictures if quality is None else [jpeg(picture, quality) for picture in pictures])


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    parser.add_argument("--limit", type=int, default=12, help="pictures")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    prior = DiffusionPrior.from_pretrained("photos")
    x = stored(center_crop(held_out_images("photos")[: args.limit], [SIDE, SIDE]))
    blurs, enlargements = blur_table(prior, x), enlargement_table(prior, x)
    origin = f"`python docs/scripts/own_pictures.py --out docs/own_pictures.md`; {sentence(provenance())}."
    args.out.write_text(page(origin, len(x), enlargements, blurs))


def page(origin: str, pictures: int, enlargements: list[str], blurs: list[str]) -> str:
    """The tables with what they say."""
    head = f"{origin} Middle crops of {SIDE} x {SIDE} of the first {pictures} held-out photographs."
    return "\n".join([*TITLE, "", head, *SMALL_TEXT, "", *enlargements, *BLUR_TEXT, "", *blurs, ""])


TITLE = """# Pictures of programs and cameras

In a simulation the forward operator is known. A file of yours was made by a program or a camera, so the operator has to
be guessed. This page has the cost of a wrong guess, and the options to type. Mean PSNR in dB, 25 passes, everything
stored in 8 bits, as `deepinv-dmilo reconstruct` does it.
""".splitlines()
SMALL_TEXT = f"""
## Reduced pictures

* **With antialiasing** (Pillow, browsers, cameras, OpenCV's area) the resamplers differ little: not to know which was
  used costs 0 to 0.8 dB.
* **Without antialiasing** (OpenCV's default, every n-th pixel) our default is mostly below bicubic enlargement: give
  `--downsampling`.

*Bicubic* is Pillow's enlargement of the small picture. *Default* is `--task super-resolution --factor 2` (3, 4): pixels
centred, up to the edges, the mean over each new pixel (`--downsampling area`), noise of {SMALL_NOISE}.
*Known* is the same with the `--downsampling` that made the picture.

In Python: `Resampling((3, H, W), (h, w), "area")` of `deepinv_dmilo.tools.resampling`, and `DMILO(prior,
noise_level={SMALL_NOISE})`. deepinv's `DownsamplingMatlab` equals "bicubic" for whole factors, except at the edges.
deepinv's `Downsampling`, the operator of papers, is not what programs do: it samples off the middle of each block, and
is periodic.
""".splitlines()
BLUR_TEXT = """
## Blurred pictures

* **Linear light.** Lenses and shaking hands blur light, and the file has its sRGB values. With a measured kernel, or
  `--blind`, type `--linear-light` for a picture of a camera. Leave it out for one that a program blurred.
* **JPEG** acts as noise, which is estimated.
* **Clipped highlights** are lower bounds of the light. Expose less, or crop them away.

A Gaussian blur of 1.5 pixels and a motion blur of 19 x 19, both known, open boundary, noise of 0.005, estimated.
*Blurred* is the file itself; both are compared with the middle of the picture, the field of view of the camera.
""".splitlines()


if __name__ == "__main__":
    main()
