"""How noisy the measurements are: by simulating the physics, or from what the images leave unexplained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.core.measurements import SHAPE_ERRORS, Measurements, as_input, energy, measure, operators, parts

DRAWS = 4  # of the noise; they cost no network


def noise_variance(x: Tensor, physics: Physics, noise_level: float | None) -> Tensor:
    """
    The variance of the noise in a (real) measurement that the image reaches, for each of B samples, shape (B,).

    That of ``noise_level`` where given; else that of the physics' own noise, drawn at the images x; 0 where it has
    none, or none that can be drawn there. Masked measurements, which carry no noise, do not count.

    :param torch.Tensor x: images in [0, 1] near the solution, (B, C, H, W).
    :param float noise_level: standard deviation as deepinv's noise models take it: that of a complex measurement's
        real and imaginary part together.
    """
    if noise_level is None:
        return _simulated(x, physics)
    parts_of_one = 2 if parts(measure(x, physics))[0].is_complex() else 1
    return torch.full_like(x[:, 0, 0, 0], noise_level**2 / parts_of_one)


def unexplained_variance(x: Tensor, y: Measurements, physics: Physics) -> Tensor:
    """Mean squared residual of images x over the measurements that they reach, (B,): the noise is at most that."""
    return energy(measure(x, physics) - y) / _reached(x, physics)


def warn_if_unexplained(x: Tensor, y: Measurements, physics: Physics, noise_level: float | None) -> None:
    """Warn where images x leave a quarter of the energy of y, and more than the noise has: no fit at all."""
    rest = energy(measure(x, physics) - y)
    odd = (rest > energy(y) / 4) & (energy(y) > 0)
    if odd.any():
        odd &= rest > 4 * noise_variance(x, physics, noise_level) * _reached(x, physics)
    if odd.any():
        share = (rest / energy(y))[odd].mean().item()
        warnings.warn(
            f"{int(odd.sum())} of {len(x)} images leave {share:.0%} of the energy of y unexplained; check that y is on "
            "the scale of physics(x) for images x in [0, 1], or give more passes",
            RuntimeWarning,
            stacklevel=5,  # where the model was called
        )


def _simulated(x: Tensor, physics: Physics) -> Tensor:
    """
    Mean square of ``physics(x) - physics.A(x)`` over the measurements that x reaches, (B,).

    One image at a time, all with the same draws, so that a sample's variance does not depend on its batch; only an
    operator with parameters for every sample sees the batch.
    """
    failure: Exception | None = None
    for images in (x.split(1), (x,)):
        try:
            return torch.cat([_drawn(part, physics) for part in images])
        except SHAPE_ERRORS as error:
            failure = error
    warnings.warn(
        f"the noise of the physics could not be drawn ({failure}); the residual stands in for it. If you know the "
        "noise, type noise_level=0.05 or what it is",
        RuntimeWarning,
        stacklevel=2,
    )
    return torch.zeros_like(x[:, 0, 0, 0])


def _drawn(x: Tensor, physics: Physics) -> Tensor:
    """The variance from a few draws, (n,)."""
    with seeded(x, physics, 0):
        noises = [physics(as_input(x, physics)) - measure(x, physics) for _ in range(DRAWS)]
    if len(parts(noises[0])[0]) != len(x):
        raise ValueError("the operator has parameters for every sample")
    energies = torch.stack([energy(n) for n in noises]).mean(0)
    # The mean of independent draws has the energy of one over their number, if they are about 0.
    if (energy(sum(noises[1:], noises[0]) / DRAWS) > 0.75 * energies).any():
        warnings.warn(
            "the noise model of the physics moves the mean of the measurements away from A(x), which is what is "
            "fitted; use one that does not, such as PoissonNoise(gain, normalize=True)",
            RuntimeWarning,
            stacklevel=2,
        )
    return energies / _reached(x, physics)


def _reached(x: Tensor, physics: Physics) -> Tensor:
    """Number of real measurements of each sample that change with the image, (B,)."""
    rng = torch.Generator("cpu").manual_seed(0)
    a, b = (torch.rand(x.shape[1:], generator=rng, device="cpu").to(x).expand_as(x) for _ in range(2))
    changes = parts(measure(a, physics) - measure(b, physics))
    values = [(torch.view_as_real(t) if t.is_complex() else t).flatten(1) for t in changes]
    return torch.stack([(v != 0).sum(1) for v in values]).sum(0).clamp(min=1)


def _generators(physics: Physics) -> list[tuple[torch.nn.Module, torch.Generator]]:
    """The modules of a physics that have a random generator of their own, and the generator."""
    modules = (module for operator in operators(physics) for module in operator.modules())
    rngs = ((module, getattr(module, "rng", None)) for module in modules)
    return [(module, rng) for module, rng in rngs if isinstance(rng, torch.Generator)]


def _own_generators(x: Tensor, physics: Physics) -> list[torch.Generator]:
    """Everything that noise may be drawn from: the physics' generators and the global one of x's device."""
    rngs = [rng for _, rng in _generators(physics)]
    if x.is_cuda:
        rngs.append(torch.cuda.default_generators[x.device.index or 0])
    return [*rngs, torch.default_generator]


@contextmanager
def seeded(x: Tensor, physics: Physics, seed: int) -> Iterator[None]:
    """
    All that the physics may draw from at images x starts at a seed, and is afterwards as before.

    That is its generators, which deepinv replaces on the way, and the global one of x's device.
    """
    owners = _generators(physics)
    states = [(rng, rng.get_state()) for rng in _own_generators(x, physics)]
    try:
        for rng, _ in states:
            rng.manual_seed(seed)
        yield
    finally:
        for rng, state in states:
            rng.set_state(state)
        for module, rng in owners:
            module.rng = rng  # type: ignore[assignment]
