"""First guesses of unknown parameters: what constrains them, and what does not fit."""

import warnings

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from toys import ConvNet, Gain, prior_that_believes, toy_prior

from deepinv_dmilo import DMILO, Custom, Free, Positive, Simplex
from deepinv_dmilo.likelihood.constraints import check_unknown
from deepinv_dmilo.tools.tasks import gaussian_kernel

SHAPE = (3, 12, 20)


def test_a_kernel_of_each_channel_adds_to_one():
    kernel = torch.rand(1, 3, 5, 5)
    guess = Simplex(kernel)
    torch.testing.assert_close(guess.value(guess.raw()).sum((2, 3)), torch.ones(1, 3))
    known = kernel / kernel.sum((2, 3), keepdim=True)
    assert isinstance(check_unknown({"filter": known})["filter"], Simplex)


@pytest.mark.parametrize("unknown", ["filter", torch.ones(1, 1, 5, 5), {3: torch.ones(1, 1)}])
def test_what_names_no_parameter_is_told(unknown):
    with pytest.raises(TypeError, match=r"pass first guesses by the names that physics\.update takes"):
        DMILO(prior_that_believes(), unknown=unknown)


@pytest.mark.parametrize(
    ("unknown", "error", "message"),
    [
        ({"gain": 1.0}, TypeError, r"unknown\['gain'\] is a float; pass a first guess as a tensor"),
        ({"gain": torch.tensor(1.0)}, ValueError, r"shape \(1, ...\) or \(B, ...\)"),
        ({"gain": torch.ones(1, 1, 1, 1).int()}, ValueError, "pass finite floats"),
        ({"gain": Positive(torch.zeros(1, 1))}, ValueError, "Positive starts above 0; its least entry is 0"),
        ({"gain": Simplex(-torch.ones(1, 2))}, ValueError, "a Simplex starts at entries of at least 0"),
        ({"gian": Free(torch.ones(1, 1, 1, 1))}, ValueError, "a Gain has no parameter of that name; it has gain"),
        ({"gain": Free(torch.ones(3, 1, 1, 1))}, ValueError, r"has shape \(3, 1, 1, 1\) for 2 images; give one"),
        ({"noise_model": Free(torch.ones(1, 1))}, ValueError, "has no parameter of that name"),
        (
            {"idle": Free(torch.ones(1, 1))},
            ValueError,
            r"physics\.A\(x, idle=\.\.\.\) does not depend on it; A must take it",
        ),
        (
            {"gain": torch.ones(1, 1, 1, 1)},
            ValueError,
            r"constraint: Simplex\(.*, Positive\(tensor\) or Free\(",
        ),
        (
            {"gain": torch.ones(1, 1, 2, 2)},
            ValueError,
            "without nonnegative entries that sum to one; pass its con",
        ),
        ({"gain": Free(torch.ones(1, 3, 3))}, ValueError, r"\(1, 3, 3\) where that of the physics has four dimensions"),
        ({"gain": Custom(torch.ones(1, 1), 3)}, TypeError, "takes a function, not a int"),
        ({"gain": Free(None)}, TypeError, r"is Free\(<NoneType>\); pass a first guess as a tensor"),
        (
            {"gain": Simplex(torch.ones(9, 9).numpy())},
            TypeError,
            r"is Simplex\(<ndarray>\); pass a first guess as a tens",
        ),
        ({"gain": torch.full((3, 3), 1 / 9)}, ValueError, r"in each row; .* kernel, of shape \(1, 1, h, w\)"),
        ({"gain": Custom(torch.ones(1, 1), lambda t: t.reshape(3, 7))}, ValueError, "does not take two rows of start"),
        (
            {"gain": Custom(torch.ones(1, 1), lambda t: t.sum())},
            ValueError,
            r"maps two rows of start to shape \(\)",
        ),
        (
            {"gain": Custom(torch.ones(1, 1), lambda t: 3)},
            ValueError,
            "maps two rows of start to a int; it must",
        ),
        ({"gain": Custom(torch.ones(1, 1), lambda t: t[..., None, None] / 0)}, ValueError, "return finite parameters"),
        ({"gain": Free(torch.ones(3, 3))}, ValueError, r"of a kernel of two dimensions kernel\[None, None\]"),
        (
            {"sigma": Free(torch.ones(1, 1))},
            ValueError,
            "leave unknown noise out of the physics",
        ),
        ({}, TypeError, r"unknown is \{\}; pass first guesses by the names"),
        (torch.ones(1, 1), TypeError, "unknown is a Tensor; pass first guesses by the names"),
    ],
)
def test_unknown_parameters_that_do_not_fit_are_told(unknown, error, message):
    physics = Gain()
    physics.register_buffer("idle", torch.ones(1, 1))
    with pytest.raises(error, match=message):
        DMILO(toy_prior(ConvNet()), unknown=unknown)(torch.rand(2, *SHAPE).double(), physics)


@pytest.mark.parametrize(
    ("padding", "side", "message"),
    [
        ("circular", 13, "13 x 13 pixels, and the images 12 x 20"),
        ("valid", 9, "give the physics a guess of the same"),
        ("valid", 7, "7 x 7 pixels, and the images 6 x 14"),  # what is measured of them
    ],
)
def test_a_kernel_that_does_not_fit_is_told(padding, side, message):
    physics = dinv.physics.Blur(filter=gaussian_kernel(1.0, 7 if side == 7 else 5).double(), padding=padding)
    y = physics(torch.rand(1, *SHAPE).double())
    with pytest.raises(ValueError, match=message):
        DMILO(toy_prior(ConvNet()), unknown={"filter": Simplex(gaussian_kernel(2.0, side))}).check(y, physics)


@pytest.mark.parametrize(
    ("guess", "told"),
    [
        (gaussian_kernel(0.5, 9), "almost a single point"),
        (torch.full((1, 1, 9, 9), 1 / 81), "almost flat"),
        (gaussian_kernel(6.0, 9), "almost flat"),
        (gaussian_kernel(1.0, 9), None),
        (torch.full((1, 1, 3, 3), 1 / 9), None),
    ],
)
def test_a_kernel_that_the_search_may_not_leave_is_told(guess, told):
    physics = dinv.physics.BlurFFT(SHAPE, filter=guess.double(), noise_model=GaussianNoise(0.01))
    model = DMILO(toy_prior(ConvNet()), unknown={"filter": Simplex(guess)})
    y = physics(torch.rand(1, *SHAPE).double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.check(y, physics)
    messages = [str(w.message) for w in caught if "the search may not find the blur" in str(w.message)]
    assert len(messages) == (told is not None)
    assert all(f"unknown['filter'] is {told}, from which" in message for message in messages)


def test_a_kernel_of_other_channels_is_told():
    physics = dinv.physics.BlurFFT(SHAPE, filter=gaussian_kernel(1.0, 5).double())
    model = DMILO(toy_prior(ConvNet()), unknown={"filter": Simplex(gaussian_kernel(1.0, 5).repeat(1, 2, 1, 1))})
    with pytest.raises(ValueError, match="physics does not take unknown filter"):
        model.check(physics(torch.rand(1, *SHAPE).double()), physics)


def test_a_first_guess_is_printed_by_its_shape():
    model = DMILO(toy_prior(ConvNet()), unknown={"gain": Positive(torch.ones(1, 3, 1, 1))})
    assert "unknown={'gain': Positive(<tensor of shape (1, 3, 1, 1)>)}" in repr(model)


def test_unknown_parameters_are_asked_for_where_there_are_some():
    with pytest.raises(ValueError, match=r'type DMILO\(prior, unknown=\{"filter": kernel\}\)'):
        DMILO(toy_prior(ConvNet()))(torch.rand(1, *SHAPE).double(), Gain(), return_unknown=True)
    assert isinstance(DMILO(toy_prior(ConvNet()), unknown={"f": torch.full((1, 4), 0.25)}).unknown["f"], Simplex)
