"""The likelihoods of noise models, and unknown parameters of a physics: against closed forms, and what they gain."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import (
    GammaNoise,
    GaussianNoise,
    LaplaceNoise,
    LogPoissonNoise,
    Physics,
    PoissonGaussianNoise,
    PoissonNoise,
    SaltPepperNoise,
)
from diffusers import DDIMScheduler
from toys import AffineNet, ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, Adam, Chain, Custom, DiffusionPrior, Free, Levels, Positive, Simplex
from deepinv_dmilo.core.likelihoods import likelihood_of, likelihoods_of
from deepinv_dmilo.core.unknown import check_unknown
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.reconstructors.run import Run

SHAPE = (3, 12, 20)
ROWS = torch.arange(1)


def told(noise, measured, y):
    """The negative log-likelihood of each measurement."""
    return likelihood_of(dinv.physics.Denoising(noise), y)(measured[None], y[None], ROWS)[0]


def least(mean):
    """Variance of counts that is added, of so many on average."""
    return mean * min(1.0, 0.03 + mean / 1000)


def of_counts(rate, counts, extra=0.0):
    return torch.distributions.Poisson(rate + extra, validate_args=False).log_prob(counts + extra)


@pytest.mark.parametrize(
    ("noise", "log_prob"),
    [
        (PoissonNoise(0.1), lambda a, y: of_counts(a / 0.1, y / 0.1, least(3.0))),
        (PoissonGaussianNoise(0.1, 0.2), lambda a, y: of_counts(a / 0.1, y / 0.1, 4.0 + least(3.0))),
        (LogPoissonNoise(100.0, 0.5), lambda a, y: of_counts(100 * torch.exp(-a / 2), 100 * torch.exp(-y / 2))),
        (GammaNoise(4.0), lambda a, y: torch.distributions.Gamma(4.0, 4.0 / a).log_prob(y)),
    ],
)
def test_likelihoods_are_those_of_torch_up_to_a_constant(noise, log_prob):
    a = torch.linspace(0.05, 1, 50).double()
    y = torch.full_like(a, 0.3)
    found, expected = told(noise, a, y), -log_prob(a, y)
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-6, atol=1e-6)  # float32 parameters
    assert found.min() >= 0


@pytest.mark.parametrize(
    "noise", [PoissonNoise(1e-4), PoissonGaussianNoise(1e-4, 0.1), PoissonGaussianNoise(3e-4, 0.02)]
)
def test_many_photons_and_much_noise_keep_their_digits(noise):
    """In float32; by then the distribution is about Gaussian."""
    y = torch.full((50,), 0.3)
    gain, sigma = float(noise.gain), float(getattr(noise, "sigma", 0.0))
    spread = (gain * 0.3 + sigma**2 + gain**2 * least(0.3 / gain)) ** 0.5
    a = y + spread * torch.linspace(-2, 2, 50)
    torch.testing.assert_close(told(noise, a, y), (a - y).square() / (2 * spread**2), rtol=0.2, atol=1e-3)


def test_parameters_of_the_noise_for_other_images_are_told():
    physics = dinv.physics.Denoising(PoissonNoise(torch.full((4,), 0.1)))
    with pytest.raises(ValueError, match="has 4 values of gain for 2 images; give it one for all, or one for each"):
        DMILO(prior_about_grey())(torch.rand(2, *SHAPE).double(), physics)


def test_no_gain_is_gaussian_noise():
    assert likelihood_of(dinv.physics.Denoising(PoissonGaussianNoise(0.0, 0.1)), torch.rand(1, *SHAPE)) is None


def test_laplace_noise_is_told_but_for_a_rounded_tip():
    a = torch.linspace(-1, 1, 51).double()
    torch.testing.assert_close(told(LaplaceNoise(0.1), a, torch.zeros_like(a)), a.abs() / 0.1, rtol=0, atol=0.011)


@pytest.mark.parametrize("noise", [PoissonNoise(0.05), PoissonGaussianNoise(0.05, 0.1), GammaNoise(8.0)])
def test_the_standard_deviation_of_a_measurement_is_that_of_draws(noise):
    torch.manual_seed(0)
    a = torch.tensor([0.2, 0.6, 1.0]).repeat(40_000, 1)
    expected = noise(a).std(0)
    std = likelihood_of(dinv.physics.Denoising(noise), a).std(a[:1], ROWS)[0]
    torch.testing.assert_close(std, expected, rtol=0.02, atol=0)  # 1 / sqrt(80,000) is 0.4 %


@pytest.mark.parametrize("noise", [PoissonNoise(0.05), PoissonGaussianNoise(0.05, 0.02), LaplaceNoise(0.05)])
def test_likelihoods_have_gradients_everywhere(noise):
    """Also of dark measurements, and of images that are darker than none."""
    a = torch.linspace(-0.5, 1, 31).double().requires_grad_()
    for y in (0.0, 0.02, 1.0):
        value = told(noise, a, torch.full_like(a, y))
        (gradient,) = torch.autograd.grad(value.sum(), a)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_gaussian_noise_counts_and_complex_measurements_keep_the_squares():
    x = torch.rand(1, 1, 4, 4)
    assert likelihood_of(dinv.physics.Denoising(GaussianNoise(0.1)), x) is None
    assert likelihood_of(dinv.physics.Denoising(PoissonNoise(0.1, normalize=False)), x) is None
    assert likelihood_of(dinv.physics.Denoising(PoissonNoise(0.1)), x.to(torch.complex64)) is None


def prior_about_grey(shrink=0.1):
    return toy_prior(AffineNet(shrink, 0.0), prediction_type="sample")


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("noise", [PoissonNoise(0.1), PoissonGaussianNoise(0.1, 0.05), LaplaceNoise(0.1)])
def test_a_batch_is_its_images_one_by_one(method, noise):
    torch.manual_seed(0)
    physics = dinv.physics.Denoising(noise).double()
    y = physics(torch.rand(3, *SHAPE).double())
    model = method(toy_prior(ConvNet()), schedule=Levels((1.0, 0.2)), max_passes=10)
    whole = model(y, physics)
    assert torch.isfinite(whole).all()
    for k in range(3):
        torch.testing.assert_close(model(y[k : k + 1], physics), whole[k : k + 1], rtol=0, atol=1e-6)


def test_a_gain_for_each_image_stays_with_it():
    gains = torch.tensor([0.02, 0.3])
    torch.manual_seed(0)
    x = torch.full((2, *SHAPE), 0.4).double()
    y = dinv.physics.Denoising(PoissonNoise(gains))(x)
    model = DMILO(toy_prior(ConvNet()), schedule=Levels((1.0, 0.2)), max_passes=10)
    whole = model(y, dinv.physics.Denoising(PoissonNoise(gains)).double())
    alone = model(y[1:], dinv.physics.Denoising(PoissonNoise(gains[1:])).double())
    torch.testing.assert_close(whole[1:], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_dead_pixels_are_left_out(method):
    torch.manual_seed(0)
    x = torch.full((1, *SHAPE), 0.5).double()
    physics = dinv.physics.Denoising(SaltPepperNoise(0.1, 0.0)).double()
    y = physics(x)
    settings = {"schedule": Levels((0.5, 0.1), skip=False), "max_passes": 40}
    own = method(prior_about_grey(), **settings)(y, physics)
    squares = method(prior_about_grey(), noise_level=0.15, **settings)(y, physics)
    dead = y == 0
    assert (own - x)[dead].abs().mean() < 0.5 * (squares - x)[dead].abs().mean()


def test_the_poisson_likelihood_of_deepinv_is_taken_image_by_image():
    """deepinv 0.5's adds one of its terms over the batch."""
    torch.manual_seed(0)
    physics = dinv.physics.Denoising(PoissonNoise(0.1)).double()
    y = physics(torch.rand(3, *SHAPE).double())
    fidelity = dinv.optim.PoissonLikelihood(gain=0.1, bkg=0.1)
    model = DMILO(toy_prior(ConvNet()), data_fidelity=fidelity, schedule=Levels((1.0, 0.2)), max_passes=10)
    whole = model(y, physics)
    torch.testing.assert_close(model(y[1:2], physics), whole[1:2], rtol=0, atol=1e-6)


# Unknown parameters

#: the image stays near the one that is given
NEAR = {"schedule": Levels((0.01,), skip=False, mean=False), "max_passes": 20}


def prior_that_believes():
    """Of any image, which is then what is shown of it."""

    class Shown(torch.nn.Module):
        def forward(self, z, t):
            abar = DDIMScheduler().alphas_cumprod[t].to(z).view(-1, 1, 1, 1)
            return z / abar.sqrt()

    return toy_prior(Shown(), prediction_type="sample", clip_sample=False)


class Gain(Physics):
    """A(x) = gain x, as a user writes it."""

    def __init__(self, gain=1.0, sigma=0.01):
        super().__init__(noise_model=GaussianNoise(sigma, rng=torch.Generator().manual_seed(0)))
        self.register_buffer("gain", torch.full((1, 1, 1, 1), gain).double())

    def A(self, x, gain=None, **kwargs):
        self.update(gain=gain)
        return self.gain * x


def test_dark_parts_of_a_picture_of_few_photons_are_trusted_more():
    """The likelihood knows that dark measurements have little noise, where one size for all forgets it."""
    torch.manual_seed(0)
    x = torch.full((1, 1, 32, 32), 0.02).double()
    x[..., 16:] = 0.9
    physics = dinv.physics.Denoising(PoissonNoise(0.1)).double()
    y = physics(x)
    settings = {"schedule": Levels((0.25,), skip=False, mean=False, deviation_threshold=None), "max_passes": 40}
    start = torch.full_like(x, 0.5)  # which the image is held by
    models = [DMILO(prior_that_believes(), **settings, **noise) for noise in ({}, {"noise_level": 0.2})]
    own, squares = ((model(y, physics, init=start) - x)[..., :16].abs().mean() for model in models)
    assert own < 0.5 * squares


@pytest.mark.parametrize("constraint", [Free, Positive])
def test_an_unknown_gain_is_found(constraint):
    """Where the image is known, what is left is the gain, of each image its own."""
    x = 0.5 + 0.2 * torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    gains = torch.tensor([0.7, 1.6]).double().view(2, 1, 1, 1)
    y = gains * x
    start = torch.ones(1, 1, 1, 1).double()
    model = DMILO(prior_that_believes(), unknown={"gain": constraint(start)}, **NEAR)
    physics = Gain()
    x_hat, found = model(y, physics, init=x, return_unknown=True)
    torch.testing.assert_close(found["gain"], gains, rtol=0.03, atol=0)  # the level's noise moves the image
    torch.testing.assert_close(found["gain"] * x_hat, y, rtol=0, atol=0.05)
    assert physics.gain.item() == 1.0
    _, alone = model(y[1:], physics, init=x[1:], return_unknown=True)
    torch.testing.assert_close(alone["gain"], found["gain"][1:], rtol=0, atol=1e-4)


def test_of_several_samples_with_an_unknown_parameter_the_one_of_least_cost_is_returned():
    """With its parameter; a mean of images, and one of what multiplies them, belong to no sample."""
    x = 0.5 + 0.2 * torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1).double())}
    model = DMILO(prior_that_believes(), unknown=unknown, num_samples=3, **NEAR)
    run = Run(model, 0.7 * x, Gain(), tuple(x.shape), None, None, False)
    run.unknowns.raw["gain"] = torch.arange(6.0).double().view(6, 1, 1, 1).log1p()
    samples = torch.rand(6, *SHAPE).double()
    cost = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])  # rows 0, 2, 4 are of image 0
    images, _ = run.last_of(lambda run: iter([(samples, cost)]))
    assert torch.equal(images, samples[[4, 1]])
    torch.testing.assert_close(run.unknowns.found()["gain"].flatten(), torch.tensor([5.0, 2.0]).double())
    x_hat, found, metrics = model(0.7 * x, Gain(), init=x, return_unknown=True, compute_metrics=True)
    residual = (found["gain"] * x_hat - 0.7 * x).square().flatten(1).mean(1).sqrt()
    last = torch.tensor([curve[-1] for curve in metrics["residual"]]).double()
    torch.testing.assert_close(residual, last, rtol=1e-6, atol=0)


def test_the_first_image_is_not_taken_back_by_a_blur_that_is_only_guessed():
    """The inverse of a guess that is too wide leaves an image far off."""
    guess, kernel = (dinv.physics.functional.gaussian_blur(sigma=(sigma, sigma)) for sigma in (2.0, 1.0))
    given, x = {"filter": Simplex(guess)}, held_out_images("digits")[240:242]
    y = dinv.physics.BlurFFT((1, 32, 32), filter=kernel).A(x)
    physics = dinv.physics.BlurFFT((1, 32, 32), filter=guess, noise_model=GaussianNoise(0.005))
    prior = DiffusionPrior.from_pretrained("digits")
    with torch.no_grad():
        runs = (Run(DMILO(prior, unknown=u), y, physics, tuple(x.shape), None, None, False) for u in (given, None))
        guessed, held = ((Levels().first_image(run) - x).square().mean() for run in runs)
    assert guessed < held / 2


def test_a_parameter_of_the_name_of_one_of_the_noise_leaves_the_noise_alone():
    x = 0.5 + 0.2 * torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    physics = Gain()
    physics.noise_model = PoissonNoise(0.02)
    model = DMILO(prior_that_believes(), unknown={"gain": Positive(torch.ones(1, 1, 1, 1).double())}, **NEAR)
    for noise in (PoissonNoise(0.02), PoissonNoise(1.0)):  # the likelihood of which is another
        physics.noise_model = noise
        run = Run(model, 0.8 * x, physics, tuple(x.shape), None, None, False)
        assert run.observation.noise_likelihoods[0].parameters[0] == noise.gain
        assert run.observation.noise_variance(x)[0] == pytest.approx(float(noise.gain) * x.mean().item(), rel=0.2)


def test_an_unknown_parameter_goes_with_a_likelihood_that_is_taken_image_by_image():
    x = 0.5 + 0.2 * torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0.7, 1.6]).double().view(2, 1, 1, 1) * x
    fidelity = dinv.optim.PoissonLikelihood(gain=0.001, bkg=0.0)
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1).double())}
    model = DMILO(prior_that_believes(), unknown=unknown, data_fidelity=fidelity, **NEAR)
    _, found = model(y, Gain(), init=x, return_unknown=True)
    torch.testing.assert_close(found["gain"].flatten(), torch.tensor([0.7, 1.6]).double(), rtol=0.03, atol=0)


def test_noise_of_an_operator_follows_its_unknown_parameter():
    """deepinv's inpainting masks its noise; two images have masks of their own."""
    physics = dinv.physics.Inpainting(SHAPE, mask=0.5, noise_model=GaussianNoise(0.05)).double()
    y = physics(torch.rand(2, *SHAPE).double())
    model = DMILO(prior_that_believes(), unknown={"mask": Free(physics.mask.data.clone())}, **NEAR)
    x_hat, found = model(y, physics, return_unknown=True)
    assert x_hat.isfinite().all()
    assert found["mask"].shape == (2, *SHAPE)


def test_an_unknown_parameter_of_a_physics_without_a_noise_model():
    physics = Gain()
    physics.noise_model = None
    x = torch.full((1, *SHAPE), 0.5).double()
    model = DMILO(prior_that_believes(), unknown={"gain": Positive(torch.ones(1, 1, 1, 1).double())}, **NEAR)
    _, found = model(0.8 * x, physics, init=x, return_unknown=True)
    assert found["gain"].item() == pytest.approx(0.8, rel=0.03)


def test_a_kernel_of_each_channel_adds_to_one():
    kernel = torch.rand(1, 3, 5, 5)
    guess = Simplex(kernel)
    torch.testing.assert_close(guess.value(guess.raw()).sum((2, 3)), torch.ones(1, 3))
    known = kernel / kernel.sum((2, 3), keepdim=True)
    assert isinstance(check_unknown({"filter": known})["filter"], Simplex)


@pytest.mark.parametrize("unknown", ["filter", [torch.ones(1, 1)], {3: torch.ones(1, 1)}])
def test_what_names_no_parameter_is_told(unknown):
    with pytest.raises(TypeError, match=r"pass first guesses by the names that physics\.update takes"):
        DMILO(prior_that_believes(), unknown=unknown)


def test_the_gradient_at_the_best_parameters_is_that_of_the_minimum():
    """Of ||w x - y||^2 over w the closed form; by finite differences of the fit itself."""
    from deepinv_dmilo.core.data import Data, SquaresFit
    from deepinv_dmilo.core.operator import Operator
    from deepinv_dmilo.core.unknown import JointFit, Unknowns

    rng = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, *SHAPE, generator=rng).double() + 0.1 for _ in range(2))
    unknowns = Unknowns({"gain": Free(torch.ones(1, 1, 1, 1).double())}, Gain(), 2, 1, y)
    operator = Operator(Gain(), tuple(y.shape), y, single=False, unknowns=unknowns)
    rows = torch.arange(2)
    fit = JointFit(SquaresFit(Data(y, operator, rows), torch.full((2,), 1e4).double()), unknowns, rows)
    x.requires_grad_()
    value = fit(x)
    inner = [(a * b).flatten(1).sum(1) for a, b in ((x, y), (x, x), (y, y))]
    expected = 1e4 * (inner[2] - inner[0].square() / inner[1])
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)  # of an inner solution to a hundredth of a unit
    gradients = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-2 * gradients[1].abs().max().item())


def test_the_kernel_of_a_blur_is_found_by_the_image_that_it_blurs():
    """With the image given by a narrow level, the kernel follows from y; it stays on the simplex."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 24, 32, generator=rng).double()
    kernels = torch.rand(2, 1, 3, 3, generator=rng).double()
    kernels = kernels / kernels.sum((1, 2, 3), keepdim=True)
    noise = GaussianNoise(0.01)
    flat = torch.full((1, 1, 3, 3), 1 / 9).double()
    physics = dinv.physics.BlurFFT(x.shape[1:], filter=flat, noise_model=noise).double()
    y = physics.A(x, filter=kernels)
    physics.update(filter=flat)
    before = physics.filter.clone()
    model = DMILO(prior_that_believes(), unknown={"filter": flat}, **NEAR)
    _, found = model(y, physics, init=x, return_unknown=True)
    torch.testing.assert_close(found["filter"].sum((1, 2, 3)), torch.ones(2).double())
    assert (found["filter"] - kernels).abs().max() < 0.1 * (kernels - flat).abs().max()
    torch.testing.assert_close(physics.filter, before)


def test_a_function_of_a_number_is_a_parameter_too():
    x = 0.5 + 0.2 * torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    halved = Custom(torch.zeros(1, 1, 1, 1).double(), lambda raw: 2 * torch.sigmoid(raw))
    model = DMILO(prior_that_believes(), unknown={"gain": halved}, **NEAR)
    _, found = model(0.7 * x, Gain(), init=x, return_unknown=True)
    assert found["gain"].item() == pytest.approx(0.7, rel=0.03)


def test_unknown_parameters_go_with_the_published_method():
    x = 0.5 + 0.2 * torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    chain = {"schedule": Chain(num_layers=2, outer_steps=2), "solver": Adam(steps=10)}
    model = DMILO(toy_prior(ConvNet()), unknown={"gain": Positive(torch.ones(1, 1, 1, 1))}, **chain)
    x_hat, found = model(0.5 * x, Gain(), return_unknown=True)
    assert torch.isfinite(x_hat).all()
    assert found["gain"].item() < 0.9


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_samples_and_small_batches_keep_their_own_parameters(method):
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    settings = {"schedule": Levels((1.0, 0.2)), "max_passes": 20, "num_samples": 2}
    unknown = {"gain": Positive(torch.ones(1, 1, 1, 1))}
    results = [
        method(toy_prior(ConvNet()), unknown=unknown, micro_batch=n, **settings)(0.5 * x, Gain(), return_unknown=True)
        for n in (None, 1)
    ]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(results[0][1]["gain"], results[1][1]["gain"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("unknown", "error", "message"),
    [
        ({"gain": 1.0}, TypeError, r"unknown\['gain'\] is a float; pass a first guess as a tensor"),
        ({"gain": torch.tensor(1.0)}, ValueError, r"shape \(1, ...\) or \(B, ...\)"),
        ({"gain": torch.ones(1, 1, 1, 1).int()}, ValueError, "pass finite floats"),
        ({"gain": Positive(torch.zeros(1, 1))}, ValueError, "Positive starts above 0; its least entry is 0"),
        ({"gain": Simplex(-torch.ones(1, 2))}, ValueError, "a Simplex starts at entries of at least 0"),
        ({"gian": torch.ones(1, 1, 1, 1)}, ValueError, "a Gain has no parameter of that name; it has gain"),
        ({"gain": torch.ones(3, 1, 1, 1)}, ValueError, "has 3 rows for a batch of 2; give one for all images"),
        ({"device_": torch.ones(1, 1)}, ValueError, "has no parameter of that name"),
        ({"idle": torch.ones(1, 1)}, ValueError, r"physics.A does not depend on it"),
    ],
)
def test_unknown_parameters_that_do_not_fit_are_told(unknown, error, message):
    physics = Gain()
    physics.register_buffer("idle", torch.ones(1, 1))
    with pytest.raises(error, match=message):
        DMILO(toy_prior(ConvNet()), unknown=unknown)(torch.rand(2, *SHAPE).double(), physics)


def test_unknown_parameters_are_asked_for_where_there_are_some():
    with pytest.raises(ValueError, match=r'DMILO\(prior, unknown=\{"filter": kernel\}\), say'):
        DMILO(toy_prior(ConvNet()))(torch.rand(1, *SHAPE).double(), Gain(), return_unknown=True)
    assert isinstance(DMILO(toy_prior(ConvNet()), unknown={"f": torch.full((1, 4), 0.25)}).unknown["f"], Simplex)


def test_operators_of_a_stack_have_noise_of_their_own():
    """What is measured with little noise counts by that, and a second measurement with much noise takes nothing."""
    torch.manual_seed(0)
    x = 0.2 + 0.6 * torch.rand(1, *SHAPE).double()
    members = [dinv.physics.Denoising(GaussianNoise(sigma)).double() for sigma in (0.02, 0.6)]
    both = dinv.physics.StackedLinearPhysics(members)
    y = both(x)
    settings = {"schedule": Levels((0.25,), skip=False, mean=False), "max_passes": 40}
    start = torch.full_like(x, 0.5)
    model = DMILO(prior_that_believes(), **settings)
    stacked, alone = (model(t, physics, init=start) for t, physics in ((y, both), (y[0], members[0])))
    assert (stacked - x).abs().mean() < 1.05 * (alone - x).abs().mean()
    members[1].noise_model = GaussianNoise(0.02)
    assert likelihoods_of(dinv.physics.StackedLinearPhysics(members), y) is None  # of one size
