"""Errors for a physics whose parameters or noise model are those of another batch than y."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import GaussianNoise, Physics
from torch import Tensor, nn
from torch.func import functional_call

from deepinv_dmilo.likelihood.forward import ForwardModel, Members
from deepinv_dmilo.likelihood.heteroscedastic import is_elementwise
from deepinv_dmilo.likelihood.measurements import Measurements, operators_of_parts, parts, shapes
from deepinv_dmilo.likelihood.noise import draws, find_noise_tensors
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory


def batch_size_error(physics: Physics, batch: int, fits: Callable[[], bool]) -> ValueError | None:
    """
    The error for tensors of a physics, noise model included, with another number of rows than y; None: none is found.

    :param int batch: number of images of y.
    :param fits: whether the physics fits y: it does not now, but may with the first row of such tensors alone.
    """
    members = Members(physics)
    named = [*members.named_parameters(), *members.named_buffers()]
    several = [(n, t) for n, t in named if t.ndim and len(t) not in (0, 1, batch) and "random_state" not in n]
    alone = [[one] for one in several]
    together = [[(n, t) for n, t in several if len(t) == size] for size in sorted({len(t) for _, t in several})]
    for tensors in [*alone, *together]:
        if _fits_with(members, {name: t[:1].detach() for name, t in tensors}, fits):
            return rows_error([name for name, _ in tensors], len(tensors[0][1]), batch)
    return None


def check_noise(y: Measurements, forward: ForwardModel) -> None:
    """
    Check that the noise model of the physics fits y.

    :raises ValueError: it is for another number of images, changes the shape of measurements, or has parameters that
        are negative or not finite.
    """
    members = operators_of_parts(forward.physics, y)
    pairs = [(getattr(member, "noise_model", None), t) for member, t in zip(members, parts(y), strict=False)]
    for number, (noise, t) in enumerate(pairs):
        _check_numbers(noise, f"physics[{number}]" if members[0] is not members[-1] else "physics")
        _check_dimensions(noise, t)
    if all(_is_given(noise, t) for noise, t in pairs):
        return
    find_noise_tensors(forward)
    rows, x, clean = forward.images, forward.probe.x, forward.probe.measured[0]

    def drawn() -> list[tuple[int, ...]]:
        return [shape for noisy, _ in draws(x, clean, rows, forward, 1) for shape in shapes(noisy)]

    try:
        made = drawn()
    except SHAPE_ERRORS as error:  # such as a noise model that does not take the measurements
        raise_out_of_memory(error)
        made = None
    if made == shapes(y):
        return
    other = batch_size_error(forward.physics, forward.batch, lambda: drawn() == shapes(y))
    if other is not None:
        raise other
    if made is not None:
        raise ValueError(
            f"the noise model of the physics changes the shape of measurements from {shapes(y)} to {made}; pass one "
            "that keeps their shape, such as GaussianNoise(sigma) with a sigma that is a number or of shape (B,) or "
            "(1, C, H, W), or type noise_level=0.05, say"
        )


def _is_given(noise: Any, y: Tensor) -> bool:
    """Whether the noise is Gaussian with one sigma, one for each image, or one for each measurement."""
    if type(noise) is not GaussianNoise:
        return False
    return is_elementwise(noise.sigma, y) or (noise.sigma.ndim < 2 and noise.sigma.numel() in (1, len(y)))


def _check_numbers(noise: Any, whose: str) -> None:
    """Check that the parameters of a deepinv noise model are finite and at least 0."""
    if not type(noise).__module__.startswith("deepinv.physics"):
        return
    for name, t in (*noise.named_parameters(), *noise.named_buffers()):
        odd = t[~(torch.isfinite(t) & (t >= 0))].detach() if t.is_floating_point() else None
        if odd is not None and odd.numel():
            raise ValueError(
                f"{name} of {type(noise).__name__} is {odd[0].item():.3g}{' for some' if t.numel() > 1 else ''}; type "
                f"{whose}.update({name}=...) with finite numbers of at least 0"
            )


def _check_dimensions(noise: Any, y: Tensor) -> None:
    """Check that a sigma for each measurement has all dimensions of y."""
    if type(noise) is not GaussianNoise or not 1 < noise.sigma.ndim < y.ndim:
        return
    lacking = (None,) * (y.ndim - noise.sigma.ndim)
    for index in (lacking, (slice(None), *lacking)):  # the same for all images; one for each
        if is_elementwise(noise.sigma[index], y):
            typed = ", ".join("None" if i is None else ":" for i in index)
            raise ValueError(
                f"sigma of GaussianNoise has shape {tuple(noise.sigma.shape)}, and the measurements {tuple(y.shape)}; "
                f"type GaussianNoise(sigma[{typed}]), of shape {tuple(noise.sigma[index].shape)}"
            )


def rows_error(names: list[str], rows: int, batch: int) -> ValueError:
    """The error for parameters of ``Members``, such as "members.0.noise_model.sigma"; member 0 is the stack itself."""
    short = [name.rpartition(".")[2] for name in names]
    member = int(names[0].split(".")[1])
    whose = f"physics[{member - 1}]" if member else "physics"
    updates, each = ", ".join(f"{name}=..." for name in short), f", or one for each, {batch} rows" if batch > 1 else ""
    return ValueError(
        f"{' and '.join(short)} of the physics {'has' if len(short) == 1 else 'have'} {rows} rows, and y {batch}; type "
        f"{whose}.update({updates}) with one row for all images{each}"
    )


def _fits_with(members: nn.Module, tensors: dict[str, Tensor], fits: Callable[[], bool]) -> bool:
    try:
        return functional_call(members, tensors, (fits,))
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False
