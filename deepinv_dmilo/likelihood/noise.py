"""How noisy the measurements are, by drawing the noise of the physics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from deepinv.physics import PhaseRetrieval, Physics
from torch import Tensor

from deepinv_dmilo.likelihood.forward import ForwardModel
from deepinv_dmilo.likelihood.measurements import Measurements, as_input, like_parts, operators, parts, shapes, take
from deepinv_dmilo.utils.memory import SHAPE_ERRORS, raise_out_of_memory
from deepinv_dmilo.utils.private import seeded_copy, seeded_libraries
from deepinv_dmilo.utils.warning import warn

DRAWS = 4  # of the noise; they cost neither A nor the network
SEED = 1_779_033_703  # of the draws: one that nobody took for the mask that they fall on


def simulated_variance(x: Tensor, rows: Tensor, forward: ForwardModel) -> Tensor:
    """
    The variance of the noise in a (real) measurement that the image changes, (n,); 0 where the physics has none.

    Masked measurements, which carry no noise, do not count. It is that at the mean of an image's rows, and every image
    has the same draws, so that its variance does not depend on its batch, unless the physics hides what differs.

    :param torch.Tensor x: images in [0, 1] near the solution, (n, C, H, W).
    :param torch.Tensor rows: which of the S * B reconstructions they are, (n,).
    """
    images, places, counts = (rows % forward.batch).unique(return_inverse=True, return_counts=True)
    mean = torch.zeros_like(x[: len(images)]).index_add_(0, places, x) / counts.view(-1, 1, 1, 1)
    settle(forward)
    if not forward.noise_is_split:
        mean, images = torch.full_like(forward.like, 0.5).index_copy(0, images, mean), forward.images
        places = rows % forward.batch
    return _simulated(mean, forward.measured(mean, images), images, forward)[places]


def simulated_at_probe(forward: ForwardModel) -> Tensor:
    """The same at images of random pixels, whose measurements are known, (B,)."""
    settle(forward)
    return _simulated(forward.probe.x, forward.probe.measured[0], forward.images, forward)


def _simulated(x: Tensor, clean: Measurements, images: Tensor, forward: ForwardModel) -> Tensor:
    """The variance at one image of each number, (n,); ``clean`` is A(x), as the physics has it."""
    failure: Exception | None = None
    for size in (1 if forward.noise_is_split else len(images), len(images)):
        try:
            each = torch.arange(len(images), device=x.device).split(size)
            draws = [_drawn(x[some], take(clean, some), images[some], forward) for some in each]
            break
        except SHAPE_ERRORS as error:  # such as a noise model that hides what differs between its images
            raise_out_of_memory(error)
            failure = error
    else:
        _warn_once(
            forward,
            f"the noise of the physics could not be drawn ({failure}); the residual stands in for it. If you know the "
            "noise, type noise_level=0.05 or what it is",
        )
        return torch.zeros_like(x[:, 0, 0, 0])
    energies, energies_of_mean = (torch.cat(columns) for columns in zip(*draws, strict=True))
    # The mean of independent draws has the energy of one over their number, if they are about 0.
    if (energies_of_mean > 0.75 * energies).any():
        _warn_once(
            forward,
            "the noise model of the physics moves the mean of the measurements away from A(x), which is what is "
            "fitted; use one that does not, such as PoissonNoise(gain, normalize=True)",
        )
    return energies / forward.observed[images]


def same_noise(y: Measurements, std: Tensor, seed: int = SEED) -> Measurements:
    """Gaussian noise for every row of measurements, of a standard deviation (n,): the same numbers times that."""
    rng = torch.Generator("cpu").manual_seed(seed)
    noises = []
    for t in parts(y):
        shape = (*t.shape[1:], 2) if t.is_complex() else t.shape[1:]
        noise = torch.randn(shape, generator=rng, device="cpu", dtype=torch.float32).to(t.device, t.real.dtype)
        noise = torch.view_as_complex(noise) if t.is_complex() else noise
        noises.append(std.view(-1, *[1] * noise.ndim) * noise)
    return like_parts(y, noises)


def settle(forward: ForwardModel) -> None:
    """
    Find which tensors of the noise model are one for each image, and whether it makes the noise of one image alone.

    Those without whose choice the noise of one image has its shape are none: of channels, say, as many as images.
    """
    if forward.noise_is_split is not None:
        return
    candidates = forward.noise_tensors
    if forward.is_split:
        for name in candidates:
            kept = forward.noise_tensors
            forward.noise_tensors = {other: t for other, t in kept.items() if other != name}
            if not _is_of_one_image(forward):
                forward.noise_tensors = kept
    forward.noise_is_split = forward.is_split and _is_of_one_image(forward)


def _is_of_one_image(forward: ForwardModel) -> bool:
    """Whether the noise of one image has the shape of its measurements."""
    row = torch.zeros(1, dtype=torch.long, device=forward.like.device)
    x, clean = forward.probe.x[row], take(forward.probe.measured[0], row)
    try:
        return all(shapes(noisy) == shapes(of_noisy) for noisy, of_noisy in draws(x, clean, row, forward, 1))
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False


def _warn_once(forward: ForwardModel, message: str) -> None:
    """Warn, of an operator once: its noise is asked for at every level."""
    if message not in forward.warned:
        forward.warned.add(message)
        warn(message)


def _drawn(x: Tensor, clean: Measurements, rows: Tensor, forward: ForwardModel) -> tuple[Tensor, Tensor]:
    """The energy of the noise, mean over the draws, and that of the draws' mean, (n,) each."""
    pairs = draws(x, clean, rows, forward, DRAWS)
    noises = [forward.units.counted(noisy - of_noisy, rows) for noisy, of_noisy in pairs]
    of_mean = forward.observed_energy(sum(noises[1:], noises[0]) / DRAWS, rows)
    return torch.stack([forward.observed_energy(n, rows) for n in noises]).mean(0), of_mean


def draws(
    x: Tensor, clean: Measurements, rows: Tensor, forward: ForwardModel, number: int, seed: int = SEED
) -> Iterator[tuple[Measurements, Measurements]]:
    """
    So many noisy measurements of some rows of images, as the physics has them, and what they are without noise.

    :param clean: A(x).
    """
    parameters = {} if forward.nuisance is None else forward.nuisance.values(rows)
    is_known = type(forward.physics).forward in (Physics.forward, PhaseRetrieval.forward)  # sensor(noise(A(x)))
    of_others = seeded_libraries if _may_draw_from_anywhere(forward.physics, is_known) else nullcontext
    for k in range(number):
        if k == 0 or not is_known:  # a forward of its own may change the operator
            members, random = seeded_copy(forward.members, seed + k)
            if not is_known:
                members.own_tensors()
            members.physics.update(**parameters)
        with random, of_others(seed + k):  # not while others work with what was drawn
            draw = _with_noise if is_known else _with_forward
            pair = forward.apply(partial(draw, members.physics, x, clean), rows, members=members)
        yield pair


def _may_draw_from_anywhere(physics: Physics, is_known: bool) -> bool:
    """Whether its noise models, or a forward of its own, are not deepinv's."""
    noises = [getattr(member, "noise_model", None) for member in operators(physics)]
    called = noises if is_known else [physics, *noises]
    return any(not type(part).__module__.startswith("deepinv.") for part in called if part is not None)


def _with_noise(physics: Physics, x: Tensor, clean: Measurements) -> tuple[Measurements, Measurements]:
    """By what a physics says of its noise."""
    return physics.sensor(physics.noise(clean.clone())), clean


def _with_forward(physics: Physics, x: Tensor, clean: Measurements) -> tuple[Measurements, Measurements]:
    """By a forward of its own, after which A is that of the measurements."""
    x = as_input(x, physics)
    return physics(x), physics.A(x)
