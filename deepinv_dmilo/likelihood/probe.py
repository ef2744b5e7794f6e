"""What two images of random pixels show of a physics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, energy, like_parts, measure, parts, real
from deepinv_dmilo.likelihood.rounding import agree
from deepinv_dmilo.utils.memory import raise_out_of_memory

_HOW = "write it in torch, without detach(), .data, numpy() or changes of x in place"


class Probe(NamedTuple):
    """An image of random pixels and its negative, and how their measurements differ."""

    x: Tensor  # (B, C, H, W), the same image B times
    measured: tuple[Measurements, Measurements]  # of it and of 1 - x, as the physics has them
    observed: list[Tensor]  # which real measurements of each part change with the image, (B, k)
    seen: Tensor  # number of pixels that measurements change with, (B,)

    @classmethod
    def of(cls, physics: Physics, like: Tensor) -> Probe:
        """
        Two images measured, and the gradient of what they differ by.

        :raises ValueError: the physics has no gradient, or measures the same image twice and not alike.
        """
        x = random_images(like, 1, seed=0).repeat(len(like), 1, 1, 1)
        with torch.enable_grad():
            try:
                measured = measure(x.requires_grad_(), physics)
            except RuntimeError as error:  # without a gradient it has run before
                raise_out_of_memory(error)
                raise ValueError(f"physics.A cannot be differentiated ({error}); {_HOW}") from error
            if not any(t.requires_grad for t in parts(measured)):
                raise ValueError(f"physics.A cannot be differentiated; {_HOW}")
            other = measure(1 - x.detach(), physics)
            change = measured - other
            (gradient,) = torch.autograd.grad(energy(change).sum(), x)
        x = x.detach()
        one, other = (like_parts(y, [t.detach() for t in parts(y)]) for y in (measured, other))
        if not agree(one, measure(x, physics)):
            raise ValueError(
                "physics.A measures the same image twice and not alike; pass a physics whose A is the one that made y, "
                "with what it draws as a tensor of it, and its noise as noise_model"
            )
        observed = [real(t.detach()) != 0 for t in parts(change)]
        if any(mask.any() for mask in observed) and not gradient.any():
            raise ValueError(
                "physics.A changes with the image but its gradient is zero, as that of rounding and comparisons is; "
                "use a smooth function in place of them"
            )
        return cls(x, (one, other), observed, (gradient != 0).flatten(1).sum(1).clamp(min=1))

    @property
    def largest(self) -> float:
        """By how much a measurement of the two images differs, as the physics has it, at most."""
        one, other = self.measured
        return max(real(t).abs().max().item() for t in parts(one - other))


def random_images(like: Tensor, n: int, seed: int) -> Tensor:
    """Images of independent pixels in [0, 1], (n, C, H, W), the same at every call."""
    rng = torch.Generator("cpu").manual_seed(seed)
    return torch.rand((n, *like.shape[1:]), generator=rng, device="cpu", dtype=torch.float32).to(like)
