"""A pass waits for the device at the solver's look for rows that have stopped, and nowhere else."""

import deepinv as dinv
import pytest
import torch
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, DMILOSampler, Greyscale, Levels, Tiled

WAITING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")


@pytest.fixture
def waits(monkeypatch):
    """What a GPU would have to be waited for, counted."""
    counted = []
    for name in WAITING:
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, *a, n=name, p=plain, **k: (counted.append(n), p(t, *a, **k))[1]
        )
    return counted


def number_of(waits, model, y, physics):
    waits.clear()
    model(y, physics)
    return len(waits)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize(
    ("prior", "channels", "side"),
    [
        (lambda: toy_prior(ConvNet()), 3, 8),
        (lambda: Greyscale(toy_prior(ConvNet())), 1, 8),
        (lambda: Tiled(toy_prior(ConvNet()), tile=8, overlap=2), 3, 14),
        (lambda: DiffusionPrior.from_denoiser(dinv.models.DnCNN(3, 3, depth=3, nf=4, pretrained=None).double()), 3, 8),
    ],
    ids=["prior", "grey", "tiles", "denoiser"],
)
def test_a_pass_waits_once(method, prior, channels, side, waits):
    physics = dinv.physics.Inpainting(
        (channels, side, side), mask=0.5, noise_model=dinv.physics.GaussianNoise(0.05)
    ).double()
    y = physics(torch.rand(2, channels, side, side, dtype=torch.float64))
    levels = Levels((0.5, 0.2), skip=False)
    models = [method(prior(), schedule=levels, solver=LBFGS(steps=steps, tolerance=0.0)) for steps in (4, 14)]
    few, many = (number_of(waits, model, y, physics) for model in models)
    assert many - few <= 2 * 10  # ten more passes at each of two levels


def test_a_level_of_the_sampler_waits_for_its_proximal_steps_alone(waits):
    physics = dinv.physics.Inpainting((3, 8, 8), mask=0.5, noise_model=dinv.physics.GaussianNoise(0.05)).double()
    y = physics(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    prior = toy_prior(ConvNet())
    few, many = (
        number_of(waits, DMILOSampler(prior, num_samples=2, max_calls=2 * 5 * levels), y, physics) for levels in (6, 16)
    )
    proximal, other = 3 * (10 + 2), 5  # steps of three proximal steps; octaves, noise, bookkeeping
    assert many - few <= 10 * (proximal + other)
