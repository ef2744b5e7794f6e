"""Our versions of the rivals: which measurements count for their stops and radii, on physics of any kind."""

import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise, Inpainting, LinearPhysics, stack
from toys import ConvNet, prior_that_believes, toy_prior

from deepinv_dmilo.benchmarks.rivals import DAPS, FASTDIPS, SITCOM, DataTerm

NOISE, SHAPE = 0.05, (3, 24, 40)
MASKS = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) < 0.1


class Times(LinearPhysics):
    """A(x) = factor x; deepinv's own masks hide the noise with the pixels, this one does not."""

    def __init__(self, factor):
        super().__init__(noise_model=GaussianNoise(NOISE))
        self.register_buffer("factor", factor)

    def A(self, x, **kwargs):
        return self.factor * x

    def A_adjoint(self, y, **kwargs):
        return (self.factor.conj() * y).real


def masked(masks):
    return Inpainting(SHAPE, mask=masks.float(), noise_model=GaussianNoise(NOISE))


PHYSICS = {
    "mask": lambda: masked(MASKS[:1]),
    "mask of each image": lambda: masked(MASKS),
    "noise behind the mask": lambda: Times(MASKS[:1].float()),
    "complex": lambda: Times(MASKS[:1] * torch.exp(torch.tensor(1j))),
    "stack": lambda: stack(masked(MASKS[:1]), Denoising(GaussianNoise(NOISE))),
}


@pytest.fixture
def x():
    return 0.3 + 0.4 * torch.rand(2, *SHAPE)


def term(x, y, physics):
    return DataTerm(y, physics, tuple(x.shape), 2 * NOISE)


@pytest.mark.parametrize("name", PHYSICS)
def test_the_true_images_have_the_energy_of_the_noise(name, x):
    """Of 260 measurements at least: the energy's standard deviation is a twelfth of it, at most."""
    physics = PHYSICS[name]()
    data = term(x, physics(x), physics)
    torch.testing.assert_close(data.misfit(2 * x - 1) / data.noise_energy, torch.ones(2), rtol=0, atol=0.3)


@pytest.mark.parametrize("masks", [MASKS[:1], MASKS], ids=["one mask", "a mask of each image"])
def test_sitcom_goes_on_to_the_noise_of_the_known_pixels(masks, x):
    """Where it stops; its last step takes it a little farther. All pixels counted it stops at nine times as much."""
    physics = masked(masks)
    y = physics(x)
    with torch.no_grad():
        x_hat = SITCOM(prior_that_believes().float(), SHAPE, NOISE, 0.1, steps=2, inner=100)(y, physics)
    data = term(x, y, physics)
    ratio = data.misfit(2 * x_hat - 1) / data.noise_energy
    assert (ratio <= 1).all()
    assert (ratio > 0.5).all()


@pytest.mark.parametrize("masks", [MASKS[:1], MASKS], ids=["one mask", "a mask of each image"])
def test_the_ball_of_fast_dips_is_that_of_the_noise_of_the_known_pixels(masks, x):
    """An image of noise alone ends about there: ten rounds err by a sixth. All pixels counted it is 0.95, not 0.3."""
    physics = masked(masks)
    y = physics(x)
    rival = FASTDIPS(prior_that_believes().float(), SHAPE, NOISE, 1e4, steps=1)
    rival.rounds = 10
    data = term(x, y, physics)
    residual = data.misfit(2 * rival(y, physics) - 1).sqrt()
    torch.testing.assert_close(residual / data.noise_energy.sqrt(), torch.full((2,), rival.ball), rtol=0, atol=0.1)


def test_the_steps_of_fast_dips_descend_and_reach_the_ball():
    """With a large penalty the image nearest to the anchor in the ball: for denoising, on the line to y."""
    rival = FASTDIPS(toy_prior(ConvNet()), (3, 8, 8), 0.05, 1e4, steps=3)
    rival.rounds = 50
    anchor, y = torch.zeros(2, 3, 8, 8).double(), torch.rand(2, 3, 8, 8).double()
    found = rival.corrected(anchor, 1.0, rival.data(y, Denoising()))
    radius = rival.ball * 2 * 0.05 * (3 * 8 * 8) ** 0.5
    far = (2 * y - 1 - anchor).flatten(1).norm(dim=1)
    expected = anchor + (1 - radius / far).view(2, 1, 1, 1) * (2 * y - 1 - anchor)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def test_the_curvature_that_daps_steps_by_is_that_of_each_image():
    """A mask's norm is 1, whatever it hides; to a hundredth, as the power method is."""
    rival = DAPS(toy_prior(ConvNet(), dtype=torch.float32), SHAPE, NOISE, 0.1, steps=2, flow=1)
    steepest = rival.steepest(torch.zeros(2, *SHAPE), masked(MASKS))
    torch.testing.assert_close(steepest, torch.full((2, 1, 1, 1), 1 / (2 * NOISE) ** 2), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [(SITCOM, {"steps": 2, "inner": 2}), (DAPS, {"steps": 2, "flow": 1}), (FASTDIPS, {"steps": 2})],
)
def test_rivals_take_measurements_of_any_kind(kind, settings, name, x):
    physics = PHYSICS[name]()
    rival = kind(toy_prior(ConvNet(), dtype=torch.float32), SHAPE, NOISE, 0.1, **settings)
    with torch.no_grad():
        x_hat = rival(physics(x), physics)
    assert x_hat.shape == x.shape
    assert torch.isfinite(x_hat).all()
