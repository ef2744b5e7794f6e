"""Pictures blurred by generated kernels, as cameras and benchmarks blur them, for ``train_kernel_guess.py``."""

import io
from typing import NamedTuple

import torch
from deepinv.physics.generator import MotionBlurGenerator
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF
from train_kernels import to_kernels
from train_prior import random_crops

from deepinv_dmilo.priors.kernel_guess import KERNEL_SIZE
from deepinv_dmilo.utils.spectra import transfer_function
from deepinv_dmilo.utils.symmetries import WAYS, turned

PICTURE, CROP = 128, 160  # of a measurement, and of what is blurred
MARGIN = (CROP - PICTURE) // 2


class Pairs(NamedTuple):
    """
    Blurred and sharp pictures, (n, 1, PICTURE, PICTURE), and their kernels, (n, 1, 33, 33).

    With the standard deviation of the noise, and whether the blur has a periodic boundary, (n,) each.
    """

    pictures: Tensor
    sharp: Tensor
    kernels: Tensor
    noise: Tensor
    is_round: Tensor


def turned_at_random(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each of the images (n, C, s, s) in one of the eight ways that a square is turned and mirrored."""
    ways = torch.randint(WAYS, (len(images),), generator=rng).tolist()
    return torch.stack([turned(image, way) for image, way in zip(images, ways, strict=True)])


def grey(crops: Tensor, rng: torch.Generator) -> Tensor:
    """Grey of random weights, (n, 1, s, s) in [0, 1]."""
    weights = -torch.rand(len(crops), 3, 1, 1, generator=rng).clamp(min=1e-6).log()
    return (crops.float() / 255 * weights / weights.sum(1, keepdim=True)).sum(1, keepdim=True)


def cut(images: Tensor) -> Tensor:
    """The middle PICTURE x PICTURE pixels."""
    return images[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def blurred(images: Tensor, kernels: Tensor, is_round: Tensor) -> Tensor:
    """The middle of blurred images: cropped before the blur, which then has a periodic boundary, or after it."""

    def convolved(x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer_function(kernels, size), s=size)

    return torch.where(is_round[:, None, None, None], convolved(cut(images)), cut(convolved(images)))


def as_jpeg(image: Tensor, quality: int) -> Tensor:
    """An image (1, s, s) after JPEG compression."""
    file = io.BytesIO()
    TF.to_pil_image(image.clamp(0, 1)).save(file, "JPEG", quality=quality)
    return TF.to_tensor(Image.open(file))


def measured(images: Tensor, kernels: Tensor, rng: torch.Generator) -> Pairs:
    """Blur images (n, 1, CROP, CROP) as cameras and benchmarks do."""
    n = len(images)

    def some(share: float) -> Tensor:
        return torch.rand(n, generator=rng) < share

    is_round, of_light, clipped, jpeg = (some(share) for share in (0.5, 0.25, 0.5, 0.25))
    gamma = torch.where(of_light, 2.2, 1.0)[:, None, None, None]
    pictures = blurred(images**gamma, kernels, is_round).clamp(min=1e-4) ** (1 / gamma)
    noise = torch.where(some(0.1), 0, 0.002 * 50 ** torch.rand(n, generator=rng))
    pictures = pictures + noise[:, None, None, None] * torch.randn(pictures.shape, generator=rng)
    pictures = torch.where(clipped[:, None, None, None], pictures.clamp(0, 1), pictures)
    for k in jpeg.nonzero().flatten().tolist():
        pictures[k] = as_jpeg(pictures[k], int(torch.randint(75, 99, (), generator=rng)))
    return Pairs(pictures, cut(images), kernels, noise, is_round)


def drawn(pictures: list[Tensor], kernels: Tensor, n: int, rng: torch.Generator) -> Pairs:
    """Random pairs; kernels are images of ``train_kernels.py``, uint8."""
    crops = turned_at_random(grey(random_crops(pictures, CROP, n, rng), rng), rng)
    chosen = kernels[torch.randint(len(kernels), (n,), generator=rng)]
    return measured(crops, turned_at_random(to_kernels(chosen / 255), rng), rng)


def motion_pairs(pictures: list[Tensor], n: int) -> Pairs:
    """As the task motion-deblurring with pictures of 128 x 128, at noise 0.005."""
    rng = torch.Generator().manual_seed(1)
    crops = grey(random_crops(pictures, CROP, n, rng), rng)
    generator = MotionBlurGenerator((KERNEL_SIZE, KERNEL_SIZE), rng=rng)
    kernels = torch.cat([generator.step(1)["filter"] for _ in range(n)])
    is_round = torch.ones(n, dtype=torch.bool)
    clean = blurred(crops, kernels, is_round)
    y = clean + 0.005 * torch.randn(clean.shape, generator=rng)
    return Pairs(y, cut(crops), kernels, torch.full((n,), 0.005), is_round)
