"""The unit of the measurements does not matter; what is told of them stays in it."""

import deepinv as dinv
import pytest
import torch
from toys import ConvNet, observe, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Levels

IMAGE = (1, 12, 20)
KERNEL = dinv.physics.functional.gaussian_blur(sigma=(0.8, 0.8))


class Scaled(dinv.physics.LinearPhysics):
    """A blur in another unit."""

    def __init__(self, unit, noise=0.01):
        super().__init__(noise_model=dinv.physics.GaussianNoise(noise * unit))
        self.unit, self.blur = unit, dinv.physics.BlurFFT(IMAGE, filter=KERNEL)

    def A(self, x, **kwargs):
        return self.unit * self.blur.A(x)

    def A_adjoint(self, y, **kwargs):
        return self.unit * self.blur.A_adjoint(y)


def measured():
    x = torch.rand(2, *IMAGE)
    return x, dinv.physics.BlurFFT(IMAGE, filter=KERNEL).A(x) + 0.01 * torch.randn(2, *IMAGE)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])  # 1e-12, 1e12
def test_images_are_the_same_in_every_unit_and_metrics_are_in_it(method, unit):
    """A power of two changes no digit of y, so none of the image."""
    _, y = measured()
    model = method(toy_prior(ConvNet(1), dtype=torch.float32), max_passes=6, schedule=Levels((1.0, 0.2)))
    plain, scaled = (model(u * y, Scaled(u), compute_metrics=True) for u in (1.0, unit))
    assert torch.equal(plain[0], scaled[0])
    for name in ("noise", "residual"):
        expected = [[unit * v for v in row] for row in plain[1][name]]
        assert scaled[1][name] == expected
    assert plain[1]["noise"][0][-1] == pytest.approx(0.01, rel=0.1)  # of four draws of 240 values


@pytest.mark.parametrize("unit", [1e-9, 1e9])
@pytest.mark.parametrize("kind", ["noise_level", "data_fidelity", "nobody told"])
def test_what_the_user_tells_of_the_noise_is_in_the_unit_of_y(unit, kind):
    _, y = measured()

    def image(unit):
        told = {
            "noise_level": {"noise_level": 0.01 * unit},
            "data_fidelity": {"data_fidelity": dinv.optim.L2(sigma=0.01 * unit)},
            "nobody told": {},
        }[kind]
        physics = Scaled(unit)
        physics.noise_model = dinv.physics.ZeroNoise()
        prior = toy_prior(ConvNet(1)).double()
        return DMILO(prior, max_passes=6, schedule=Levels((1.0, 0.2)), **told)(unit * y.double(), physics.double())

    torch.testing.assert_close(image(unit), image(1.0), rtol=0, atol=1e-4)  # 1e-9 is no power of two: rounding


@pytest.mark.parametrize("step_size", [0.5, "auto"])
def test_a_step_size_that_is_given_is_of_measurements_as_they_are(step_size):
    """Twice the unit, a quarter of the step: the same image."""
    _, y = measured()
    prior, solver = toy_prior(ConvNet(1), dtype=torch.float32), LBFGS(steps=2)

    def image(unit):
        step = step_size if step_size == "auto" else step_size / unit**2
        return DMILOPGD(prior, solver=solver, step_size=step, schedule=Levels((0.5,)))(unit * y, Scaled(unit))

    assert torch.equal(image(1.0), image(2.0))
    if step_size != "auto":
        moved = DMILOPGD(prior, solver=solver, step_size=0.1, schedule=Levels((0.5,)))(y, Scaled(1.0))
        assert not torch.equal(image(1.0), moved)


def test_residuals_and_noise_levels_of_a_likelihood_are_counted():
    x, y = measured()
    plain, small = (observe(u * y, Scaled(u), noise_level=0.1 * u) for u in (1.0, 2.0**-60))
    assert torch.equal(plain.mean_variance(x), small.mean_variance(x))
    torch.testing.assert_close(small.rms(x), 2.0**-60 * plain.rms(x), rtol=0, atol=0)
    assert torch.equal(plain.forward.squared_norm, small.forward.squared_norm)
    assert torch.equal(plain.forward.usual_energy, small.forward.usual_energy)
