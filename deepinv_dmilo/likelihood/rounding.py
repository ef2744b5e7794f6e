"""Whether measurements are the same but for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.measurements import Measurements, energy, parts

# Rounding of the same sums over another batch, of their energy: in float32, and where factors have the 11 bits of TF32
# (up to 1.4e-7 for blurs and a Laplacian, simulated); and what an entry may be off there, of itself and the usual one.
SAME, SAME_IN_TF32, ENTRY_IN_TF32 = 1e-8, 4e-6, 1e-2


def agree(a: Measurements, b: Measurements) -> bool:
    """Whether they have as many rows, which are the same but for rounding."""
    if [len(t) for t in parts(a)] != [len(t) for t in parts(b)]:
        return False
    off, size, is_coarse = energy(a - b), energy(a), any(_may_be_tf32(t) for t in parts(a))
    if not is_coarse or not (off <= SAME_IN_TF32 * size).all():
        return bool((off <= SAME * size).all())
    return all(_no_entry_is_off(s.flatten(1), t.flatten(1)) for s, t in zip(parts(a), parts(b), strict=True))


def _may_be_tf32(t: Tensor) -> bool:
    """Whether torch may round the factors of products: on a GPU those of convolutions, by default, or where told."""
    is_double = t.dtype in (torch.float64, torch.complex128)
    return not is_double and (t.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest")


def _no_entry_is_off(a: Tensor, b: Tensor) -> bool:
    """Whether what differs of (n, k) is everywhere a little, as rounding is: a mask of few other pixels is not."""
    usual = a.abs().square().mean(1, keepdim=True).sqrt()
    return bool(((a - b).abs() <= ENTRY_IN_TF32 * (a.abs() + usual)).all())
