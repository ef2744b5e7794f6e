"""Draws from a seed: the same numbers each time, and every random state as it was."""

import deepinv as dinv
import pytest
import torch

from deepinv_dmilo.utils.private import seeded

SHAPE = (2, 3, 8, 12)


def images():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))


NOISES = [
    dinv.physics.GaussianNoise(0.1),
    dinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(2)),
    dinv.physics.PoissonNoise(0.1),
    dinv.physics.GammaNoise(3.0),
    dinv.physics.SaltPepperNoise(),
    dinv.physics.LaplaceNoise(0.1),
    dinv.physics.UniformNoise(0.1),
]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_what_draws_from_a_seed_leaves_every_random_state_as_it_was(noise):
    physics, x, state = dinv.physics.Denoising(noise), images(), torch.get_rng_state()
    own = None if noise.rng is None else noise.rng.get_state()
    drawn = []
    for seed in (5, 5, 6):
        with seeded(physics, seed) as of_seed:
            drawn.append(of_seed(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert own is None or torch.equal(noise.rng.get_state(), own)
    # as from the global state, or a generator, at that seed
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if noise.rng is not None:
            noise.rng.manual_seed(5)
        assert torch.equal(physics(x), drawn[0])
    if own is not None:
        noise.rng.set_state(own)


DRAWS = {
    "randn": lambda: torch.randn(3),
    "rand": lambda: torch.rand(2, 2, dtype=torch.float64),
    "randint": lambda: torch.randint(0, 9, (3,)),
    "randperm": lambda: torch.randperm(9),
    "randn_like": lambda: torch.randn_like(torch.ones(3)),
    "rand_like": lambda: torch.rand_like(torch.ones(3)),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 3),
    "exponential": lambda: torch.empty(3).exponential_(),
    "gamma": lambda: torch.distributions.Gamma(2.0, 1.0).sample((3,)),
    "given": lambda: torch.randn(3, generator=torch.Generator().manual_seed(7)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_way_to_draw_from_the_global_state_is_seeded(draw):
    state, drawn = torch.get_rng_state(), []
    for _ in range(2):
        with seeded(torch.nn.Identity(), 5):
            drawn.append(draw())
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), state)
