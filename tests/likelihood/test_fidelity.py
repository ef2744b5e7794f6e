"""Data fidelities that the user gives: followed by all steps, one value for each image."""

import deepinv as dinv
import pytest
import torch
from deepinv.utils import TensorList
from toys import AffineNet, ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Levels

IMAGE = (3, 24, 40)
SHORT = {"schedule": Levels((1.0, 0.2)), "solver": LBFGS(steps=4)}


def test_the_likelihood_that_is_given_is_the_one_that_is_fitted(prior, inpainting):
    """Gaussian noise as a data fidelity of deepinv, and as a noise level, are the same images."""
    physics, y = inpainting
    exact = toy_prior(ConvNet())
    plain = Levels((1.0, 0.2), skip=False, mean=False, deviation_threshold=None)
    level, fidelity = (
        DMILO(exact, **{**SHORT, "schedule": plain}, **s)(y.double(), physics.double(), init=torch.full_like(y, 0.5))
        for s in ({"noise_level": 0.1}, {"data_fidelity": dinv.optim.L2(sigma=0.1)})
    )
    torch.testing.assert_close(level, fidelity, rtol=0, atol=1e-6)  # of the noise level that weighs nothing else


def test_a_likelihood_of_negative_values_is_minimised(inpainting):
    """A constant in the likelihood, which has none of its own, changes nothing."""

    class Shifted(dinv.optim.DataFidelity):
        def fn(self, x, y, physics, *args, **kwargs):
            return (physics.A(x) - y).square().flatten(1).sum(1) / 0.02 - 1e5

    physics, y = inpainting
    settings = {"schedule": Levels((0.5,), deviation_threshold=None), "solver": LBFGS(steps=60, tolerance=1e-8)}
    convex = toy_prior(AffineNet(0.5, 0.0625), prediction_type="sample", clip_sample=False)
    y, physics = y.double(), physics.double()
    shifted = DMILO(convex, data_fidelity=Shifted(), **settings)(y, physics)
    plain = DMILO(convex, data_fidelity=dinv.optim.L2(sigma=0.1), **settings)(y, physics)
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-4)  # another first step ends elsewhere within tolerance


def test_a_fidelity_that_adds_up_a_batch_is_refused(prior, inpainting):
    class Summed(dinv.optim.DataFidelity):
        def fn(self, x, y, physics, *args, **kwargs):
            return (physics.A(x) - y).square().flatten(1).sum(1) + x.sum()

    physics, y = inpainting
    with pytest.raises(ValueError, match="pass one that gives a value for each image"):
        DMILO(prior, data_fidelity=Summed())(y, physics)
    with pytest.raises(TypeError, match="data_fidelity is a function"):
        DMILO(prior, data_fidelity=lambda x: x)(y, physics)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_robust_likelihood_is_what_all_steps_follow(method):
    """Measurements with a row of outliers, for the latents, the first image and the gradient steps alike."""

    class Robust(dinv.optim.DataFidelity):
        def fn(self, x, y, physics, *args, **kwargs):
            scaled = (physics.A(x) - y) / 0.1
            return ((1 + scaled.square()).sqrt() - 1).flatten(1).sum(1)

    x = torch.full((2, *IMAGE), 0.5).double()
    y = x.clone()
    y[:, :, 5] = 1.0
    prior = toy_prior(AffineNet(0.1, 0.0), prediction_type="sample")  # of images about mid-grey
    schedule = Levels((0.5, 0.1), skip=False, mean=False, deviation_threshold=None)
    settings = {"schedule": schedule, "max_passes": 40}
    errors = {}
    for name, likelihood in (("robust", {"data_fidelity": Robust()}), ("squares", {"noise_level": 0.1})):
        x_hat = method(prior, **settings, **likelihood)(y, dinv.physics.Denoising())
        errors[name] = (x_hat - x)[:, :, 5].abs().mean()
    assert errors["robust"] < 0.5 * errors["squares"]


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_fidelity_of_a_stack_with_a_kernel_for_each_image(micro_batch):
    kernels = torch.rand(3, 1, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    blur, plain = dinv.physics.Blur(kernels, padding="circular"), dinv.physics.Denoising()
    physics = dinv.physics.StackedLinearPhysics([blur, plain])
    y = physics.A(torch.rand(3, *IMAGE).double())
    fidelity = dinv.optim.data_fidelity.StackedPhysicsDataFidelity([dinv.optim.L2(0.1), dinv.optim.L2(0.1)])
    settings = {**SHORT, "schedule": Levels((1.0, 0.2), deviation_threshold=None), "micro_batch": micro_batch}
    given = DMILO(toy_prior(ConvNet()), data_fidelity=fidelity, **settings)
    x = given(y, physics)
    alone = dinv.physics.StackedLinearPhysics([dinv.physics.Blur(kernels[1:2], padding="circular"), plain])
    one = given(dinv.utils.TensorList([t[1:2] for t in y]), alone)
    torch.testing.assert_close(x[1:2], one, rtol=0, atol=1e-6)


def test_a_fidelity_may_ask_the_physics_for_more_than_a(prior, inpainting):
    class Projected(dinv.optim.DataFidelity):
        def fn(self, x, y, physics, *args, **kwargs):
            scale = physics.noise_model.sigma if hasattr(physics.noise_model, "sigma") else 0.1
            return (physics.A_adjoint(physics.A(x) - y) / scale).square().flatten(1).sum(1)

    physics, y = inpainting
    x_hat = DMILO(prior, data_fidelity=Projected(), max_passes=4)(y, physics)
    assert x_hat.isfinite().all()


def test_the_fidelity_of_a_stack_may_have_a_poisson_member(prior):
    """deepinv 0.5's adds up the batch; the example of deepinv's documentation."""
    members = [
        dinv.physics.Denoising(noise) for noise in (dinv.physics.GaussianNoise(0.1), dinv.physics.PoissonNoise(0.1))
    ]
    physics = dinv.physics.StackedLinearPhysics(members)
    y = physics(torch.rand(2, *IMAGE))
    fidelity = dinv.optim.StackedPhysicsDataFidelity(
        [dinv.optim.L2(0.1), dinv.optim.PoissonLikelihood(gain=0.1, bkg=0.1)]
    )
    model = DMILO(prior, data_fidelity=fidelity, max_passes=4)
    alone = model(TensorList([t[1:] for t in y]), physics)
    torch.testing.assert_close(model(y, physics)[1:], alone, rtol=0, atol=1e-4)


def test_a_fidelity_without_a_gradient_is_told(prior, inpainting):
    physics, y = inpainting
    with pytest.raises(ValueError, match="ZeroFidelity has no gradient; pass one that is written in torch"):
        DMILO(prior, data_fidelity=dinv.optim.ZeroFidelity())(y, physics)


def test_a_fidelity_that_does_not_fit_says_why(prior):
    fidelity = dinv.optim.data_fidelity.IndicatorL2()
    with pytest.raises(ValueError, match="cannot be called as fidelity"):
        DMILO(prior, data_fidelity=fidelity)(torch.rand(2, *IMAGE) + 0.1, dinv.physics.Denoising())
