"""The standard tasks as deepinv physics, for the demo and the command line."""

from __future__ import annotations

import torch
from deepinv.physics import Blur, Denoising, Downsampling, GaussianNoise, Inpainting, Physics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

TASKS = ("super-resolution", "inpainting", "deblurring", "denoising")


def make_physics(
    task: str,
    img_size: tuple[int, int, int],
    *,
    noise: float = 0.005,
    factor: int = 4,
    missing: float = 0.7,
    mask: Tensor | None = None,
    blur_sigma: float = 1.5,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Physics:
    r"""
    The physics of a task, with Gaussian noise.

    :param str task: one of ``TASKS``.
    :param tuple img_size: (C, H, W) of the images to reconstruct.
    :param float noise: standard deviation of the noise, for images in [0, 1] (paper: 0.005).
    :param int factor: super-resolution: bicubic downsampling in height and width (paper: 4).
    :param float missing: inpainting: fraction of the pixels that a random mask hides (paper: 0.7).
    :param torch.Tensor mask: inpainting: the mask itself, 1 where known, shape (1 or C, H, W).
    :param float blur_sigma: deblurring: standard deviation of the Gaussian kernel, in pixels.
    :param int seed: of the noise and the random mask; the global random state is never touched.
    :param str, torch.device device: where the physics lives.
    :return: the physics.
    """
    if not noise >= 0:
        raise ValueError(f"noise={noise}: type a number of at least 0, e.g. 0.005")
    rng = torch.Generator(device).manual_seed(seed)
    noise_model = GaussianNoise(sigma=noise, rng=rng)
    if task == "super-resolution":
        if factor < 1:
            raise ValueError(f"factor={factor}: type a whole number of at least 1, e.g. 4")
        if img_size[1] % factor or img_size[2] % factor:
            raise ValueError(f"factor={factor} does not divide {img_size[1]} x {img_size[2]}; crop or change it")
        return Downsampling(img_size, filter="bicubic", factor=factor, noise_model=noise_model, device=device)
    if task == "inpainting":
        if not 0 <= missing < 1:
            raise ValueError(f"missing={missing}: type a fraction from 0 to below 1, e.g. 0.7")
        known = 1 - missing if mask is None else mask.to(device)
        mask_rng = torch.Generator(device).manual_seed(seed + 1)
        return Inpainting(img_size, mask=known, pixelwise=True, rng=mask_rng, noise_model=noise_model, device=device)
    if task == "deblurring":
        if not 0 < blur_sigma <= min(img_size[1:]) / 8:
            raise ValueError(f"blur_sigma={blur_sigma}: type a number above 0, at most an eighth of the image's side")
        kernel = gaussian_blur(sigma=(blur_sigma, blur_sigma)).to(device)
        return Blur(kernel, padding="circular", noise_model=noise_model, device=device)
    if task == "denoising":
        return Denoising(noise_model, device=device)
    raise ValueError(f"no task {task!r}; type one of {', '.join(TASKS)}")
