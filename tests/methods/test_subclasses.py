"""Subclasses of the methods, as users write them."""

import copy
import pickle
from dataclasses import dataclass

import deepinv as dinv
import pytest
import torch
from diffusers import DDIMScheduler
from toys import tiny_unet

from deepinv_dmilo import DMILO, DiffusionPrior


class Mine(DMILO):
    """A subclass with a constructor of its own."""

    def __init__(self, prior, extra=1, **settings):
        super().__init__(prior, **settings)
        self.extra = extra


@dataclass(eq=False, repr=False, kw_only=True)
class WithField(DMILO):
    """A subclass with a setting of its own."""

    extra: int = 1


@dataclass
class Bare(DMILO):
    """A subclass as one is written without a thought of equality."""

    extra: int = 1


@pytest.fixture
def prior():
    return DiffusionPrior(tiny_unet(), DDIMScheduler())


@pytest.mark.parametrize("method", [Mine, WithField])
def test_a_subclass_has_settings_of_its_own(prior, method):
    model = method(prior, extra=2, max_passes=5)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (same.extra, same.max_passes) == (2, 5)
    y, physics = torch.rand(1, 1, 8, 8), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    assert torch.equal(model(y, physics), DMILO(prior, max_passes=5)(y, physics))
    with pytest.raises(TypeError, match="max_pases"):
        method(prior, max_pases=5)


def test_a_setting_that_a_subclass_computes_is_computed_once(prior):
    @dataclass(eq=False, repr=False, kw_only=True)
    class Doubled(DMILO):
        def __post_init__(self):
            self.max_passes = (self.max_passes or 5) * 2
            super().__post_init__()

    y, physics = torch.rand(1, 1, 8, 8), dinv.physics.Inpainting((1, 8, 8), mask=0.3)
    model = Doubled(prior)
    assert model.max_passes == 10
    passes = [m(y, physics, compute_metrics=True)[1]["passes"] for m in (model, model, DMILO(prior, max_passes=10))]
    assert passes[0] == passes[1] == passes[2]


def test_a_subclass_under_a_bare_dataclass_is_a_module_as_others(prior):
    model = Bare(prior, extra=2, max_passes=5)
    assert model.extra == 2
    assert model != Bare(prior, extra=2, max_passes=5)
    assert not torch.nn.Sequential(model).eval()[0].training  # which asks for its hash
    assert "max_passes=5" in repr(model)


def test_a_subclass_may_have_an_equality_of_its_own(prior):
    class Equal(DMILO):
        def __eq__(self, other):
            return isinstance(other, Equal)

    assert Equal(prior) == Equal(prior)


def test_a_constructor_of_a_subclass_says_what_it_takes(prior):
    class Fixed(DMILO):
        def __init__(self, prior, extra=1):
            super().__init__(prior, max_passes=extra)

    assert Fixed(prior, extra=3).max_passes == 3
    with pytest.raises(TypeError, match="Fixed has no setting 'max_passes': type some of prior, extra"):
        Fixed(prior, max_passes=3)
    with pytest.raises(TypeError, match="WithField has no setting 'extr': type extra"):
        WithField(prior, extr=2)
