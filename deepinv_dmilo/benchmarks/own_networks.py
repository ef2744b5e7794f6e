"""The tools of deepinv that come with a network of their own, which is not the prior of the report."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from deepinv.models import RAM, DRUNet, KernelIdentificationNetwork, MPRNet
from deepinv.optim import DPIR, L2, PGD, PnP
from deepinv.physics import GaussianNoise, LinearPhysics, SpaceVaryingBlur
from torch import Tensor, nn

from deepinv_dmilo.benchmarks.studies import Case
from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.likelihood.measurements import Measurements
from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.tools.errors import InputError

#: what a failed download, or a file of something else, comes with
UNREACHABLE = (
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    EOFError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Network:
    """A network of deepinv: how it is made for so many channels, with deepinv's weights or none, and what it is."""

    make: Callable[[int, bool], nn.Module]
    about: str
    strict: bool = True  # deepinv loads the weights of RAM without


#: by the name that ``--weights`` takes
OWN_NETWORKS = {
    "RAM": Network(
        lambda channels, trained: RAM(pretrained=trained),
        "36 million parameters, trained by its authors on blur, missing pixels, noise, tomography, MRI and more",
        strict=False,
    ),
    "DRUNet": Network(
        lambda channels, trained: DRUNet(channels, channels, pretrained="download" if trained else None),
        "33 million parameters, trained by its authors to remove white Gaussian noise from photographs",
    ),
    "KernelIdentificationNetwork": Network(
        lambda channels, trained: KernelIdentificationNetwork(pretrained="download" if trained else None),
        "80 million parameters, trained by its authors to find the blur kernels of photographs",
    ),
    "MPRNet": Network(
        lambda channels, trained: MPRNet(channels, channels, n_feat=96, pretrained="deblurring" if trained else None),
        "20 million parameters, trained by its authors to deblur photographs of moving scenes",
    ),
}


class WeightsError(InputError):
    """The weights of a network cannot be had."""


@lru_cache(maxsize=4)
def open_network(name: str, channels: int, file: Path | None) -> nn.Module:
    """
    A trained network for images of so many channels, with the weights of a file or those that deepinv downloads.

    :raises WeightsError: there are none; one line, with what to type.
    """
    network = OWN_NETWORKS[name]
    try:
        made = network.make(channels, file is None)
        if file is not None:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            weights = weights.get("state_dict", weights)  # in the file of MPRNet
            missing = made.load_state_dict(weights, strict=network.strict).missing_keys
            if 2 * len(missing) > len(made.state_dict()):
                raise ValueError(f"{file} has no {missing[0]}")
    except UNREACHABLE as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(f"{name}: weights not reachable: {reason}; type --weights {name}=FILE") from error
    return made.eval().requires_grad_(False)


def weight_files(given: Iterable[str]) -> dict[str, Path]:
    """The files of ``NAME=FILE``, by the name of the network."""
    files = {}
    for text in given:
        name, _, file = text.partition("=")
        if name not in OWN_NETWORKS or not file:
            raise InputError(f"--weights {text}: type NAME=FILE with a name of {', '.join(OWN_NETWORKS)}")
        if not Path(file).is_file():
            raise InputError(f"--weights {text}: no such file")
        files[name] = Path(file)
    return files


def unreachable(names: Iterable[str], channels: int, files: Mapping[str, Path]) -> dict[str, str]:
    """Of these networks those whose weights cannot be had, and why."""
    reasons = {}
    for name in dict.fromkeys(names):
        try:
            open_network(name, channels, files.get(name))
        except WeightsError as error:
            reasons[name] = str(error)
    return reasons


def ram(case: Case) -> nn.Module:
    """deepinv's RAM, fed with the physics of the task as it is: it reads the noise, and pads to multiples of 16."""
    return _network(case, "RAM")


def dpir(case: Case) -> nn.Module:
    """deepinv's DPIR, eight calls of DRUNet, given the noise level."""
    model = DPIR(case.noise, _network(case, "DRUNet"), case.prior.device)
    model.denoiser = model.prior[0].denoiser  # deepinv keeps it in a list, where its calls are not counted
    return model


def drunet_as_prior(case: Case) -> nn.Module:
    """DMILO with DRUNet in the place of the prior."""
    return DMILO(_network(case, "DRUNet"))


def mprnet(case: Case) -> nn.Module:
    """deepinv's MPRNet, one call, which reads neither the blur nor the noise."""
    return _network(case, "MPRNet")


class EstimatedBlur(nn.Module):
    """DMILO with the blur that deepinv's network of kernels finds in y: kernels and where each counts."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.solver: nn.Module = DMILO(case.prior)
        self.network: nn.Module = _network(case, "KernelIdentificationNetwork")
        self.noise = case.noise

    def forward(self, y: Tensor, physics: LinearPhysics) -> Tensor:
        """Images, (B, C, H, W)."""
        options = {"padding": "circular", "mask_first": False, "use_fft": True}  # as deepinv documents the network
        blur = SpaceVaryingBlur(**self.network(y), **options, device=y.device, noise_model=GaussianNoise(self.noise))
        return self.solver(y, blur)


class PlugAndPlay(nn.Module):
    """deepinv's proximal gradient descent with DRUNet in the place of the proximal operator, of a tuned noise level."""

    steps = 100

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.denoiser, self.shape, self.noise = _network(case, "DRUNet"), case.shape, case.weight

    def forward(self, y: Measurements, physics: LinearPhysics) -> Tensor:
        """Images, (B, C, H, W)."""
        like = torch.zeros(1, *self.shape, device=next(self.denoiser.parameters()).device)
        norm = forward_model(physics, tuple(like.shape), like, single=True).squared_norm.item()
        prior = PnP(self.denoiser)
        return PGD(L2(), prior, stepsize=1 / (1.02 * norm), sigma_denoiser=self.noise, max_iter=self.steps)(y, physics)


def _network(case: Case, name: str) -> nn.Module:
    return open_network(name, case.shape[0], case.weights.get(name)).to(case.prior.device)
