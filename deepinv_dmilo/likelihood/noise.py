"""The noise level of measurements, from simulated draws of the noise of the physics."""

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
from deepinv_dmilo.utils.rows import column
from deepinv_dmilo.utils.warning import warn

DRAWS = 4  # they cost no call of A or the network
SEED = 1_779_033_703  # unlikely to be the seed of a mask in the physics


def simulated_variance(x: Tensor, rows: Tensor, forward: ForwardModel) -> Tensor:
    """
    The mean variance of the noise in the (real) measurements that depend on the image, (n,); 0 without noise.

    It is evaluated at the mean of an image's samples. All images use the same draws, so that a variance does not depend
    on the rest of the batch, unless the physics differs between images in a hidden way.

    :param torch.Tensor x: images in [0, 1] near the solution, (n, C, H, W).
    :param torch.Tensor rows: their numbers among the S * B reconstructions, (n,).
    """
    images, places, counts = (rows % forward.batch).unique(return_inverse=True, return_counts=True)
    mean = torch.zeros_like(x[: len(images)]).index_add_(0, places, x) / column(counts, x)
    find_noise_tensors(forward)
    if not forward.noise_is_split:
        mean, images = torch.full_like(forward.like, 0.5).index_copy(0, images, mean), forward.images
        places = rows % forward.batch
    return _simulated(mean, forward.measured(mean, images), images, forward)[places]


def simulated_at_probe(forward: ForwardModel) -> Tensor:
    """The same at the random images of the probe, (B,), without a call of A."""
    find_noise_tensors(forward)
    return _simulated(forward.probe.x, forward.probe.measured[0], forward.images, forward)


def _simulated(x: Tensor, clean: Measurements, images: Tensor, forward: ForwardModel) -> Tensor:
    """The variance for one row of each image, (n,); ``clean`` is A(x) in the units of the physics."""
    each = torch.arange(len(images), device=x.device).split(1 if forward.noise_is_split else len(images))
    try:
        energies = [_noise_energies(x[some], take(clean, some), images[some], forward) for some in each]
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        _warn_once(
            forward,
            f"the noise of the physics could not be drawn ({error}); the residual variance is used instead. If you "
            "know the noise level, type noise_level=0.05, say",
        )
        return torch.zeros_like(x[:, 0, 0, 0])
    mean_energy, energy_of_mean = (torch.cat(columns) for columns in zip(*energies, strict=True))
    # The mean of independent draws of zero mean has 1 / DRAWS of their energy.
    if (energy_of_mean > 0.75 * mean_energy).any():
        _warn_once(
            forward,
            "the noise model of the physics shifts the mean of the measurements away from A(x), which is fitted; use "
            "unbiased noise, such as PoissonNoise(gain, normalize=True)",
        )
    return mean_energy / forward.observed[images]


def same_noise(y: Measurements, std: Tensor, seed: int = SEED) -> Measurements:
    """Gaussian noise like measurements, of standard deviation (n,), from the same normal numbers for every row."""
    rng = torch.Generator("cpu").manual_seed(seed)
    noises = []
    for t in parts(y):
        shape = (*t.shape[1:], 2) if t.is_complex() else t.shape[1:]
        noise = torch.randn(shape, generator=rng, device="cpu", dtype=torch.float32).to(t.device, t.real.dtype)
        noises.append(column(std, t) * (torch.view_as_complex(noise) if t.is_complex() else noise))
    return like_parts(y, noises)


def find_noise_tensors(forward: ForwardModel) -> None:
    """
    Find which tensors of the noise model have a row for each image, and whether noise can be drawn for single images.

    A candidate is kept if the noise of one image has the wrong shape unless its row is selected; others, such as
    values for each channel, only happen to have B rows.
    """
    if forward.noise_is_split is not None:
        return
    candidates = forward.noise_tensors
    if forward.is_split:
        for name in candidates:
            kept = forward.noise_tensors
            forward.noise_tensors = {other: t for other, t in kept.items() if other != name}
            if not _draws_one_image(forward):
                forward.noise_tensors = kept
    forward.noise_is_split = forward.is_split and _draws_one_image(forward)


def _draws_one_image(forward: ForwardModel) -> bool:
    """Whether the noise of one image has the shape of its measurements."""
    row = torch.zeros(1, dtype=torch.long, device=forward.like.device)
    x, clean = forward.probe.x[row], take(forward.probe.measured[0], row)
    try:
        return all(shapes(noisy) == shapes(noiseless) for noisy, noiseless in draws(x, clean, row, forward, 1))
    except SHAPE_ERRORS as error:
        raise_out_of_memory(error)
        return False


def _warn_once(forward: ForwardModel, message: str) -> None:
    """Warn once for a forward model: its noise is simulated at every level."""
    if message not in forward.warned:
        forward.warned.add(message)
        warn(message)


def _noise_energies(x: Tensor, clean: Measurements, rows: Tensor, forward: ForwardModel) -> tuple[Tensor, Tensor]:
    """The mean energy of the draws of the noise, and the energy of their mean, (n,) each."""
    pairs = draws(x, clean, rows, forward, DRAWS)
    noises = [forward.units.normalized(noisy - noiseless, rows) for noisy, noiseless in pairs]
    of_mean = forward.observed_energy(sum(noises[1:], noises[0]) / DRAWS, rows)
    return torch.stack([forward.observed_energy(n, rows) for n in noises]).mean(0), of_mean


def draws(
    x: Tensor, clean: Measurements, rows: Tensor, forward: ForwardModel, number: int, seed: int = SEED
) -> Iterator[tuple[Measurements, Measurements]]:
    """
    Pairs of noisy and noiseless measurements of some rows of images, in the units of the physics.

    :param clean: A(x).
    """
    parameters = {} if forward.nuisance is None else forward.nuisance.values(rows)
    is_standard = type(forward.physics).forward in (Physics.forward, PhaseRetrieval.forward)  # sensor(noise(A(x)))
    libraries = seeded_libraries if _is_third_party(forward.physics, is_standard) else nullcontext

    def draw(physics: Physics) -> tuple[Measurements, Measurements]:
        if is_standard:
            return physics.sensor(physics.noise(clean.clone())), clean
        image = as_input(x, physics)
        return physics(image), physics.A(image)  # A after forward: that of these measurements

    for k in range(number):
        if k == 0 or not is_standard:  # a custom forward may change the operator, also in place
            members, random = seeded_copy(forward.members, seed + k)
            for module in members.modules() if not is_standard else ():
                module._buffers.update({name: b if b is None else b.clone() for name, b in module._buffers.items()})
            physics: Physics = members.members[0]  # type: ignore[assignment]
            physics.update(**parameters)
        with random, libraries(seed + k):  # left before the caller continues
            pair = forward.apply(partial(draw, physics), rows, members=members)
        yield pair


def _is_third_party(physics: Physics, is_standard: bool) -> bool:
    """Whether a noise model, or a custom forward, is not deepinv's, and may draw from any global random state."""
    noises = [getattr(member, "noise_model", None) for member in operators(physics)]
    called = noises if is_standard else [physics, *noises]
    return any(not type(part).__module__.startswith("deepinv.") for part in called if part is not None)
