"""Noise by its purpose: from a seed it depends on nothing else, from a generator it is its next numbers."""

from dataclasses import replace

import pytest
import torch
from toys import ConvNet, posterior_of, toy_prior

from deepinv_dmilo import DMILO, Levels
from deepinv_dmilo.utils.draws import PURPOSES, Draws, inverse_gaussian

SHAPE = (3, 8, 12)


def test_draws_of_a_seed_do_not_depend_on_the_batch():
    noises, samples = [], torch.arange(2)
    for seed in range(3):
        for k in range(3):
            together = Draws(seed)("level", k, SHAPE, samples.repeat_interleave(4))
            assert torch.equal(together[[0, 4]], Draws(seed)("level", k, SHAPE, samples))
            assert torch.equal(together[0], together[3])
            noises += [together[0], together[4]]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 18
    assert abs(torch.stack(noises).std() - 1) < 0.05  # of 5184 numbers, to 5 of its standard deviations
    drawn = Draws(torch.Generator().manual_seed(0))("level", 0, SHAPE, torch.zeros(4, dtype=torch.long))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(("rng", "error"), [("3", TypeError), (True, TypeError), (-1, ValueError), (1.5, TypeError)])
def test_what_is_no_seed(rng, error):
    with pytest.raises(error, match=r"torch\.Generator\(\)\.manual_seed"):
        Draws(rng)


def test_draws_of_a_seed_do_not_depend_on_their_order():
    samples, repeated = torch.arange(2), [purpose for purpose in PURPOSES if purpose != "start"]
    keys = [("start", 0), *((purpose, k) for purpose in repeated for k in range(3))]
    draws = Draws(5), Draws(5)
    forwards, backwards = (
        {key: one(*key, SHAPE, samples) for key in keys[::k]} for one, k in zip(draws, (1, -1), strict=True)
    )
    assert all(torch.equal(forwards[key], backwards[key]) for key in keys)
    assert len({tuple(noise.flatten().tolist()) for t in forwards.values() for noise in t}) == 2 * len(keys)


def test_the_inverse_gaussian_distribution():
    """Its mean is that given, its variance the mean cubed; a million draws of the largest tell them to 1 %."""
    for mean in (1.0, 0.3, 0.01):
        normal, other = torch.randn(2, 1_000_000, generator=torch.Generator().manual_seed(0)).double()
        drawn = inverse_gaussian(torch.full_like(normal, mean), normal, other)
        assert drawn.min() > 0
        assert drawn.mean().item() == pytest.approx(mean, rel=0.01)
        assert drawn.var().item() == pytest.approx(mean**3, rel=0.02)


def test_rows_of_a_generator_with_the_same_number_share_its_noise():
    draws, samples = Draws(torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.long)
    noise = draws("evidence", 0, SHAPE, samples, torch.tensor([4, 1, 4]))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


def test_the_noise_of_a_level_does_not_depend_on_the_levels_that_are_taken(inpainting, monkeypatch):
    """A budget of five passes is for the last of three levels alone."""
    physics, y = inpainting
    seen = {}

    def kept(self, purpose, index, *args, call=Draws.__call__):
        noise = call(self, purpose, index, *args)
        return seen.setdefault((passes, purpose, index), noise)

    monkeypatch.setattr(Draws, "__call__", kept)
    model = DMILO(toy_prior(ConvNet(), dtype=torch.float32), schedule=Levels((1.0, 0.5, 0.2), skip=False))
    for passes in (5, 15):
        replace(model, noise_level=0.1, max_passes=passes)(y, physics)
    levels = {passes: [index for n, purpose, index in seen if (n, purpose) == (passes, "level")] for passes in (5, 15)}
    assert levels == {5: [2], 15: [0, 1, 2]}
    assert torch.equal(seen[5, "level", 2], seen[15, "level", 2])


def test_noise_that_is_alike_is_that_of_every_sample(inpainting):
    physics, y = inpainting
    posterior = posterior_of(DMILO(toy_prior(ConvNet()), num_samples=2), y[:2], physics)
    of_each, alike = posterior.noise("start"), posterior.noise("start", alike=True)
    assert not torch.equal(of_each[:2], of_each[2:])
    assert torch.equal(alike[:2], alike[2:])
