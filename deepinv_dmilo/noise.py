"""How noisy the measurements are: by simulating the physics, or from what the images leave unexplained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.measurements import SHAPE_ERRORS, Measurements, as_input, energy, measure, parts

DRAWS = 4  # of the noise; they cost no network


def noise_variance(x: Tensor, physics: Physics, noise_level: float | None) -> Tensor:
    """
    The variance of the noise in a measurement that the image reaches, for each of B samples, shape (B,).

    That of ``noise_level`` where given; else that of the physics' own noise, drawn at the images x; 0 where it has
    none. Masked measurements, which carry no noise, do not count.

    :param torch.Tensor x: images in [0, 1] near the solution, (B, C, H, W).
    """
    if noise_level is not None:
        return torch.full_like(x[:, 0, 0, 0], noise_level**2)
    return _simulated(x, physics)


def unexplained_variance(x: Tensor, y: Measurements, physics: Physics) -> Tensor:
    """Mean squared residual of images x over the measurements that they reach, (B,): the noise is at most that."""
    return energy(measure(x, physics) - y) / _reached(x, physics)


def _simulated(x: Tensor, physics: Physics) -> Tensor:
    """
    Mean square of the nonzero values of ``physics(x) - physics.A(x)``, (B,), 0 where there are none.

    One image at a time, all with the same draws, so that a sample's variance does not depend on its batch; only an
    operator with parameters for every sample sees the batch.
    """
    with _own_randomness(physics):
        try:
            noises = [_draw(image, physics) for image in x.split(1)]
        except SHAPE_ERRORS:
            noises = [_draw(x, physics)]
    squares, counts = (torch.cat(values) for values in zip(*noises, strict=True))
    return squares / counts.clamp(min=1)


def _draw(x: Tensor, physics: Physics) -> tuple[Tensor, Tensor]:
    """Energy and number of nonzero values of the noise, over all draws, (n,) each."""
    torch.manual_seed(0)
    for _, rng in _generators(physics):
        rng.manual_seed(0)
    noises = [physics(as_input(x, physics)) - measure(x, physics) for _ in range(DRAWS)]
    if len(parts(noises[0])[0]) != len(x):
        raise ValueError("the operator has parameters for every sample")
    return sum(energy(n) for n in noises), sum(_nonzero(n) for n in noises)  # type: ignore[return-value]


def _nonzero(r: Measurements) -> Tensor:
    """Number of nonzero real values of each sample, (B,)."""
    values = [(torch.view_as_real(t) if t.is_complex() else t).flatten(1) for t in parts(r)]
    return torch.stack([(v != 0).sum(1) for v in values]).sum(0)


def _reached(x: Tensor, physics: Physics) -> Tensor:
    """Number of real measurements of each sample that change with the image, (B,)."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand(x.shape[1:], generator=rng).to(x).expand_as(x) for _ in range(2))
    return _nonzero(measure(a, physics) - measure(b, physics)).clamp(min=1)


def _generators(physics: Physics) -> list[tuple[torch.nn.Module, torch.Generator]]:
    """The modules of a physics that have a random generator, and the generator."""
    rngs = ((module, getattr(module, "rng", None)) for module in physics.modules())
    return [(module, rng) for module, rng in rngs if isinstance(rng, torch.Generator)]


@contextmanager
def _own_randomness(physics: Physics) -> Iterator[None]:
    """The physics' generators, which deepinv replaces on the way, and the global state are afterwards as before."""
    states = [(module, rng, rng.get_state()) for module, rng in _generators(physics)]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, rng, state in states:
            rng.set_state(state)
            module.rng = rng  # type: ignore[assignment]
