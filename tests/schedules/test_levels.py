"""The schedule of levels: its problem against closed forms, deviations, samples, micro-batches, budgets."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise, Inpainting
from toys import AffineNet, ConvNet, observe, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DMPlug, Levels
from deepinv_dmilo.likelihood.measurements import energy, measure
from deepinv_dmilo.optim.descent import sparse_deviation
from deepinv_dmilo.utils.draws import Draws

IMAGE = (3, 24, 40)
METHODS = {
    "dmilo": lambda prior, **s: DMILO(prior, schedule=Levels((1.0, 0.2)), solver=LBFGS(steps=4), **s),
    "dmilo-pgd": lambda prior, **s: DMILOPGD(prior, schedule=Levels((1.0, 0.2)), solver=LBFGS(steps=4), **s),
    "published": lambda prior, **s: DMILO.from_preset("inpainting", prior, outer_steps=2, inner_steps=3, **s),
    "dmplug": lambda prior, **s: DMPlug(prior, steps=3, **s),
}


def noisy_inpainting(sigma=0.05, seed=0, mask=0.3):
    rng = torch.Generator().manual_seed(seed)
    noise = GaussianNoise(sigma, rng=torch.Generator().manual_seed(seed))
    return Inpainting(IMAGE, mask=mask, rng=rng, noise_model=noise).double()


def test_a_level_is_the_maximum_a_posteriori_estimate():
    """One layer of an affine prior, a diagonal operator, known noise: the estimate has a closed form in every pixel."""
    prior = toy_prior(AffineNet(0.5, 0.0625), prediction_type="sample", clip_sample=False)
    physics = noisy_inpainting(sigma=0.3, mask=0.5)
    y = physics(torch.rand(2, *IMAGE).double())
    x0, sigma, level = torch.rand(2, *IMAGE).double(), 0.3, 0.5
    a, b = prior.level(2 * level), prior.levels(1)[-1]
    zero = torch.zeros_like(y)
    offset = prior.step(zero, a, b)
    gain = prior.step(zero + 1, a, b) - offset
    mask, center = physics.mask, a.signal * prior.encode(x0)
    # minimise mask ((gain z + offset + 1) / 2 - y)^2 / (2 sigma^2) + (z - center)^2 / (2 noise^2)
    curvature = mask * gain**2 / (4 * sigma**2) + 1 / a.noise**2
    slope = mask * gain * (2 * y - 1 - offset) / (4 * sigma**2) + center / a.noise**2
    expected = prior.decode(gain * slope / curvature + offset)
    assert 0 < expected.min() < expected.max() < 1
    schedule = Levels((level,), mean=False)
    model = DMILO(prior, schedule=schedule, solver=LBFGS(50, tolerance=0.0), noise_level=sigma)
    torch.testing.assert_close(model(y, physics, init=x0), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gain", [0.1, 30.0])
def test_images_do_not_depend_on_the_unit_of_the_measurements(gain):
    """The same problem, in volts and in millivolts, its deviations too."""
    x = torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(0)).double()
    prior = toy_prior(AffineNet(0.5, 0.0), prediction_type="sample")
    images = []
    for unit in (1.0, gain):
        noise = GaussianNoise(0.05 * unit, rng=torch.Generator().manual_seed(1))
        physics = dinv.physics.LinearPhysics(A=lambda x, u=unit: u * x, A_adjoint=lambda y, u=unit: u * y)
        physics.noise_model = noise
        y = physics(x)
        y[:, :, 3, 7] += 0.8 * unit  # no image of the prior
        images.append(DMILO(prior, max_passes=20)(y, physics))
    # ends within the tolerances of the power method and of the steps
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-2)


def test_a_fit_below_the_noise_is_not_sought():
    """With the noise known the residual stays at the noise; taken for noise-free, it is fitted away."""
    prior = toy_prior(AffineNet(0.5, 0.0), prediction_type="sample", clip_sample=False)
    physics = dinv.physics.Denoising(GaussianNoise(0.2, rng=torch.Generator().manual_seed(0)))
    y = physics(torch.full((1, *IMAGE), 0.5).double())
    settings = {"schedule": Levels((0.3, 0.1), mean=False), "solver": LBFGS(tolerance=0.0)}
    residuals = {}
    for noise in (0.2, 1e-6):
        x = DMILO(prior, noise_level=noise, **settings)(y, physics)
        residuals[noise] = energy(measure(x, physics) - y).sqrt().item() / y.numel() ** 0.5
    assert residuals[0.2] > 0.12
    assert residuals[1e-6] < 0.01


def test_deviation_is_the_soft_threshold_where_the_operator_is_the_identity():
    u, target = torch.randn(2, *IMAGE).double(), torch.randn(2, *IMAGE).double()
    weight, step = torch.full((2,), 0.4, dtype=torch.float64), torch.full((2,), 1.0, dtype=torch.float64)
    calls = []
    fit = lambda x: calls.append(1) or (x - target).square().flatten(1).sum(1) / 2  # noqa: E731
    nu = sparse_deviation(fit, u, weight, step)
    torch.testing.assert_close(nu, torch.nn.functional.softshrink(target - u, 0.4), rtol=0, atol=1e-12)
    assert len(calls) <= 3  # at the fixed point nothing is tried again


def test_deviation_satisfies_the_conditions_of_optimality():
    """Zero is in the subdifferential: |gradient| is w where nu is not 0, and at most that where it is."""
    physics = dinv.physics.Blur(torch.rand(1, 1, 3, 5).double(), padding="circular")
    y = physics(torch.rand(2, *IMAGE).double())
    x, weight = torch.full_like(y, 0.5), torch.full((2,), 0.6).double()
    fit = observe(y, physics, noise_level=1.0)
    nu = sparse_deviation(fit, x, weight, torch.ones(2).double(), steps=1500, standstill=0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(fit(x + nu).sum(), nu)
    active = nu != 0
    assert 0.01 < active.double().mean() < 0.99
    torch.testing.assert_close(gradient[active], -0.6 * nu[active].sign(), rtol=0, atol=0.02 * 0.6)
    assert (gradient[~active].abs() < 1.02 * 0.6).all()


def test_the_deviation_of_an_image_does_not_depend_on_its_batch():
    physics = dinv.physics.Blur(torch.rand(1, 1, 3, 5).double(), padding="circular")
    x = torch.rand(3, *IMAGE).double()
    y = physics(torch.rand(3, *IMAGE).double()) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1)
    weight = torch.tensor([2.0, 0.5, 0.1]).double()

    def deviation(rows):
        fit = observe(y, physics, noise_level=1.0).select(rows)
        return sparse_deviation(fit, x[rows], weight[rows], torch.ones(3).double()[rows])

    together = deviation(torch.arange(3))
    assert [(nu != 0).double().mean().item() > 0.001 for nu in together] == [True] * 3
    for n in range(3):
        torch.testing.assert_close(deviation(torch.tensor([n]))[0], together[n], rtol=0, atol=1e-12)


def test_a_deviation_to_where_the_fit_is_not_a_number_is_not_taken():
    """A logarithm of what a step makes negative: the step is shortened, or nothing deviates."""
    physics = dinv.physics.Physics(A=lambda x: torch.log(x + 0.02))
    y = torch.full((1, *IMAGE), -3.9).double()
    y[:, :, 3, 7] = 0.0
    prior = toy_prior(AffineNet(0.0, 0.0), prediction_type="sample")
    images = [DMILO(prior, schedule=Levels(deviation_threshold=t), noise_level=0.01)(y, physics) for t in (None, 5.0)]
    assert torch.isfinite(images[1]).all()
    misfits = [(physics.A(x) - y).square().sum() for x in images]
    assert misfits[1] < misfits[0]
    with pytest.warns(RuntimeWarning, match="unexplained"):
        assert torch.isfinite(DMILO(prior, noise_level=0.01, max_passes=5)(y - 9, physics)).all()


def test_deviations_repair_what_the_prior_cannot_make():
    prior = toy_prior(AffineNet(0.0, 0.0), prediction_type="sample")  # a prior of one image, mid-grey
    physics = dinv.physics.Denoising()
    y = torch.full((1, *IMAGE), 0.5).double()
    y[:, :, 3:5, 7:9] = 0.9
    plain, deviating = (
        DMILO(prior, schedule=Levels(deviation_threshold=t), noise_level=0.02)(y, physics) for t in (None, 5.0)
    )
    assert (plain - 0.5).abs().max() < 0.05
    # soft thresholding by five standard deviations
    torch.testing.assert_close(deviating[:, :, 3:5, 7:9], torch.full((1, 3, 2, 2), 0.8).double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_runs_of_their_own(method, monkeypatch):
    physics = noisy_inpainting()
    y = physics(torch.rand(2, *IMAGE).double())
    prior = toy_prior(ConvNet())
    # of the samples of a schedule the noise of the physics is asked for at their mean image: here it is given
    noise = {"noise_level": 0.05} if method.startswith("dmilo") else {}
    solution = METHODS[method](prior, num_samples=3, **noise).solve(y, physics)
    drawn, singles = Draws._seeded, []
    for sample in range(3):
        monkeypatch.setattr(Draws, "_seeded", lambda self, n, shape, _, sample=sample: drawn(self, n, shape, sample))
        singles.append(METHODS[method](prior, **noise)(y, physics))
    singles = torch.stack(singles, 1)
    torch.testing.assert_close(solution.images, singles.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.samples, singles, rtol=0, atol=1e-6)
    assert singles.std(1).mean() > 1e-3


def test_the_start_follows_the_seed_and_is_no_level_s_noise(monkeypatch):
    drawn = []
    monkeypatch.setattr(Draws, "__call__", lambda *args, call=Draws.__call__: drawn.append(call(*args)) or drawn[-1])
    physics = noisy_inpainting()
    y = physics(torch.rand(1, *IMAGE).double())
    for seed in (0, 1):
        METHODS["dmilo"](toy_prior(ConvNet()), rng=seed)(y, physics)
    assert len(drawn) == 2 * (1 + 2)  # the start and two levels each
    assert len({tuple(noise.flatten().tolist()) for noise in drawn}) == 6


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_change_no_result_and_lower_the_peak(method):
    physics = noisy_inpainting()
    y = physics(torch.rand(4, *IMAGE).double())
    sizes = []

    class Watched(ConvNet):
        def forward(self, z, t):
            sizes.append(len(z))
            return super().forward(z, t)

    prior = toy_prior(Watched())
    whole = METHODS[method](prior)(y, physics)
    assert max(sizes) == 4
    sizes.clear()
    parts = METHODS[method](prior, micro_batch=3)(y, physics)
    assert max(sizes) == 3
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("method", "passes"), [("dmilo", 6), ("dmilo-pgd", 5), ("published", 12), ("dmplug", 7)])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_max_passes_is_a_hard_budget(method, passes, num_samples):
    physics = noisy_inpainting()
    y = physics(torch.rand(2, *IMAGE).double())
    calls = []

    class Watched(ConvNet):
        def forward(self, z, t):
            if z.requires_grad:
                calls.append(len(z))
            return super().forward(z, t)

    model = METHODS[method](toy_prior(Watched()), max_passes=passes * num_samples, num_samples=num_samples)
    x, metrics = model(y, physics, compute_metrics=True)
    assert torch.isfinite(x).all()
    assert 0 < sum(calls) / 2 <= passes * num_samples
    assert metrics["passes"][0][-1] == metrics["passes"][1][-1] == sum(calls) / 2


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, 200),
        ({"max_passes": 25}, 50),
        ({"max_calls": 50}, 50),
        ({"max_passes": 200}, 400),
        ({"max_passes": 200, "num_samples": 2}, 400),
        ({"max_passes": 200, "solver": LBFGS(7, tolerance=0.0)}, 2 * 7 * 6),
        ({"schedule": Chain(), "solver": Adam(200), "max_passes": 150}, 300),
    ],
)
def test_a_budget_is_shared_by_the_problems(settings, calls):
    """Counted where nothing ends early."""
    settings = {"solver": LBFGS(tolerance=0.0), **settings}
    physics = noisy_inpainting()
    y = physics(torch.rand(1, *IMAGE).double())
    _, metrics = DMILO(toy_prior(ConvNet()), **settings)(y, physics, compute_metrics=True)
    assert 0.9 * calls <= metrics["calls"][0][-1] <= calls


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("asked", ["return_std", "return_samples", "quantiles"])
def test_the_spread_of_estimates_is_no_uncertainty(method, asked):
    physics = noisy_inpainting()
    y = physics(torch.rand(2, *IMAGE).double())
    hint = rf"type DMILOSampler\(prior\)\(y, physics, {asked}=\.\.\.\), .* solve\(y, physics\)\.samples"
    with pytest.raises(TypeError, match=hint):
        METHODS[method](toy_prior(ConvNet()), num_samples=2)(y, physics, **{asked: True})


def test_automatic_deviations_start_at_five_standard_deviations_of_the_noise():
    prior = toy_prior(AffineNet(0.0, 0.0), prediction_type="sample")  # a prior of one image, mid-grey
    physics = dinv.physics.Denoising()
    y = torch.full((1, *IMAGE), 0.5).double()
    y[:, :, 3, 7], y[:, :, 5, 9] = 0.5 + 4 * 0.02, 0.5 + 9 * 0.02
    x = DMILO(prior, noise_level=0.02)(y, physics)
    moved = (x - 0.5).abs() > 0.02  # the latent itself moves the image a little
    assert moved[0, :, 5, 9].all()
    assert moved.sum() == 3
    torch.testing.assert_close(x[0, :, 5, 9], torch.full((3,), 0.5 + 4 * 0.02).double(), rtol=0, atol=5e-3)


def test_a_schedule_starts_from_what_the_prior_expects():
    """With nothing measured the image is the prior's mean, here 0.7 everywhere."""
    prior = toy_prior(AffineNet(0.0, 0.4), prediction_type="sample")
    physics = Inpainting(IMAGE, mask=torch.zeros(IMAGE)).double()
    x = DMILO(prior, schedule=Levels((1.0,)), noise_level=0.1)(physics.A(torch.rand(1, *IMAGE).double()), physics)
    torch.testing.assert_close(x, torch.full_like(x, 0.7), rtol=0, atol=1e-2)
