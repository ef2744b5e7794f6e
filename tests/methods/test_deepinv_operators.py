"""Every operator of deepinv's own tests is reconstructed, or says in a line why not."""

import copy
import re
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from operators import JUMPS, SLOW, NotRun, find, names
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Slicewise
from deepinv_dmilo.likelihood.measurements import like_parts, parts, take

METHODS = (DMILO, DMILOPGD)
PASSES = 40
#: that are harder to fit, by networks that were never trained; 100 are the default
MORE_PASSES = {"ultrasound_planewave_pulse": 100}
#: whose misfit has other minima, where an untrained network may end: deepinv's smallest phase retrieval too
OTHER_MINIMA = {*JUMPS, "structured_random_phase_retrieval"}
#: their adjoint and their forward map mix the images of a batch, or refuse one: deepinv's, not ours
ONE_IMAGE_ONLY = {"lidar"}
#: whose transform is of single precision, and ill-conditioned: rounding grows in ten steps to so much of an image
ROUGH = {"NonCartesianMRI": 2e-2, "ultrasound_planewave_pulse": 2e-2}


def reason(name):
    """Why an operator is not run, as (kind, line); None: it is."""
    try:
        find(name)
    except NotRun as not_run:
        return not_run.kind, str(not_run)
    return None


REASONS = {name: reason(name) for name in names()}
RUN = [name for name in REASONS if REASONS[name] is None and name not in SLOW]
VOLUMES = [name for name in RUN if len(find(name).shape) == 4]


class Toy(ConvNet):
    """A toy network that tells its channels, as a trained one does."""

    def __init__(self, channels):
        super().__init__(channels)
        self.config = SimpleNamespace(in_channels=channels, sample_size=16)


def prior_of(shape):
    prior = toy_prior(Toy(shape[0]), dtype=torch.float32)
    return prior if len(shape) == 3 else Slicewise(prior)


@cache
def observed(name):
    """The operator, two smooth images or one, their measurements and noise."""
    case = find(name)
    count = 1 if name in ONE_IMAGE_ONLY else 2
    size = case.shape[1:]
    coarse = torch.rand(count, case.shape[0], *[3] * len(size), generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(0.2 + 0.6 * coarse, size, mode="bilinear" if len(size) == 2 else "trilinear")
    return case, x, *case.observe(x)


@cache
def reconstructed(name, method, passes):
    case, _, y, _ = observed(name)
    return method(prior_of(case.shape), max_passes=passes)(y, case.physics)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RUN)
def test_every_operator_is_fitted_down_to_its_noise(name, method):
    case, x, y, sigma = observed(name)
    x_hat = reconstructed(name, method, MORE_PASSES.get(name, PASSES))
    assert x_hat.shape == x.shape
    assert x_hat.dtype == (torch.float64 if "scattering" in name or "complex" in name else torch.float32)
    assert x_hat.device == x.device
    assert x_hat.isfinite().all()
    before = case.residual(torch.full_like(x, 0.5), y)
    # 1 is the noise; these networks, which were never trained, make few images
    fitted = before if name in OTHER_MINIMA else 2 * sigma
    assert (case.residual(x_hat, y) < fitted).all()


@cache
def in_double(name):
    """A prior, the measurements and the operator in double precision, where deepinv's takes it."""
    case, _, y, _ = observed(name)
    prior = prior_of(case.shape)
    wide = like_parts(y, [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in parts(y)])
    try:
        physics = copy.deepcopy(case.physics).double()
        DMILO(prior.double(), max_passes=1)(wide, physics)
        return prior, wide, physics
    except (ValueError, TypeError, RuntimeError):
        return prior.float(), y, case.physics


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RUN)
def test_an_image_is_the_same_again_and_alone(name, method):
    prior, y, physics = in_double(name)
    model = method(prior, max_passes=10)
    difference = (model(take(y, torch.tensor([0])), physics) - model(y, physics)[:1]).abs().mean()
    # rounding of sums over another batch, amplified by steps that are accepted or not
    assert difference < (1e-4 if prior.network.first.weight.dtype == torch.float64 else ROUGH.get(name, 1e-3))


def test_what_is_not_run_names_its_reason():
    """Images of several things, and packages that are not there: no fault of ours."""
    kinds = {name: why[0] for name, why in REASONS.items() if why}
    assert set(kinds.values()) <= {"package", "no image"}
    assert len(RUN) >= 65  # of the 75 of deepinv 0.5
    for name in (n for n, kind in kinds.items() if kind == "package"):
        assert re.search(r"install|available|missing|require", REASONS[name][1]), REASONS[name]


@pytest.mark.parametrize("name", SLOW)
def test_an_operator_that_takes_minutes_passes_the_door(name):
    case, x, y, _ = observed(name)
    assert DMILO(prior_of(case.shape)).check(y, case.physics) == tuple(x.shape)


@pytest.mark.parametrize("name", VOLUMES)
def test_a_volume_is_refused_at_the_door_with_what_to_type(name):
    case, _, y, _ = observed(name)
    with pytest.raises(ValueError, match=r"type Slicewise\(prior\)"):
        DMILO(prior_of(case.shape).prior).check(y, case.physics)
