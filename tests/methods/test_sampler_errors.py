"""What the sampler of the posterior refuses, with what to type."""

import deepinv as dinv
import pytest
import torch
from toys import GaussianImages

from deepinv_dmilo import DMILO, DiffusionPrior, DMILOSampler

Y, PHYSICS = torch.full((1, 1, 12, 16), 0.4).double(), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.05)).double()


def prior():
    return DiffusionPrior.from_denoiser(GaussianImages((12, 16)), max_noise=40.0)


def sampler(**settings):
    """Of five levels."""
    return DMILOSampler(prior(), **{"num_samples": 2, "sigmas": (5.0, 1.0, 0.3, 0.1, 0.03), **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_fidelity": dinv.optim.L2()}, "draws the noise of y; type noise_level="),
        ({"unknown": {}}, r"type DMILO\(prior, unknown="),
        ({"schedule": None}, r"type sigmas=\(\.\.\.\)"),
        ({"solver": None}, "nothing to solve; type max_calls="),
        ({"sigmas": (1.0, 0.5, 0.1)}, "sigmas has 3 levels; type at least 5"),
        ({"sigmas": ()}, "sigmas has 0 levels; type at least 5"),
        ({"sigmas": 3}, "sigmas=3: type at least 5 noise levels"),
        ({"sigmas": (1.0, 0.5, 0.6, 0.2, 0.1)}, "must decrease; type"),
        ({"sigmas": (1.0, 0.5, 0.2, 0.1, 0.0)}, r"sigmas\[4\]=0.0: type a number above 0"),
        ({"max_calls": 24}, "max_calls=24 .*type at least 25,"),
        ({"max_passes": 24, "num_samples": 2}, "max_passes=24 .*type at least 25,"),
        (
            {"max_calls": 20, "sigmas": (3.0, 1.0, 0.5, 0.2, 0.1, 0.05)},
            "sigmas sets the cost, 5 calls .*leave max_calls",
        ),
        ({"noise_level": -1.0}, "noise_level"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_settings_that_it_does_not_take(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DMILOSampler(prior(), **{"num_samples": 1, **settings})


@pytest.mark.parametrize("least", [{"max_calls": 25}, {"max_passes": 13}, {"max_passes": 25, "num_samples": 2}])
def test_the_least_budget_that_an_error_names_is_taken(least):
    model = DMILOSampler(prior(), **{"num_samples": 1, **least})
    ((_, plan),) = model.plan(Y, PHYSICS).groups
    assert len(plan.stages) == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantiles": (0.0, 0.5)}, r"quantiles=\(0.0, 0.5\) must be between 0 and 1; type quantiles=\(0.2, 0.8\)"),
        ({"quantiles": ()}, "must be between 0 and 1"),
        ({"quantiles": "middle"}, "quantiles='middle' are no numbers; type quantiles="),
        (
            {"quantiles": (0.1, 0.9)},
            "4 samples cannot tell the quantile 0.1; type num_samples=9, or quantiles from",
        ),
        ({"return_unknown": True}, r"no 'return_unknown'; its physics is known; .*type DMILO\(prior, unknown="),
        ({"num_samples": 8}, r"type DMILOSampler\(prior, num_samples=\.\.\.\)\(y, physics\)"),
    ],
)
def test_what_four_samples_do_not_tell(asked, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sampler(num_samples=4)(Y, PHYSICS, **asked)


def test_it_has_no_presets():
    with pytest.raises(ValueError, match=r"no preset 'inpainting' for DMILOSampler; type DMILOSampler\(prior\)"):
        DMILOSampler.from_preset("inpainting", prior())


def test_one_sample_has_no_spread():
    with pytest.raises(ValueError, match="return_std=True needs several samples; type num_samples=8"):
        sampler(num_samples=1)(Y, PHYSICS, return_std=True)
    with pytest.raises(TypeError, match=r"type DMILOSampler\(prior\)\(y, physics, return_std=\.\.\.\)"):
        DMILO(prior())(Y, PHYSICS, return_std=True)


def test_noise_with_outliers_needs_a_level():
    physics = dinv.physics.Denoising(dinv.physics.SaltPepperNoise(0.1, 0.1))
    with pytest.raises(ValueError, match=r"the noise model has outliers.*; type noise_level=\.\.\."):
        sampler()(Y, physics)
    assert torch.isfinite(sampler(noise_level=0.05)(Y, physics)).all()
