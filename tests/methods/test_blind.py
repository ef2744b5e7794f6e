"""Unknown parameters of a physics: found with the image, one for each (first guesses: test_constraints)."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise, PoissonNoise
from toys import ConvNet, Gain, observe, posterior_of, prior_that_believes, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, Custom, DiffusionPrior, Free, Levels, Positive, Simplex
from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.nuisance import Nuisance
from deepinv_dmilo.likelihood.profile import ProfileLikelihood
from deepinv_dmilo.posterior.noise_estimation import finest_variance
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.scoring import Meter
from deepinv_dmilo.tools.tasks import gaussian_kernel, make_physics

SHAPE = (3, 12, 20)
#: the image stays near the one that is given
NEAR = {"schedule": Levels((0.01,), skip=False, mean=False), "max_passes": 20}


@pytest.mark.parametrize("noise", [GaussianNoise(0.05), PoissonNoise(0.01)])
def test_physics_and_noise_of_another_type_than_the_measurements(noise):
    physics, y = Gain(), torch.rand(1, *SHAPE)  # of float64
    physics.noise_model = noise.double()
    model = DMILO(prior_that_believes(), unknown={"gain": Positive(torch.ones(1, 1, 1, 1))}, **NEAR)
    x_hat, found = model(y, physics, return_unknown=True)
    assert x_hat.dtype == found["gain"].dtype == torch.float32


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
    settings = {"unknown": unknown, "num_samples": 3, **NEAR}
    samples = torch.rand(6, *SHAPE).double()
    cost = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])  # rows 0, 2, 4 are of image 0

    class Given(DMILO):
        def reconstruct(self, posterior, plan, monitor):
            posterior.nuisance.raw["gain"] = torch.arange(6.0).double().view(6, 1, 1, 1).log1p()
            return samples, cost

    solution = Given(prior_that_believes(), **settings).solve(0.7 * x, Gain())
    assert torch.equal(solution.images, samples[[4, 1]])
    torch.testing.assert_close(solution.parameters["gain"].flatten(), torch.tensor([5.0, 2.0]).double())
    model = DMILO(prior_that_believes(), **settings)
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
    plans = (DMILO(prior, unknown=u).plan(y, physics) for u in (given, None))
    guessed, held = (
        sum((plan.first_image - x[list(images)]).square().sum() for images, plan in of_call.groups) for of_call in plans
    )
    assert guessed < held / 2


@pytest.mark.parametrize("asked", ["return_std", "return_samples", "quantiles"])
def test_samples_of_the_posterior_need_the_parameters(asked):
    model = DMILO(prior_that_believes(), unknown={"gain": Positive(torch.ones(1, 1, 1, 1).double())}, **NEAR)
    hint = rf"estimates, solve\(y, physics\)\.samples; .* parameters that were found, .*{asked}=\.\.\."
    with pytest.raises(TypeError, match=hint):
        model(torch.rand(1, *SHAPE).double(), Gain(), **{asked: True})


def test_a_parameter_of_the_name_of_one_of_the_noise_leaves_the_noise_alone():
    x = 0.5 + 0.2 * torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    physics = Gain()
    physics.noise_model = PoissonNoise(0.02)
    model = DMILO(prior_that_believes(), unknown={"gain": Positive(torch.ones(1, 1, 1, 1).double())}, **NEAR)
    for noise in (PoissonNoise(0.02), PoissonNoise(1.0)):  # the likelihood of which is another
        physics.noise_model = noise
        likelihood = posterior_of(model, 0.8 * x, physics).likelihood
        assert likelihood.densities[0].parameters[0] == noise.gain
        assert likelihood.mean_variance(x)[0] == pytest.approx(float(noise.gain) * x.mean().item(), rel=0.2)


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


def test_the_gradient_at_the_best_parameters_is_that_of_the_minimum():
    """Of ||w x - y||^2 over w the closed form; by finite differences of the fit itself."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, *SHAPE, generator=rng).double() + 0.1 for _ in range(2))
    nuisance = Nuisance({"gain": Free(torch.ones(1, 1, 1, 1).double())}, Gain(), 2, 1, y)
    forward = forward_model(Gain(), tuple(y.shape), y, single=False, nuisance=nuisance)
    fit = ProfileLikelihood(Gaussian(forward, y, torch.arange(2), torch.full((2,), 0.5e-4).double()), nuisance)
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


def test_a_level_shares_the_entries_of_a_kernel_with_their_neighbours(monkeypatch):
    """Where nothing is learned, each of two levels shares once; a row that is no image stays."""
    monkeypatch.setattr(Nuisance, "keep", lambda *_: None)
    spike = torch.zeros(1, 1, 7, 7).double()
    spike[..., 3, 3] = 1
    physics = dinv.physics.BlurFFT(SHAPE, filter=spike, noise_model=GaussianNoise(0.01)).double()
    schedule = Levels((0.1, 0.03), skip=False, mean=False)
    model = DMILO(prior_that_believes(), unknown={"filter": Simplex(spike)}, schedule=schedule, max_passes=10)
    _, found = model(torch.full((1, *SHAPE), 0.5).double(), physics, return_unknown=True)
    triangle = torch.tensor([0, 1, 2, 3, 2, 1, 0]).double() / 9
    torch.testing.assert_close(found["filter"][0, 0], torch.outer(triangle, triangle), rtol=0, atol=1e-3)
    row = Simplex(torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(row.value(row.loosened(row.raw())), row.value(row.raw()))


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


@pytest.mark.parametrize("std", [0.005, 0.05])
def test_noise_is_seen_in_the_finest_details_of_a_blurred_picture(std):
    """Of photographs and a motion blur, which leave nothing there; of a mask, what is left is no noise."""
    x = held_out_images("photos")[12:14, :, 32:96, 32:96]
    blur = make_physics("motion-deblurring", (3, 64, 64), noise=std)
    inpainting = make_physics("inpainting", (3, 64, 64), noise=std)
    seen, of_mask = (finest_variance(observe(p(x), p, num_samples=2)).sqrt() for p in (blur, inpainting))
    torch.testing.assert_close(seen, torch.full((4,), std), rtol=0.1, atol=0)
    assert of_mask.isinf().all()


def test_a_blur_and_noise_that_nobody_told_are_found_together():
    """The guess of the blur explains less of y than noise does, by far."""
    prior, x = DiffusionPrior.from_pretrained("photos"), held_out_images("photos")[13:14, :, 32:96, 32:96]
    guess, noise = gaussian_kernel(2.0, 17), GaussianNoise(0.005, rng=torch.Generator().manual_seed(0))
    y = make_physics("motion-deblurring", (3, 64, 64), noise=0.005)(x)
    psnr = []
    for told in (noise, None):
        physics = dinv.physics.BlurFFT((3, 64, 64), filter=guess, noise_model=told)
        model = DMILO(prior, unknown={"filter": Simplex(guess)}, max_passes=25)
        psnr.append(dinv.metric.PSNR()(model(y, physics), x).item())
    assert psnr[1] > psnr[0] - 1.5


@pytest.fixture
def levels_taken():
    """How many levels a digit takes by DMILO with some settings, of a blur of certain edges."""
    prior, x = DiffusionPrior.from_pretrained("digits"), held_out_images("digits")[:1]
    guess = gaussian_kernel(1.5, 9)

    def count(edges, noise=0.005, is_known=False, **settings):
        physics = dinv.physics.Blur(guess, padding=edges, noise_model=GaussianNoise(noise))
        model = DMILO(prior, unknown=None if is_known else {"filter": Simplex(guess)}, **settings)
        return len(model(physics(x), physics, compute_metrics=True)[1]["residual"][0])

    return count


def test_open_edges_make_no_image_anew_where_a_blur_is_unknown(levels_taken):
    """Which any blur explains: of one's own levels, an image takes those from 0.37 on."""
    own = Levels((1.0, 0.5, 0.37, 0.1))
    settings = {"schedule": own, "solver": LBFGS(steps=1)}
    assert levels_taken("valid", **settings) == 2
    assert levels_taken("valid", is_known=True, **settings) > 2


def test_the_blur_of_a_camera_is_looked_for_at_more_levels_of_fewer_passes(levels_taken):
    assert levels_taken("valid", max_passes=25) == 5
    assert levels_taken("valid", max_passes=60) == 12
    assert levels_taken("circular", max_passes=60) < 12
    assert levels_taken("valid", noise=0.05, max_passes=60) == 10


def test_problems_end_early_where_noise_would_draw_a_blur_to_a_point():
    prior, x = DiffusionPrior.from_pretrained("digits"), held_out_images("digits")[:1]
    guess = dinv.physics.functional.gaussian_blur(sigma=(2.0, 2.0))
    model = DMILO(prior, unknown={"filter": Simplex(guess)}, schedule=Levels((1.0, 0.37)), max_passes=40)
    true, passes = dinv.physics.functional.gaussian_blur(sigma=(1.0, 1.0)), {}
    for noise in (0.005, 0.05):
        physics = dinv.physics.BlurFFT(x.shape[1:], filter=guess, noise_model=GaussianNoise(noise))
        with Meter(prior.network, x.device) as meter:
            model(physics(x, filter=true), physics)
        passes[noise] = meter.passes
    assert passes[0.05] <= 2 * 5
    assert 2 * 5 < passes[0.005] <= 40
    model.solver = LBFGS(steps=20)  # one's own steps are taken
    with Meter(prior.network, x.device) as meter:
        model(physics(x, filter=true), physics)
    assert meter.passes > 2 * 5


def test_images_of_much_and_of_little_noise_do_not_change_each_other():
    """A dark image has as much noise as a bright one, and more of it."""
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([1.0, 0.2]).view(
        2, 1, 1, 1
    )
    model = DMILO(toy_prior(ConvNet()), unknown={"gain": Positive(torch.ones(1, 1, 1, 1))}, max_passes=30)
    together = model(0.5 * x, Gain(sigma=0.004))
    alone = torch.cat([model(0.5 * one, Gain(sigma=0.004)) for one in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def published(*, batch=2, **settings):
    """The preset of blind deblurring on digits, and the kernels it finds."""
    guess = gaussian_kernel(2.0, 9)
    x = held_out_images("digits")[:batch]
    y = dinv.physics.BlurFFT(x.shape[1:], filter=gaussian_kernel(1.0, 9))(x)
    prior = DiffusionPrior.from_pretrained("digits")
    settings = {"outer_steps": 1, "inner_steps": 1, "num_layers": 1, **settings}
    model = DMILO.from_preset("blind_deblurring", prior, unknown={"filter": Simplex(guess)}, **settings)
    _, found = model(y, dinv.physics.BlurFFT(x.shape[1:], filter=guess), return_unknown=True)
    return guess, found["filter"]


def test_the_preset_of_blind_deblurring_has_a_rate_of_the_kernel_ten_times_that_of_the_latent():
    prior = toy_prior(ConvNet())
    model = DMILO.from_preset("blind-deblurring", prior, unknown={"filter": Simplex(gaussian_kernel(2.0, 9))})
    assert model.schedule == Chain(outer_steps=10)
    assert model.solver == Adam(steps=300, latent_lr=8e-3, unknown_lr=8e-2)
    assert model.solver.unknown_lr == pytest.approx(10 * model.solver.latent_lr)
    with pytest.raises(ValueError, match=r'type unknown={"filter": Simplex\(kernel\)}, a guess'):
        DMILO.from_preset("blind_deblurring", prior)
    with pytest.raises(ValueError, match="no preset 'blind_deblurring' for DMILOPGD"):
        DMILOPGD.from_preset("blind_deblurring", prior)


def test_a_first_step_of_adam_moves_each_logarithm_of_the_kernel_by_its_rate():
    guess, found = published(unknown_lr=0.01)
    moved = (found / guess).log().flatten(1)  # up to a constant, since the kernel sums to one
    moved = moved - moved.mean(1, keepdim=True)
    up = moved > 0
    for row, above in zip(moved, up, strict=True):
        assert above.any()
        assert not above.all()
        torch.testing.assert_close(row[above].mean() - row[~above].mean(), torch.tensor(0.02), rtol=1e-2, atol=0)


def test_the_kernel_of_the_preset_moves_and_stays_a_simplex():
    settings = {"num_layers": 3, "outer_steps": 2, "inner_steps": 5}
    guess, found = published(**settings)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2))
    assert ((found - guess).abs().sum((1, 2, 3)) > 0.1).all()
    _, alone = published(batch=1, **settings)
    torch.testing.assert_close(alone, found[:1], rtol=0, atol=1e-4)
    _, in_parts = published(micro_batch=1, **settings)
    torch.testing.assert_close(in_parts, found, rtol=0, atol=1e-4)
