"""A call works on copies of its own: threads may share a model and a physics, and nothing of the caller's changes."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import deepinv as dinv
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior
from deepinv_dmilo.utils.private import private

SHAPE = (2, 3, 8, 12)


@pytest.fixture
def masked():
    """An inpainting with a mask for each of two images."""
    mask = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(1))
    return dinv.physics.Inpainting(SHAPE[1:], mask=mask, noise_model=noise)


def images(seed=0):
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def state_of(physics, prior):
    """What a call could leave changed."""
    return {
        "mask": physics.mask,
        "generator": physics.noise_model.rng.get_state(),
        "global": torch.get_rng_state(),
        "modes": [m.training for m in prior.modules()],
        "flags": [p.requires_grad for p in prior.parameters()],
        "weights": [p.detach().clone() for p in prior.parameters()],
    }


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_threads_share_a_model_and_a_physics(method, masked):
    prior = toy_prior(ConvNet(), dtype=torch.float32).train()
    prior.network.first.bias.requires_grad_(False)
    y = masked(images())
    model = method(prior, max_passes=8)
    alone, before = model(y, masked), state_of(masked, prior)
    with ThreadPoolExecutor(3) as pool:
        together = [call.result() for call in [pool.submit(model, y, masked) for _ in range(24)]]
    after = state_of(masked, prior)
    assert all(torch.equal(x, alone) for x in together)
    assert before["mask"] is after["mask"]
    assert torch.equal(before["generator"], after["generator"])
    assert torch.equal(before["global"], after["global"])
    assert before["modes"] == after["modes"]
    assert before["flags"] == after["flags"]
    assert all(torch.equal(a, b) for a, b in zip(before["weights"], after["weights"], strict=True))


def test_a_generator_is_the_callers(masked):
    """From a generator come its next numbers, as before."""
    rng = torch.Generator().manual_seed(3)
    model = DMILO(toy_prior(ConvNet(), dtype=torch.float32), max_passes=8, rng=rng)
    y, state = masked(images()), rng.get_state()
    first, second = model(y, masked), model(y, masked)
    assert not torch.equal(first, second)
    assert not torch.equal(rng.get_state(), state)


class Exposing(dinv.physics.Inpainting):
    """A physics that takes a new mask at each exposure, by a new tensor or in the old one."""

    in_place = False

    def forward(self, x, **kwargs):
        mask = (torch.rand(1, *SHAPE[1:]) < 0.5).float()
        if self.in_place:
            self.mask.copy_(mask)
        else:
            self.update(mask=mask)
        return super().forward(x, **kwargs)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("settings", [{"noise_level": 0.01}, {}])
def test_a_physics_that_changes_with_each_measurement_is_the_one_that_measured(in_place, settings):
    physics = Exposing(SHAPE[1:], mask=0.5, noise_model=dinv.physics.GaussianNoise(0.01))
    physics.in_place = in_place
    y = physics(images())
    mask = physics.mask.clone()
    plain = dinv.physics.Inpainting(SHAPE[1:], mask=mask, noise_model=dinv.physics.GaussianNoise(0.01))
    model = DMILO(toy_prior(ConvNet(), dtype=torch.float32), max_passes=8, **settings)
    x, expected = model(y, physics), model(y, plain)
    assert torch.equal(physics.mask, mask)
    # the noise is drawn by the physics' own forward, of masks that overlap by a half, and by the noise model
    assert (x - expected).square().mean().sqrt() < (1e-6 if settings else 0.03)


# Copies


def test_a_copy_has_modules_of_its_own_and_the_same_tensors():
    inside = torch.nn.Linear(2, 2)
    outside = torch.nn.ModuleDict({"a": inside, "b": inside})
    outside.listed, outside.bound, outside.function = [inside], inside.forward, partial(inside.forward)
    outside.mapped, outside.plain = {"c": inside}, [1, "d"]
    outside.patched = lambda z: inside(z)
    mine = private(outside)
    assert mine["a"] is mine["b"] is mine.listed[0] is mine.mapped["c"] is mine.bound.__self__ is not inside
    assert mine.function.func.__self__ is mine["a"]
    assert mine["a"].weight.data_ptr() == inside.weight.data_ptr()
    assert inside.weight.requires_grad
    assert not mine["a"].weight.requires_grad
    assert mine.plain == outside.plain
    assert mine.plain is not outside.plain
    assert mine.patched.__closure__[0].cell_contents is mine["a"]
    mine["a"].weight = torch.nn.Parameter(torch.zeros(2, 2))
    mine.eval()
    assert inside.training
    assert inside.weight.any()


def test_hooks_of_a_network_see_the_calls_of_its_copy():
    network, seen = torch.nn.Linear(2, 2), []
    network.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    private(network)(torch.zeros(3, 2))
    assert seen == [3]


def test_a_compiled_network_is_copied_inside():
    compiled = torch.compile(torch.nn.Sequential(torch.nn.Dropout(0.5)), backend="eager")
    mine = private(compiled).eval()
    x = torch.ones(4, 4)
    assert torch.equal(mine(x), x)
    assert compiled.training


def test_a_compiled_prior_is_compiled_once(masked, monkeypatch):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    prior = DiffusionPrior(ConvNet(), DDIMScheduler(), compile=True)
    model, y = DMILO(prior, max_passes=8), masked(images())
    model(y, masked)
    once = len(compilations)
    model(y, masked)
    assert len(compilations) == once > 0


def patched(network):
    """As people change a forward: a function in its place, which calls the old one."""
    old = network.forward
    network.forward = lambda z, t: old(z, t)
    return network


def compiled_in_place(network):
    network.compile(backend="eager")
    return network


def compiled_forward(network):
    network.forward = torch.compile(network.forward, backend="eager")
    return network


def decorated(network):
    network.forward = torch.autocast("cpu", enabled=False)(network.forward)
    return network


def scripted(network):
    return torch.jit.script(network)


@pytest.mark.parametrize("change", [patched, compiled_in_place, compiled_forward, decorated, scripted])
def test_a_network_whose_forward_was_changed_is_in_evaluation_mode(change, masked):
    """Its dropout does nothing, and the caller's is left in training mode."""
    network = change(ConvNet())
    y = masked(images())
    results = [DMILO(DiffusionPrior(net, DDIMScheduler()), max_passes=8)(y, masked) for net in (network, ConvNet())]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)  # a compiled one may round otherwise
    assert network.training


class Remembering(torch.nn.Module):
    """A network that keeps what it works with in a dictionary and a list of its own."""

    def __init__(self):
        super().__init__()
        self.net, self.kept, self.skips = ConvNet(), {}, []

    def forward(self, z, t):
        self.kept["z"] = z
        self.skips.append(z)
        time.sleep(1e-4)
        return self.net(z, t) + 0.3 * self.kept["z"] + 0.1 * self.skips.pop()


def test_what_a_network_keeps_in_containers_is_of_each_call(masked):
    model = DMILO(DiffusionPrior(Remembering(), DDIMScheduler()), max_passes=8)
    ys = [masked(images(seed)) for seed in range(4)]
    alone = [model(y, masked) for y in ys]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda y: model(y, masked), ys))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not model.prior.network.kept


class OfNumpy(dinv.physics.NoiseModel):
    """Noise that is drawn by numpy and by Python."""

    def __init__(self):
        super().__init__()
        self.own = np.random.default_rng(0)

    def forward(self, y, **kwargs):
        numbers = np.random.randn(*y.shape) + self.own.standard_normal(y.shape)  # noqa: NPY002
        numbers = numbers + random.gauss(0.0, 1.0)
        return y + 0.02 * torch.from_numpy(numbers).to(y)


def test_noise_of_other_libraries_is_seeded_and_their_states_are_as_before():
    physics = dinv.physics.Denoising(OfNumpy())
    model, y = DMILO(toy_prior(ConvNet(), dtype=torch.float32), max_passes=8), images()

    def states():
        own = physics.noise_model.own.bit_generator.state
        return np.random.get_state()[1].tolist(), random.getstate(), own  # noqa: NPY002

    before = states()
    assert torch.equal(model(y, physics), model(y, physics))
    assert states() == before


def test_what_was_made_in_inference_mode_is_taken(masked):
    with torch.inference_mode():
        network = ConvNet()
        physics = dinv.physics.Inpainting(SHAPE[1:], mask=masked.mask.clone(), noise_model=masked.noise_model)
    y = masked(images())
    made = DMILO(DiffusionPrior(network, DDIMScheduler()), max_passes=8)(y, physics)
    assert torch.equal(made, DMILO(DiffusionPrior(ConvNet(), DDIMScheduler()), max_passes=8)(y, masked))


def test_containers_that_hold_themselves_or_many_numbers_are_copied():
    module = torch.nn.Linear(2, 2)
    module.loop = {"numbers": list(range(10**6))}
    module.loop["loop"] = module.loop
    start = time.perf_counter()
    mine = private(module)
    assert time.perf_counter() - start < 1  # looked through number by number it takes seconds
    assert mine.loop["loop"] is mine.loop is not module.loop
