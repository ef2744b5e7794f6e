"""Tensors of a physics that are those of another batch: which they are, found by taking one row of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import GaussianNoise, Physics
from torch import Tensor, nn
from torch.func import functional_call

from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.heteroscedastic import is_one_of_each, noisy_members
from deepinv_dmilo.likelihood.measurements import Measurements, parts, shapes
from deepinv_dmilo.likelihood.members import Members
from deepinv_dmilo.likelihood.noise import draws, settle
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory


def of_another_batch(physics: Physics, batch: int, fits: Callable[[], bool]) -> ValueError | None:
    """
    What to say where tensors of a physics, its noise model among them, are for another number of images than y.

    :param int batch: number of images of y.
    :param fits: whether the physics goes with y. It does not; does it with one row of these tensors in place of all?
    """
    members = Members(physics)
    named = [*members.named_parameters(), *members.named_buffers()]
    several = [(n, t) for n, t in named if t.ndim and len(t) not in (0, 1, batch) and "random_state" not in n]
    alone = [[one] for one in several]
    together = [[(n, t) for n, t in several if len(t) == size] for size in sorted({len(t) for _, t in several})]
    for tensors in [*alone, *together]:
        if _holds(members, {name: t[:1].detach() for name, t in tensors}, fits):
            return rows_error([name for name, _ in tensors], len(tensors[0][1]), batch)
    return None


def check_noise(y: Measurements, forward: ForwardModel) -> None:
    """
    Refuse a physics whose noise is for other measurements than y.

    :raises ValueError: its noise model is for another number of images, gives something of another shape, or has
        parameters that are negative or no numbers.
    """
    members = noisy_members(forward.physics)
    for number, member in enumerate(members):
        _check_numbers(member, f"physics[{number}]" if len(members) > 1 else "physics")
    members = members * len(parts(y)) if len(members) == 1 else members
    for member, t in zip(members, parts(y), strict=False):
        _check_dimensions(member, t)
    if all(_is_told(member, t) for member, t in zip(members, parts(y), strict=False)):
        return
    settle(forward)
    rows, x, clean = forward.images, forward.probe.x, forward.probe.measured[0]

    def drawn() -> list[tuple[int, ...]]:
        return [shape for noisy, _ in draws(x, clean, rows, forward, 1) for shape in shapes(noisy)]

    try:
        made = drawn()
    except SHAPE_ERRORS as error:  # such as that of a model that refuses the image
        raise_out_of_memory(error)
        made = None
    if made == shapes(y):
        return
    other = of_another_batch(forward.physics, forward.batch, lambda: drawn() == shapes(y))
    if other is not None:
        raise other
    if made is not None:
        raise ValueError(
            f"the noise model of the physics makes {made} of measurements of shape {shapes(y)}; pass one that keeps "
            "their shape, such as GaussianNoise(sigma) of one sigma, of (B,) or of (1, C, H, W), or type "
            "noise_level=0.05 or what it is"
        )


def _is_told(member: Physics, y: Tensor) -> bool:
    """Whether it has Gaussian noise of one size, of one for each image, or of one for each measurement."""
    noise: Any = getattr(member, "noise_model", None)
    if noise is None or type(noise) is not GaussianNoise:
        return False
    return is_one_of_each(noise.sigma, y) or (noise.sigma.ndim < 2 and noise.sigma.numel() in (1, len(y)))


def _check_numbers(member: Physics, whose: str) -> None:
    """Refuse parameters of deepinv's noise models that are negative, infinite or no numbers."""
    noise: Any = getattr(member, "noise_model", None)
    if not type(noise).__module__.startswith("deepinv.physics"):
        return
    for name, t in (*noise.named_parameters(), *noise.named_buffers()):
        odd = t[~(torch.isfinite(t) & (t >= 0))].detach() if t.is_floating_point() else None
        if odd is not None and odd.numel():
            raise ValueError(
                f"{name} of {type(noise).__name__} is {odd[0].item():.3g}{' for some' if t.numel() > 1 else ''}; type "
                f"{whose}.update({name}=...) with finite numbers of at least 0"
            )


def _check_dimensions(member: Physics, y: Tensor) -> None:
    """Refuse Gaussian noise of a standard deviation for each measurement that lacks the batch dimension, or another."""
    noise: Any = getattr(member, "noise_model", None)
    if type(noise) is not GaussianNoise or not 1 < noise.sigma.ndim < y.ndim:
        return
    lacking = y.ndim - noise.sigma.ndim
    all_alike, each = (None,) * lacking, (slice(None), *(None,) * lacking)
    for index, typed in ((all_alike, ", ".join(["None"] * lacking)), (each, ", ".join([":"] + ["None"] * lacking))):
        if is_one_of_each(noise.sigma[index], y):
            raise ValueError(
                f"sigma of GaussianNoise has shape {tuple(noise.sigma.shape)}, and the measurements {tuple(y.shape)}; "
                f"type GaussianNoise(sigma[{typed}]), of shape {tuple(noise.sigma[index].shape)}"
            )


def rows_error(names: list[str], rows: int, batch: int) -> ValueError:
    """What to say of parameters "members.0.noise_model.sigma", say; the members of a stack come after itself."""
    short = [name.rpartition(".")[2] for name in names]
    member = int(names[0].split(".")[1])
    whose = f"physics[{member - 1}]" if member else "physics"
    updates, each = ", ".join(f"{name}=..." for name in short), f", or one for each, {batch} rows" if batch > 1 else ""
    return ValueError(
        f"{' and '.join(short)} of the physics {'has' if len(short) == 1 else 'have'} {rows} rows, and y {batch}; type "
        f"{whose}.update({updates}) with one row for all images{each}"
    )


def _holds(members: nn.Module, tensors: dict[str, Tensor], fits: Callable[[], bool]) -> bool:
    try:
        return functional_call(members, tensors, (fits,))
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False
