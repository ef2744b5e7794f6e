"""The standard tasks as deepinv physics, for the demo, the command line and the benchmarks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from deepinv.physics import (
    Blur,
    BlurFFT,
    CompressedSensing,
    Denoising,
    Downsampling,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    Physics,
    RandomPhaseRetrieval,
    StructuredRandom,
    StructuredRandomPhaseRetrieval,
)
from deepinv.physics.functional.blur import gaussian_blur
from deepinv.physics.generator import MotionBlurGenerator
from deepinv.physics.structured_random import dst1
from torch import Tensor

from deepinv_dmilo.tools.resampling import Resampling
from deepinv_dmilo.tools.task_names import TASKS

FACTOR = 4  # of super-resolution (paper)
RESAMPLER = "area"  # that made a picture small, if not given; measured in docs/own_pictures.md
GUESS_STD = 2.0  # standard deviation, in pixels, of the Gaussian kernel that blind deblurring starts from
DENSE = 10**8  # entries of a random matrix, at most; larger images have structured random operators


class CameraResponseBlur(Physics):
    r"""
    A blur followed by a camera's response, :math:`A(x) = \max(w * x, 10^{-3})^{1 / 2.2}`: nonlinear deblurring.

    :param deepinv.physics.Physics blur: the blur.
    :param deepinv.physics.NoiseModel noise_model: the noise.
    """

    def __init__(self, blur: Physics, noise_model: torch.nn.Module) -> None:
        super().__init__(noise_model=noise_model)
        self.blur: Physics = blur

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Images in [0, 1], (B, C, H, W), to blurred ones of the same shape; the floor keeps the gradient finite."""
        return self.blur.A(x, **kwargs).clamp(min=1e-3) ** (1 / 2.2)


class LinearLight(Physics):
    r"""
    A linear operator B on light, of pictures in sRGB: :math:`A(x) = s(B(s^{-1}(x)))`, s the sRGB curve (IEC 61966-2-1).

    Lenses and shaking hands blur light; the camera's file has its sRGB values.

    :param deepinv.physics.LinearPhysics of_light: B, such as a blur.
    :param deepinv.physics.NoiseModel noise_model: the noise of the picture.
    """

    def __init__(self, of_light: LinearPhysics, noise_model: torch.nn.Module | None = None) -> None:
        super().__init__(noise_model=noise_model)
        self.of_light: LinearPhysics = of_light

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Pictures in [0, 1], (B, C, H, W), to what B makes of their light, in sRGB again."""
        light = torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04) + 0.055) / 1.055) ** 2.4)
        made = self.of_light.A(light, **kwargs)
        return torch.where(made <= 0.0031308, 12.92 * made, 1.055 * made.clamp(min=0.003) ** (1 / 2.4) - 0.055)

    @property
    def filter(self) -> Tensor:
        """The blur kernel of B, which may be unknown."""
        return self.of_light.filter  # type: ignore[return-value]

    def update_parameters(self, **kwargs: Any) -> None:
        """Those of B."""
        self.of_light.update_parameters(**kwargs)


class RealPhaseRetrieval(RandomPhaseRetrieval):
    """deepinv's random phase retrieval for real images, which it does not cast to its complex type itself."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Images in [0, 1], (B, C, H, W), to (B, m)."""
        return super().A(x.to(self.dtype), **kwargs)


class RealStructuredPhaseRetrieval(StructuredRandomPhaseRetrieval):
    """The same for deepinv's structured one."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """Images in [0, 1], (B, C, H, W), to (B, C, H', W')."""
        return super().A(x.to(self.dtype), **kwargs)


def gaussian_kernel(std: float, side: int) -> Tensor:
    """A Gaussian kernel (1, 1, side, side) of a standard deviation in pixels, cut off at the edge."""
    small = gaussian_blur(sigma=(std, std))
    half, middle = min(side, small.shape[-1]) // 2, small.shape[-1] // 2
    inner = small[..., middle - half : middle + half + 1, middle - half : middle + half + 1]
    kernel = torch.nn.functional.pad(inner, [side // 2 - half] * 4)
    return kernel / kernel.sum()


def _resized(img_size: tuple[int, int, int], ratio: float) -> tuple[int, int, int]:
    """About so many times as many pixels, in as many channels."""
    height, width = (max(1, round(ratio**0.5 * side)) for side in img_size[1:])
    return img_size[0], height, width


def check_factor(factor: float) -> None:
    """Refuse what is no factor of super-resolution."""
    if not 1 <= factor < float("inf"):
        raise ValueError(f"factor={factor:g}: type a number of at least 1, e.g. 4")


def make_physics(
    task: str,
    img_size: tuple[int, int, int],
    *,
    noise: float = 0.005,
    factor: float = FACTOR,
    downsampling: str | None = None,
    missing: float = 0.7,
    mask: Tensor | None = None,
    blur_sigma: float = 1.5,
    kernel: Tensor | None = None,
    is_photograph: bool = False,
    linear_light: bool = False,
    ratio: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Physics:
    r"""
    The physics of a task, with Gaussian noise.

    :param str task: one of ``TASKS``.
    :param tuple img_size: (C, H, W) of the images to reconstruct.
    :param float noise: standard deviation of the noise on the measurements of images in [0, 1] (paper: 0.005).
    :param float factor: super-resolution: how many times smaller height and width are (paper: 4); a whole number that
        divides them, unless ``downsampling`` says how a picture was made small.
    :param str downsampling: super-resolution: one of ``RESAMPLERS``, as programs and cameras do; None: deepinv's
        bicubic ``Downsampling``, that of papers.
    :param float missing: inpainting: fraction of the pixels that a random mask hides (paper: 0.7); box inpainting
        hides the middle half of height and width.
    :param torch.Tensor mask: inpainting: the mask itself, 1 where known, shape (1 or C, H, W).
    :param float blur_sigma: deblurring, linear and nonlinear: standard deviation of the Gaussian kernel, in pixels.
        Motion deblurring draws its kernel, of a quarter of the image's side.
    :param torch.Tensor kernel: deblurring and motion deblurring: the kernel itself, (1, 1, h, w), sums to one.
    :param bool is_photograph: a linear blur has an open boundary, as in a camera: measurements are
        smaller than the image by the kernel less one pixel.
    :param bool linear_light: deblurring and motion deblurring: the blur is of light, as a camera's, and the picture in
        sRGB.
    :param float ratio: measurements per unknown of compressed sensing (default 0.1) and phase retrieval (default 4);
        from 3 x 64 x 64 pixels on, about, their operators are structured: fast transforms with random phases.
    :param int seed: of the noise and the random operator; the global random state is never touched.
    :param str, torch.device device: where the physics lives.
    :return: the physics.
    """
    if not noise >= 0:
        raise ValueError(f"noise={noise}: type a number of at least 0, e.g. 0.005")
    noise_model = GaussianNoise(sigma=noise, rng=torch.Generator(device).manual_seed(seed))
    rng = torch.Generator(device).manual_seed(seed + 1)
    if task == "super-resolution":
        check_factor(factor)
        if downsampling is not None:
            small = (max(1, round(img_size[1] / factor)), max(1, round(img_size[2] / factor)))
            return Resampling(img_size, small, downsampling, noise_model=noise_model, device=device)
        if factor != int(factor):
            raise ValueError(f"factor={factor:g}: type a whole number, or downsampling={RESAMPLER!r} as well")
        factor = int(factor)
        if img_size[1] % factor or img_size[2] % factor:
            height, width = (side - side % factor for side in img_size[1:])
            raise ValueError(
                f"factor={factor} does not divide {img_size[1]} x {img_size[2]}; crop to {height} x {width}, or change "
                f"it, or type downsampling={RESAMPLER!r} as well"
            )
        return Downsampling(img_size, filter="bicubic", factor=factor, noise_model=noise_model, device=device)
    if task in ("inpainting", "box-inpainting"):
        if not 0 <= missing < 1:
            raise ValueError(f"missing={missing}: type a fraction from 0 to below 1, e.g. 0.7")
        known = 1 - missing if mask is None else mask.to(device)
        if task == "box-inpainting":
            known = torch.ones(img_size, device=device)
            height, width = img_size[1:]
            known[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
        return Inpainting(img_size, mask=known, pixelwise=True, rng=rng, noise_model=noise_model, device=device)
    if task in ("deblurring", "nonlinear-deblurring", "motion-deblurring"):
        if kernel is not None:
            kernel = kernel.to(device)
        elif task == "motion-deblurring":
            side = min(img_size[1:]) // 4 + 1
            kernel = MotionBlurGenerator((side, side), rng=rng, device=str(device)).step()["filter"]
        elif not 0 < blur_sigma <= min(img_size[1:]) / 8:
            raise ValueError(f"blur_sigma={blur_sigma}: type a number above 0, at most an eighth of the image's side")
        else:
            kernel = gaussian_blur(sigma=(blur_sigma, blur_sigma)).to(device)
        if is_photograph and task != "nonlinear-deblurring":
            blur = Blur(filter=kernel, padding="valid", noise_model=noise_model, device=device)
        else:
            blur = BlurFFT(img_size, filter=kernel, noise_model=noise_model, device=device)
        if linear_light and task != "nonlinear-deblurring":
            return LinearLight(blur, noise_model)
        return CameraResponseBlur(blur, noise_model) if task == "nonlinear-deblurring" else blur
    if task == "denoising":
        return Denoising(noise_model, device=device)
    pixels = img_size[0] * img_size[1] * img_size[2]
    ratio = {"compressed-sensing": 0.1}.get(task, 4.0) if ratio is None else ratio
    m = max(1, round(ratio * pixels))
    if task == "compressed-sensing":
        if m * pixels > DENSE:
            size = _resized(img_size, ratio)
            # Over height and width: by default deepinv's transform mixes the pixels of a row alone.
            mix: dict[str, Any] = dict.fromkeys(("transform_func", "transform_func_inv"), partial(dst1, dim=(-2, -1)))
            return StructuredRandom(img_size, size, n_layers=2, rng=rng, noise_model=noise_model, device=device, **mix)
        return CompressedSensing(m=m, img_size=img_size, rng=rng, noise_model=noise_model, device=device)
    if task == "phase-retrieval":
        if m * pixels > DENSE:
            with torch.random.fork_rng([device] if "cuda" in str(device) else []):
                torch.manual_seed(seed + 1)  # its phases are drawn from the global random state
                size = _resized(img_size, ratio)
                structured = RealStructuredPhaseRetrieval(img_size, size, n_layers=2, device=device)
            structured.set_noise_model(noise_model)  # its constructor would add the noise before the modulus, too
            return structured
        return RealPhaseRetrieval(m=m, img_size=img_size, rng=rng, noise_model=noise_model, device=device)
    raise ValueError(f"no task {task!r}; type one of {', '.join(TASKS)}")
