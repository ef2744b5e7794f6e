"""A network that reads the blur kernel from a blurred picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from deepinv_dmilo.priors.unet import UNet
from deepinv_dmilo.utils.spectra import laplacian, neighbourhood, taper, transfer_function
from deepinv_dmilo.utils.symmetries import WAYS, turned, turned_back

KERNEL_SIZE, CONTEXT = 33, 40  # of a kernel; of what the second network sees, with the kernel's middle at CONTEXT // 2
BEFORE = CONTEXT // 2 - KERNEL_SIZE // 2  # rows and columns of the context before the kernel's first
SMALLEST_TRANSFORM = 64  # height and width of a Fourier transform, at least: kernels must not wrap around


def standardised(images: Tensor, like: Tensor | None = None) -> Tensor:
    """Images less the mean, over the standard deviation, of each of ``like``; None: of their own."""
    like = images if like is None else like
    return (images - like.mean((2, 3), keepdim=True)) / like.std((2, 3), correction=0, keepdim=True).clamp(min=1e-3)


class KernelGuess(nn.Module):
    r"""
    Guesses the kernel of a blur, uniform over the picture, from the blurred picture.

    After :footcite:t:`schuler2016learning`: a network finds maps of what is sharp, :math:`s_i`, and of what the blur
    made of it, :math:`b_i`; their kernel has a closed form in the Fourier domain,
    :math:`k = \sum_i \bar s_i b_i / (\sum_i |s_i|^2 + \beta)`, and a second network cleans it. With posterior means
    :math:`s_i` of filtered sharp pictures, and :math:`b_i` the filtered y, the sums' expectations are in the ratio of
    the true kernel. Each further stage gets the picture deconvolved with the kernel of the stage before.

    :param list channels: of the network of the picture, one a level, the first at half its size; multiples of 8.
    :param list kernel_channels: of the network of the kernel, likewise, at most four.
    :param int groups: kernels in closed form, each with a beta of its own.
    :param int maps: pairs s, b of each.
    :param int stages: of estimation, with the same weights.
    """

    def __init__(
        self, *, channels: list[int], kernel_channels: list[int], groups: int = 4, maps: int = 4, stages: int = 2
    ) -> None:
        super().__init__()
        sizes = {"groups": groups, "maps": maps, "stages": stages}
        self.config = {"channels": channels, "kernel_channels": kernel_channels, **sizes}
        self.groups, self.maps, self.stages, self.multiple = groups, maps, stages, 2 ** len(channels)
        self.features = UNet(4 * 4, 4 * 2 * groups * maps, channels)  # of the picture and three deconvolved ones
        self.linear = nn.Conv2d(1, groups * maps, 7, padding=3, bias=False)
        with torch.no_grad():  # differences: of a natural picture they are about white
            self.linear.weight -= self.linear.weight.mean((2, 3), keepdim=True)
        self.refine = UNet(groups + 2, 1, kernel_channels)
        self.log_beta = nn.Parameter(torch.linspace(-4.6, 0, groups))  # relative to the mean energy of the maps
        self.log_penalty = nn.Parameter(torch.tensor([0.003, 0.03, 0.3]).log())  # of the deconvolved pictures

    def forward(self, y: Tensor) -> Tensor:
        """Kernels, (B, 1, 33, 33), of sum 1, of pictures in [0, 1], (B, 1 or 3, H, W)."""
        return self.all_stages(y)[-1][0]

    def guesses(self, y: Tensor, num_guesses: int = WAYS) -> Tensor:
        """Kernels, (B, num_guesses, 1, 33, 33), of the picture as it is, then turned and mirrored."""
        if not 1 <= num_guesses <= WAYS:
            raise ValueError(f"num_guesses={num_guesses}: type a number from 1 to {WAYS}")
        return torch.stack([turned_back(self(turned(y, way)), way) for way in range(num_guesses)], 1)

    def all_stages(self, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The kernel and the sharp maps of each stage."""
        if y.is_complex():
            raise TypeError("y is complex; the kernel is read from a real picture, such as y.abs()")
        if y.ndim != 4 or y.shape[1] not in (1, 3):
            raise ValueError(f"y has the shape {tuple(y.shape)}; type y of the shape (B, 1 or 3, H, W)")
        picture = standardised(y.to(self.log_beta.dtype).mean(1, keepdim=True))
        kernel, found = picture.new_zeros(len(y), 1, KERNEL_SIZE, KERNEL_SIZE), list[tuple[Tensor, Tensor]]()
        kernel[..., KERNEL_SIZE // 2, KERNEL_SIZE // 2] = 1
        for _ in range(self.stages):
            found.append(self._stage(picture, kernel.detach()))
            kernel = found[-1][0]
        return found

    def _stage(self, picture: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """A better kernel and the sharp maps, of standardised pictures and a kernel."""
        height, width = picture.shape[-2:]
        size = (max(height, SMALLEST_TRANSFORM), max(width, SMALLEST_TRANSFORM))
        window, roughness = taper(height, picture)[:, None] * taper(width, picture), laplacian(size, picture)
        spectrum, transfer = torch.fft.rfft2(picture * window, s=size), transfer_function(kernel, size)
        penalty = self.log_penalty.exp()[:, None, None] * (roughness + 0.01)
        deconvolved = torch.fft.irfft2(transfer.conj() * spectrum / (transfer.abs() ** 2 + penalty), s=size)
        sharp, blurred = self._maps(torch.cat([picture, deconvolved[..., :height, :width]], 1))
        estimates = self._closed_form(sharp * window, blurred * window, size)
        correlation = neighbourhood(
            torch.fft.irfft2(roughness * spectrum.abs() ** 2, s=size), CONTEXT
        )  # of the picture with itself
        before = F.pad(kernel, [BEFORE, CONTEXT - KERNEL_SIZE - BEFORE] * 2)
        seen = torch.cat([estimates, correlation, before], 1)
        logits = 8 * self.refine(seen / seen.abs().amax((2, 3), keepdim=True).clamp(min=1e-12))
        logits = logits[..., BEFORE : BEFORE + KERNEL_SIZE, BEFORE : BEFORE + KERNEL_SIZE]
        return logits.flatten(1).softmax(1).view(kernel.shape), sharp

    def _maps(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The maps s and b, (B, groups * maps, H, W) each."""
        height, width = pictures.shape[-2:]
        padded = F.pad(pictures, [0, -width % self.multiple, 0, -height % self.multiple], mode="replicate")
        both = F.pixel_shuffle(self.features(F.pixel_unshuffle(padded, 2)), 2)[..., :height, :width]
        sharp, blurred = both.chunk(2, 1)
        linear = self.linear(pictures[:, :1])
        return sharp + linear, blurred + linear

    def _closed_form(self, sharp: Tensor, blurred: Tensor, size: tuple[int, int]) -> Tensor:
        """The least-squares kernel of each group of maps, (B, groups, CONTEXT, CONTEXT)."""
        s, b = (torch.fft.rfft2(m, s=size).unflatten(1, (self.groups, self.maps)) for m in (sharp, blurred))
        energy = s.abs().square().sum(2)
        beta = self.log_beta.exp()[:, None, None] * energy.mean((2, 3), keepdim=True) + 1e-12
        return neighbourhood(torch.fft.irfft2((s.conj() * b).sum(2) / (energy + beta), s=size), CONTEXT)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, in half precision."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "config.json").write_text(json.dumps(self.config) + "\n")
        weights = {name: w.half().contiguous() for name, w in self.state_dict().items()}
        save_file(weights, Path(folder, "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> KernelGuess:
        """The network that ``save_pretrained`` wrote."""
        file = Path(folder).expanduser() / "config.json"
        if not file.exists():
            raise FileNotFoundError(
                f"{file} does not exist; type KernelGuess.from_pretrained(FOLDER), FOLDER the --out of "
                "examples/train_kernel_guess.py"
            )
        network = cls(**json.loads(file.read_text()))
        network.load_state_dict(load_file(file.with_name("model.safetensors")))
        return network.eval()
