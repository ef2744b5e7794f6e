"""Properties of a physics found from the measurements of two random images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, agree, energy, like_parts, measure, parts, real
from deepinv_dmilo.utils.memory import raise_out_of_memory

_HOW = "write it in torch, without detach(), .data, numpy() or changes of x in place"


class Probe(NamedTuple):
    """The measurements of an image x of random pixels and of 1 - x, and which pixels and measurements depend on x."""

    x: Tensor  # (B, C, H, W), the same image B times
    measured: tuple[Measurements, Measurements]  # A(x) and A(1 - x), in the units of the physics
    observed: list[Tensor]  # for each part, which real measurements depend on the image, (B, k)
    observed_pixels: Tensor  # number of pixels that the measurements depend on, (B,)

    @classmethod
    def of(cls, physics: Physics, like: Tensor) -> Probe:
        """
        Measure both images and differentiate the energy of their difference.

        :raises ValueError: A has no gradient, or gives two results for the same image.
        """
        x = random_images(like, 1, seed=0).repeat(len(like), 1, 1, 1)
        with torch.enable_grad():
            try:
                measured = measure(x.requires_grad_(), physics)
            except RuntimeError as error:  # it ran before without a gradient
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
                "physics.A gives two results for the same image; pass a physics with the A that made y: store "
                "what it draws as a tensor, and put noise into its noise_model"
            )
        observed = [real(t.detach()) != 0 for t in parts(change)]
        if any(mask.any() for mask in observed) and not gradient.any():
            raise ValueError(
                "physics.A changes with the image but its gradient is zero, as that of rounding and comparisons is; "
                "use a smooth function in place of them"
            )
        return cls(x, (one, other), observed, (gradient != 0).flatten(1).sum(1).clamp(min=1))

    @property
    def largest_change(self) -> float:
        """Largest absolute difference between the measurements of the two images, in the units of the physics."""
        one, other = self.measured
        return max(real(t).abs().max().item() for t in parts(one - other))


def random_images(like: Tensor, n: int, seed: int) -> Tensor:
    """Images of independent uniform pixels in [0, 1], (n, C, H, W), a function of the seed."""
    rng = torch.Generator("cpu").manual_seed(seed)
    return torch.rand((n, *like.shape[1:]), generator=rng, device="cpu", dtype=torch.float32).to(like)
