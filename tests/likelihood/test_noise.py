"""The noise of measurements: of any model, by simulation; of parts, masks and batches; as the network sees it."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting, PoissonNoise
from toys import observe, prior_that_believes

from deepinv_dmilo import DMILO, DMILOPGD, DiffusionPrior, Levels
from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.noise import simulated_variance
from deepinv_dmilo.posterior.noise_estimation import estimated_variance
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.utils.draws import Draws

IMAGE = (3, 24, 40)


def noise_variance(x, physics, noise_level=None):
    """The variance that a reconstruction takes the noise of a measurement to have near x."""
    likelihood = observe(physics.A(x), physics, noise_level=noise_level)
    return likelihood.forward.units.scale**2 * variance_at(x, likelihood)


def variance_at(x, likelihood):
    """The same in its units; 0: nobody told."""
    if not isinstance(likelihood, Gaussian):
        return likelihood.mean_variance(x)
    return likelihood.simulated_at(x).variance * (likelihood.source != "estimated")


def test_noise_of_measurements_that_are_mostly_left_alone_is_averaged_over_all():
    x = torch.rand(2, *IMAGE)
    x[:, :, :12] = 0  # where Poisson noise is 0
    variance = noise_variance(x, dinv.physics.Denoising(PoissonNoise(0.02)))
    torch.testing.assert_close(variance, 0.02 * x.flatten(1).mean(1), rtol=0.1, atol=0)


def test_noise_of_complex_measurements_is_that_of_their_parts():
    """deepinv's sigma is that of both parts together."""
    physics = dinv.physics.LinearPhysics(A=torch.fft.fft2, A_adjoint=torch.fft.ifft2, noise_model=GaussianNoise(0.1))
    x = torch.rand(2, *IMAGE)
    torch.testing.assert_close(noise_variance(x, physics), torch.full((2,), 0.005), rtol=0.1, atol=0)
    torch.testing.assert_close(noise_variance(x, physics, 0.1), torch.full((2,), 0.005))


def test_a_noise_model_that_refuses_the_image_is_no_reason_to_stop():
    class Speckle(dinv.physics.GammaNoise):
        """Wants positive values."""

    x, black = torch.rand(1, *IMAGE), torch.zeros(1, *IMAGE)
    likelihood = observe(x, dinv.physics.Denoising(Speckle(3.0)))
    with pytest.warns(RuntimeWarning, match="type noise_level="):
        assert simulated_variance(black, likelihood.rows, likelihood.forward).tolist() == [0]
    assert torch.equal(likelihood.simulated_at(black).variance, likelihood.variance)  # that of another image
    assert likelihood.variance > 0


@pytest.mark.parametrize("model", [GaussianNoise(0.03), PoissonNoise(0.01)])
def test_noise_of_any_kind_is_found_by_simulation(model):
    """Masked pixels carry no noise and must not count; a sample's variance does not depend on its batch."""
    physics = Inpainting(IMAGE, mask=0.3, rng=torch.Generator().manual_seed(0), noise_model=model)
    x = torch.cat((torch.full((1, *IMAGE), 0.2), torch.full((1, *IMAGE), 0.8)))
    expected = [0.03**2] * 2 if isinstance(model, GaussianNoise) else [0.2 * 0.01, 0.8 * 0.01]
    before = torch.random.get_rng_state()
    variance = noise_variance(x, physics)
    # four draws of about 860 values: the variance of a variance is 2 / 3440
    torch.testing.assert_close(variance, torch.tensor(expected), rtol=0.1, atol=0)
    assert torch.equal(noise_variance(x[1:], physics), variance[1:])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_simulation_leaves_the_generator_of_the_physics_as_it_was():
    noise = GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
    physics = Inpainting(IMAGE, mask=0.3, noise_model=noise).double()
    rng = physics.noise_model.rng
    state = rng.get_state()
    noise_variance(torch.rand(2, *IMAGE).double(), physics)
    assert physics.noise_model.rng is rng
    assert torch.equal(rng.get_state(), state)


def test_noise_that_is_given_or_not_there():
    x = torch.rand(2, *IMAGE)
    physics = Inpainting(IMAGE, mask=0.3)
    assert noise_variance(x, physics, 0.1).tolist() == pytest.approx([0.01, 0.01])
    assert noise_variance(x, physics).tolist() == [0, 0]
    y = physics.A(x + 0.1)  # masked pixels agree by themselves and must not count
    torch.testing.assert_close(observe(y, physics).residual_variance(x), torch.full((2,), 0.01))


def test_what_the_network_sees_of_noise_that_nobody_told():
    """Of digits that it knows, with noise of their own; the same for each image alone, and with unreached pixels."""
    prior = DiffusionPrior.from_pretrained("digits")
    x, mask = held_out_images("digits")[:3], (torch.rand(1, 1, 32, 32) < 0.6).float()
    sigma = torch.tensor([0.01, 0.03, 0.08])
    y = mask * (x + sigma.view(3, 1, 1, 1) * torch.randn(x.shape))

    def seen(rows):
        y_rows, physics = y[rows], Inpainting((1, 32, 32), mask)
        posterior = Posterior(prior, observe(y_rows, physics), Draws(0))
        with torch.no_grad():
            return posterior.likelihood.forward.units.scale * estimated_variance(posterior, x[rows], most=0.1).sqrt()

    together = seen([0, 1, 2])
    torch.testing.assert_close(together, sigma, rtol=0.3, atol=0)
    torch.testing.assert_close(seen([0])[0], together[0], rtol=1e-3, atol=0)


def test_noise_of_an_operator_with_a_mask_for_every_sample():
    physics = Inpainting(IMAGE, mask=(torch.rand(2, *IMAGE) > 0.5).float(), noise_model=GaussianNoise(0.03))
    variance = noise_variance(torch.rand(2, *IMAGE), physics)
    torch.testing.assert_close(variance, torch.full((2,), 0.03**2), rtol=0.1, atol=0)  # as above


@pytest.mark.parametrize("model", [GaussianNoise(torch.tensor([0.01, 0.2])), PoissonNoise(torch.tensor([0.01, 0.1]))])
def test_noise_of_its_own_for_every_image_of_one_operator(model):
    x = torch.full((2, *IMAGE), 0.5)
    expected = [1e-4, 0.04] if isinstance(model, GaussianNoise) else [0.005, 0.05]
    variance = noise_variance(x, dinv.physics.Denoising(model))
    torch.testing.assert_close(variance, torch.tensor(expected), rtol=0.1, atol=0)  # as above


def test_noise_where_the_image_does_not_reach_does_not_count():
    """A mask that somebody wrote, whose hidden pixels carry noise all the same; complex values of a real operator."""
    mask = (torch.rand(1, *IMAGE, generator=torch.Generator().manual_seed(3)) < 0.1).float()
    x = torch.rand(2, *IMAGE)
    masked = dinv.physics.LinearPhysics(A=lambda x: mask * x, A_adjoint=lambda y: y, noise_model=GaussianNoise(0.05))
    # four draws of about 290 values: the variance of a variance is 2 / 1160
    torch.testing.assert_close(noise_variance(x, masked), torch.full((2,), 0.0025), rtol=0.2, atol=0)
    y = masked.A(x) + 0.1
    silent = dinv.physics.LinearPhysics(A=masked.A, A_adjoint=lambda y: y)
    torch.testing.assert_close(observe(y, silent).residual_variance(x), torch.full((2,), 0.01))
    complex_valued = dinv.physics.LinearPhysics(
        A=lambda x: x.to(torch.complex64), A_adjoint=lambda y: y.real, noise_model=GaussianNoise(0.05)
    )
    torch.testing.assert_close(noise_variance(x, complex_valued), torch.full((2,), 0.00125), rtol=0.1, atol=0)


class OfTensor(dinv.physics.NoiseModel):
    """A user's noise, by a tensor that torch knows or does not."""

    def __init__(self, noise, tensor, *, is_known=True):
        super().__init__()
        self.noise = noise
        if is_known:
            self.register_buffer("tensor", tensor)
        else:
            self.tensor = tensor

    def forward(self, x, seed=None, **kwargs):
        return x + self.noise(self.tensor, x) * torch.randn_like(x)


def scaled(sizes, x):
    return sizes


def of_table(sizes, x):
    return sizes[(x.clamp(0, 0.999) * len(sizes)).long()]


def mixed(sizes, x):
    return (sizes[..., None, None] * x.new_ones(1, 3, 3, 1, 1)).diagonal(dim1=1, dim2=2).permute(0, 3, 1, 2)


SIZES = torch.tensor([0.01, 0.05, 0.4])


@pytest.mark.parametrize(("noise", "tensor"), [(scaled, SIZES.view(3, 1, 1)), (of_table, SIZES), (mixed, SIZES.diag())])
def test_tensors_of_noise_that_are_as_many_as_the_images_may_be_of_all(noise, tensor):
    """Of channels, of a table of grey values; three of them, as there are images."""
    x = torch.rand(3, *IMAGE)

    def found(rows):
        physics = dinv.physics.Denoising(OfTensor(noise, tensor))
        likelihood = observe(x[rows], physics)
        (sizes,) = likelihood.forward.units.relative or (torch.ones_like(x[rows]),)  # one at mid-grey, by a table
        return sizes, variance_at(x[rows], likelihood)

    together, alone = found([0, 1, 2]), [found([row]) for row in range(3)]
    for whole, ones in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(ones))


@pytest.mark.parametrize("is_known", [True, False])
def test_noise_of_each_image_that_torch_does_or_does_not_know_of(is_known):
    """Four draws of 2880 values: the variance of a variance is 2 / 11520."""
    physics = dinv.physics.Denoising(OfTensor(scaled, SIZES.view(3, 1, 1, 1), is_known=is_known))
    x = torch.rand(3, *IMAGE)
    torch.testing.assert_close(noise_variance(x, physics), SIZES.square(), rtol=0.1, atol=0)


def of_brightness(size, x):
    return size * x.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_noise_that_is_drawn_is_that_of_the_image_so_far(method):
    """From a white image on, whose noise is five times that of the picture."""
    physics = dinv.physics.Denoising(OfTensor(of_brightness, torch.tensor(0.5)))
    x = torch.full((2, *IMAGE), 0.2)
    model = method(prior_that_believes().float(), max_passes=30, schedule=Levels((1.0, 0.5, 0.2)))
    _, metrics = model(physics(x), physics, init=torch.ones_like(x), compute_metrics=True)
    for curve in metrics["noise"]:
        assert curve[0] == pytest.approx(0.5, rel=0.05)  # of four draws of 2,880 numbers
        assert curve[-1] == pytest.approx(0.1, rel=0.3)  # the image errs yet
