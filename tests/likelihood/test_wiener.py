"""What the measurements leave open: a closed form, an order of the tasks, one image at a time; and what follows."""

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import PSNR
from deepinv.physics import GaussianNoise, PoissonNoise
from toys import AffineNet, ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, Levels
from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.likelihood.likelihoods import Gaussian
from deepinv_dmilo.likelihood.wiener import SPREAD, least_squares, mean_lmmse_error, worst_lmmse_error
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.schedules.initial import START_STEPS, _prior_mean, descend_likelihood
from deepinv_dmilo.schedules.planning import SEVEN
from deepinv_dmilo.tools.tasks import make_physics

IMAGE = (3, 24, 40)


def observed(physics, y, noise, images=1, shape=IMAGE):
    """The likelihood of what y makes of mid-grey images, and these images."""
    x = torch.full((images, *shape), 0.5).double()
    forward = forward_model(physics, tuple(x.shape), x, single=images == 1)
    return Gaussian(forward, y(x), torch.arange(images), torch.full((images,), noise**2).double()), x


def leaves_open(physics, *, noise, images=1, shape=IMAGE):
    return worst_lmmse_error(*observed(physics, physics.A, noise, images, shape))


def well_determined(plan):
    """Of each image."""
    return [facts.well_determined for _, of_group in plan.groups for facts in of_group.facts]


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_of_plain_denoising_it_is_the_error_of_the_wiener_filter(noise):
    rows, columns = torch.fft.fftfreq(24) * 40, torch.fft.fftfreq(40) * 40
    power = 1 / (rows[:, None] ** 2 + columns**2 + 1)
    power = SPREAD**2 * power / power.mean()
    error = (power * noise**2 / (power + noise**2)).sqrt()
    # The root mean square of 27 random numbers, nine frequencies in three channels, is off by a seventh or two.
    assert leaves_open(dinv.physics.Denoising(), noise=noise).item() == pytest.approx(error.max().item(), rel=0.3)
    physics = dinv.physics.Denoising()
    found = mean_lmmse_error(*observed(physics, physics.A, noise))
    assert found.item() == pytest.approx(error.square().mean().sqrt().item(), rel=0.1)  # of 2,880 random numbers


def test_a_small_hole_leaves_as_much_open_in_a_large_image():
    """What is missed counts where it is: averaged over the image, a hole would leave less open the larger the image."""

    def of_a_hole(height, width):
        mask = torch.ones(1, 3, height, width).double()
        mask[..., 10:16, 20:26] = 0
        return leaves_open(dinv.physics.Inpainting((3, height, width), mask=mask), noise=0.005, shape=mask.shape[1:])

    small, large = of_a_hole(24, 40), of_a_hole(72, 120)
    assert large > 0.1
    torch.testing.assert_close(small, large, rtol=0.5, atol=0)  # of other random images, and other frequencies


def test_least_squares_of_plain_denoising_are_the_wiener_filter():
    rows, columns = torch.fft.fftfreq(24) * 40, torch.fft.fftfreq(40) * 40
    power = 1 / (rows[:, None] ** 2 + columns**2 + 1)
    gain = 1 / (1 + 0.1**2 * power.mean() / (SPREAD**2 * power))
    physics, y = dinv.physics.Denoising(), torch.rand(1, *IMAGE).double()
    likelihood, x = observed(physics, lambda x: y, 0.1)
    expected = x + torch.fft.ifft2(gain * torch.fft.fft2(y - x)).real
    # Conjugate gradients stop after fifteen steps; here the first inverse is the right one and one would do.
    torch.testing.assert_close(least_squares(likelihood, x), expected, rtol=0, atol=1e-6)


def test_least_squares_fill_a_scratch_from_what_is_around_it():
    ramp = torch.linspace(0.2, 0.8, 24).double().view(1, 1, 24, 1).expand(1, *IMAGE)
    mask = torch.ones(1, *IMAGE).double()
    mask[..., 11:13, :] = 0
    found = least_squares(*observed(dinv.physics.Inpainting(IMAGE, mask=mask), lambda x: mask * ramp, 1e-3))
    assert ((found - ramp).abs() < 0.02).all()  # mid-grey is up to 0.04 off there, and what is there 0.5


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
def test_a_scratch_is_repaired_as_well_as_from_the_first_level_on(method):
    """Passes are not shared with levels that nothing needs; on a photograph, where steps from mid-grey lost 6 dB."""
    prior, x = DiffusionPrior.from_pretrained("photos"), held_out_images("photos")[3:4, :, 96:160, 96:160]
    mask = torch.ones_like(x)
    mask[..., 30:33, :] = mask[..., 20:21] = 0
    noise = GaussianNoise(0.005, rng=torch.Generator().manual_seed(0))
    physics = dinv.physics.Inpainting(tuple(x.shape[1:]), mask=mask, noise_model=noise)
    y, psnr = physics(x), dinv.metric.PSNR()
    ours, all_levels = (
        psnr(method(prior, max_passes=25, schedule=Levels(skip=s))(y, physics), x) for s in (True, False)
    )
    assert ours > 33
    assert ours > all_levels - 1


def test_the_less_is_measured_the_more_is_left_open():
    tasks = [("denoising", {}), ("motion-deblurring", {}), ("deblurring", {}), ("super-resolution", {})]
    tasks += [("inpainting", {}), ("inpainting", {"missing": 0.9})]
    values = [leaves_open(make_physics(task, IMAGE, **options).double(), noise=0.005).item() for task, options in tasks]
    assert values == sorted(values)
    assert values[0] < 0.01
    assert values[-1] > 0.5


def test_a_nonlinear_operator_is_linearised():
    """A power of the image near mid-grey is as good as denoising with its slope."""
    slope = 0.45 * 0.5**-0.55
    nonlinear = dinv.physics.Physics(A=lambda x: x.clamp(min=1e-3) ** 0.45)
    expected = leaves_open(dinv.physics.Denoising(), noise=0.02 / slope)
    torch.testing.assert_close(leaves_open(nonlinear, noise=0.02), expected, rtol=0.02, atol=0)


def test_what_a_camera_clips_is_not_taken_to_be_open():
    """At black the response has no slope, so that nothing seemed to be measured there and all levels were taken."""
    physics = make_physics("nonlinear-deblurring", IMAGE, noise=0.005).double()
    likelihood, grey = observed(physics, physics.A, 0.005)
    dark = torch.where(torch.arange(IMAGE[2]) < 30, 0.0, grey)
    torch.testing.assert_close(worst_lmmse_error(likelihood, dark), worst_lmmse_error(likelihood, grey))


def test_complex_measurements_count_by_real_and_imaginary_part():
    """All frequencies with twice the noise's variance in all, the half that they are redundant by."""
    fourier = dinv.physics.LinearPhysics(
        A=lambda x: torch.fft.fft2(x, norm="ortho"), A_adjoint=lambda y: torch.fft.ifft2(y, norm="ortho").real
    )
    expected = leaves_open(dinv.physics.Denoising(), noise=0.02)
    torch.testing.assert_close(leaves_open(fourier, noise=0.02), expected, rtol=0.2, atol=0)  # other random numbers


def test_each_image_has_its_own_whatever_the_batch():
    kernels = torch.rand(3, 1, 3, 5).double() ** torch.tensor([1.0, 8.0, 30.0]).view(3, 1, 1, 1)
    blur = dinv.physics.Blur(kernels, padding="circular")
    together = leaves_open(blur, noise=0.01, images=3)
    alone = [leaves_open(dinv.physics.Blur(k[None], padding="circular"), noise=0.01) for k in kernels]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-8, atol=0)
    assert len(set(together.tolist())) == 3


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_images_of_a_batch_begin_each_at_its_own_level(method, num_samples):
    """A mask for each image, from all pixels to few: each begins where it does alone, with the same noise."""
    masks = (torch.rand(3, *IMAGE) < torch.tensor([1.0, 0.9, 0.1]).view(3, 1, 1, 1)).double()
    x = torch.rand(3, *IMAGE).double()
    model = method(toy_prior(ConvNet()), max_passes=35 * num_samples, num_samples=num_samples, noise_level=0.02)

    def reconstruct(rows):
        physics = dinv.physics.Inpainting(IMAGE, mask=masks[rows], noise_model=GaussianNoise(0.0)).double()
        return model(physics.A(x[rows]), physics, compute_metrics=True)

    together, metrics = reconstruct([0, 1, 2])
    levels = [len(curve) for curve in metrics["passes"]]
    assert levels[0] < levels[1] < levels[2]
    for n in range(3):
        alone, alone_metrics = reconstruct([n])
        torch.testing.assert_close(together[n], alone[0], rtol=0, atol=1e-9)
        assert metrics["passes"][n] == alone_metrics["passes"][0]


@pytest.mark.parametrize(("hidden", "is_linear", "begins"), [(0, True, 2.2), (0, False, 0.65), (9, False, 5.0)])
def test_what_a_slope_leaves_open_does_not_send_an_image_to_the_top(hidden, is_linear, begins):
    """The slope says less than the image, unless pixels are masked: a mean of 12 x 12 pixels, bent or not."""
    mask = torch.ones(IMAGE).double()
    mask[..., 12 : 12 + 4 * hidden] = 0

    def A(x, **_):
        small = torch.nn.functional.avg_pool2d(mask * x, 12)
        return small if is_linear else small.square()

    physics = dinv.physics.Physics(A=A)
    physics.img_size = IMAGE
    y = A(torch.full((1, *IMAGE), 0.5).double())
    model = DMILO(toy_prior(ConvNet()), max_passes=100, noise_level=0.005)
    ((_, plan),) = model.plan(y, physics).groups
    assert plan.stages[0].levels[0].sigma == pytest.approx(begins, rel=0.1)


def test_a_budget_goes_to_the_levels_that_are_taken():
    y = torch.rand(1, *IMAGE).double()
    model = DMILO(toy_prior(ConvNet()), max_passes=30, noise_level=0.02, solver=LBFGS(tolerance=0.0))
    _, metrics = model(y, dinv.physics.Denoising(), compute_metrics=True)
    assert metrics["passes"] == [[30]]
    full = DMILO(toy_prior(ConvNet()), max_passes=35, noise_level=0.02, schedule=Levels(skip=False))
    assert len(full(y, dinv.physics.Denoising(), compute_metrics=True)[1]["passes"][0]) == len(SEVEN)


def test_a_small_budget_goes_to_few_levels():
    y = torch.rand(1, *IMAGE).double()
    schedule = Levels(skip=False)
    settings = {"noise_level": 0.02, "schedule": schedule, "solver": LBFGS(tolerance=0.0)}
    for passes, expected in ((3, [3]), (12, [6, 12]), (17, [5, 10, 15])):
        model = DMILO(toy_prior(ConvNet()), max_passes=passes, **settings)
        assert model(y, dinv.physics.Denoising(), compute_metrics=True)[1]["passes"] == [expected]


def test_the_last_call_denoises_what_the_steps_let_through():
    """Plain denoising: the level of the call is the noise that the proximal point of y keeps."""
    prior = toy_prior(AffineNet(0.0, 0.0), prediction_type="sample")
    asked, level = [], prior.level
    prior.level = lambda ratio: asked.append(ratio / 2) or level(ratio)
    y = 0.5 + 0.05 * torch.randn(1, *IMAGE, generator=torch.Generator().manual_seed(0)).double()
    DMILO(prior, schedule=Levels((0.5,), skip=False, deviation_threshold=None), noise_level=0.05)(
        y, dinv.physics.Denoising()
    )
    kept = 0.1**2 / (0.1**2 + 0.05**2) * 0.05
    assert asked[-1] == pytest.approx(kept, rel=0.05)  # of 2,880 random numbers


def test_a_nonlinear_blur_is_not_taken_to_determine_the_image():
    """Its gain is that between two images, no norm: strong noise over it may be more than what is left open."""
    prior, x = DiffusionPrior.from_pretrained("photos"), held_out_images("photos")[12:13, :, 96:160, 96:160]
    physics = make_physics("nonlinear-deblurring", (3, 64, 64), noise=0.05)
    assert well_determined(DMILO(prior, max_passes=10).plan(physics(x), physics)) == [False]


@pytest.mark.parametrize(
    ("task", "determines"), [("denoising", True), ("deblurring", False), ("super-resolution", False)]
)
def test_strong_noise_does_not_make_an_operator_determine_the_image(task, determines):
    """It hides what a blur takes away, as it hides all else; that does not mean that the blur may be undone."""
    physics = make_physics(task, IMAGE, noise=0.3).double()
    x = torch.full((1, *IMAGE), 0.5).double()
    plan = DMILO(toy_prior(ConvNet()), max_passes=10).plan(physics(x), physics, init=x)
    assert well_determined(plan) == [determines]


def test_the_first_image_of_a_nonlinear_operator_is_as_good_as_least_squares_of_a_linear_one():
    """Columns that are not measured are filled from those beside them, whether the others are bent or not."""
    x = make_physics("deblurring", IMAGE).A(torch.rand(1, *IMAGE, generator=torch.Generator().manual_seed(0))).double()
    errors = []
    for bend in (lambda v: v, lambda v: v.clamp(min=1e-3) ** 0.8):
        physics = dinv.physics.Physics(A=lambda v, f=bend: f(v)[..., ::2], noise_model=GaussianNoise(0.01))
        physics.img_size = IMAGE
        ((_, plan),) = DMILO(toy_prior(ConvNet()), max_passes=10).plan(physics.A(x), physics).groups
        errors.append((plan.first_image - x).square().mean().sqrt().item())
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize(("photons", "squares"), [(100, True), (5, False)])
def test_few_photons_have_no_least_squares_and_determine_no_image(photons, squares):
    """Their noise is of many sizes, and no more about Gaussian."""
    x = held_out_images("digits")[240:241]
    noise = PoissonNoise(1 / photons, clip_positive=True, rng=torch.Generator().manual_seed(0))
    physics = dinv.physics.Denoising(noise)
    y, model = physics(x), DMILO(DiffusionPrior.from_pretrained("digits"), max_passes=10)
    with model._at_work() as working:
        (posterior,) = working._posteriors(y, physics, None)
        mean, _ = _prior_mean(posterior)
        steps = descend_likelihood(posterior.likelihood, mean, steps=START_STEPS, limits=model.prior.limits)
    plan = model.plan(y, physics)
    ((_, of_image),) = plan.groups
    assert of_image.first[1:] == (("least squares",) if squares else ()) + ("gradient steps",)
    assert torch.equal(of_image.first_image, steps) is not squares
    assert well_determined(plan) == [False]


@pytest.mark.parametrize("unit", [1e-6, 1e3])
def test_the_unit_of_the_measurements_does_not_matter(unit):
    physics = make_physics("deblurring", IMAGE).double()
    inner = torch.rand(1, *IMAGE, generator=torch.Generator().manual_seed(0)).double()

    def at(scale):
        scaled = dinv.physics.LinearPhysics(A=lambda x: scale * physics.A(x), A_adjoint=None)
        likelihood, x = observed(scaled, lambda x: scaled.A(inner), 0.0004 * scale)
        return worst_lmmse_error(likelihood, x), least_squares(likelihood, x)

    torch.testing.assert_close(at(unit), at(1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task", ["denoising", "deblurring", "super-resolution", "inpainting", "motion-deblurring"])
def test_the_last_call_is_no_loss_at_strong_noise(task):
    prior, x = DiffusionPrior.from_pretrained("digits"), held_out_images("digits")[240:244]
    physics = make_physics(task, (1, 32, 32), noise=0.2)
    y = physics(x)
    mean, mode = (
        PSNR()(DMILO(prior, max_passes=10, schedule=Levels(mean=with_call))(y, physics), x).mean()
        for with_call in (True, False)
    )
    assert mean > mode - 0.1
