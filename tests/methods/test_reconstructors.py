"""What holds for every method on every physics: shapes, batches, seeds, flags, memory, metrics."""

import re

import deepinv as dinv
import pytest
import torch
from deepinv.physics import LinearPhysics, Physics
from torch.utils.data import DataLoader
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, DMPlug, Levels
from deepinv_dmilo.likelihood.measurements import energy, mean_energy, parts

IMAGE = (3, 24, 40)
PUBLISHED = {"outer_steps": 2, "inner_steps": 3}
SHORT = {"schedule": Levels((1.0, 0.2)), "solver": LBFGS(steps=4)}
METHODS = {
    "dmilo": lambda prior, **s: DMILO(prior, **{**SHORT, **s}),
    "dmilo-pgd": lambda prior, **s: DMILOPGD(prior, **{**SHORT, **s}),
    "dmilo-published": lambda prior, **s: DMILO.from_preset("inpainting", prior, **{**PUBLISHED, **s}),
    "dmilo-pgd-published": lambda prior, **s: DMILOPGD.from_preset("inpainting", prior, **{**PUBLISHED, **s}),
    "dmplug": lambda prior, **s: DMPlug(prior, steps=3, **s),
}


def camera_response_blur(rng):
    """A nonlinear physics without adjoint, as a user writes one."""
    blur = dinv.physics.Blur(torch.ones(1, 1, 3, 5).double() / 15, padding="circular")
    return Physics(A=lambda x: blur.A(x.clamp(min=1e-3)) ** 0.45)


def complex_physics(rng):
    return LinearPhysics(
        A=lambda x: torch.fft.rfft2(x)[..., ::2],
        A_adjoint=lambda y: torch.fft.irfft2(torch.stack((y, 0 * y), -1).flatten(-2)[..., :21], s=(24, 40)) * 960,
    )


PHYSICS = {
    "denoising": lambda rng: dinv.physics.Denoising(dinv.physics.PoissonNoise(0.1)),
    "inpainting": lambda rng: dinv.physics.Inpainting(IMAGE, mask=0.3, rng=rng),
    "super-resolution": lambda rng: dinv.physics.Downsampling(img_size=IMAGE, filter="bicubic", factor=4),
    "blur-valid": lambda rng: dinv.physics.Blur(torch.ones(1, 1, 3, 5) / 15, padding="valid"),
    "blur-fft": lambda rng: dinv.physics.BlurFFT(IMAGE, filter=torch.ones(1, 1, 3, 5) / 15),
    "compressed-sensing": lambda rng: dinv.physics.CompressedSensing(
        m=200, img_size=IMAGE, rng=rng, dtype=torch.float64
    ),
    "phase-retrieval": lambda rng: dinv.physics.RandomPhaseRetrieval(
        m=300, img_size=IMAGE, rng=rng, dtype=torch.complex128
    ),
    "decolorize": lambda rng: dinv.physics.Decolorize(),
    "stacked": lambda rng: dinv.physics.StackedLinearPhysics(
        # .double() of a stack does not reach its members
        [
            dinv.physics.Inpainting(IMAGE, mask=0.3, rng=rng, noise_model=dinv.physics.GaussianNoise(0.1)).double(),
            dinv.physics.Downsampling(
                img_size=IMAGE,
                filter="bicubic",
                noise_model=dinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(3)),
            ).double(),
        ]
    ),
    "complex": complex_physics,
    "nonlinear": camera_response_blur,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PHYSICS)
def test_every_method_takes_every_physics(method, name):
    """Images in [0, 1] of the right shape, and a batch that is its images one by one."""
    physics = PHYSICS[name](torch.Generator().manual_seed(0)).double()
    x = torch.rand(3, *IMAGE, dtype=torch.float64)
    y = physics(x.to(torch.complex128) if name == "phase-retrieval" else x)
    model = METHODS[method](toy_prior(ConvNet()))
    x_hat = model(y, physics)
    assert x_hat.shape == x.shape
    assert x_hat.dtype == torch.float64
    assert not x_hat.requires_grad
    assert 0 <= x_hat.min() <= x_hat.max() <= 1
    alone = dinv.utils.TensorList([t[1:2] for t in parts(y)]) if name == "stacked" else y[1:2]
    # float64 rounding of sums in another order, amplified by Adam's first, sign-like steps
    torch.testing.assert_close(model(alone, physics), x_hat[1:2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_four_latents_is_four_batches_of_one(method, inpainting):
    physics, y = inpainting
    model = METHODS[method](toy_prior(ConvNet()))
    z = torch.randn(4, *IMAGE, dtype=torch.float64)
    together = model(y.double(), physics.double(), init=z)
    one_by_one = torch.cat([model(y[n : n + 1].double(), physics, init=z[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-9)  # float64 rounding, amplified by Adam


@pytest.mark.parametrize("method", METHODS)
def test_float32_measurements_are_reconstructed_in_float32(method, prior, inpainting):
    physics, y = inpainting
    x = METHODS[method](prior)(y, physics)
    assert x.dtype == torch.float32
    exact = METHODS[method](toy_prior(ConvNet()))(y.double(), physics.double())
    assert (x - exact).abs().mean() < 1e-3  # Adam's sign-like first steps amplify rounding at single pixels


@pytest.mark.parametrize("method", METHODS)
def test_same_call_same_image_and_the_global_state_is_untouched(method, prior, inpainting):
    physics, y = inpainting
    before = torch.random.get_rng_state()
    model = METHODS[method](prior)
    assert torch.equal(model(y, physics), model(y, physics))
    seeded = [METHODS[method](prior, rng=torch.Generator().manual_seed(s))(y, physics) for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture
def float64_by_default():
    """What torch makes where no type is given."""

    def switch():
        torch.set_default_dtype(torch.float64)

    yield switch
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sigma", [0.05, None])
@pytest.mark.parametrize("method", ["dmilo", "dmilo-pgd", "dmplug"])
def test_a_seed_means_the_same_image_whatever_the_default_type(method, sigma, prior, inpainting, float64_by_default):
    physics, y = inpainting
    if sigma is not None:  # noise that is drawn from the physics; else it is estimated
        physics.noise_model = dinv.physics.GaussianNoise(sigma)

    def made():
        seeds = 3, torch.Generator().manual_seed(3)
        return [METHODS[method](prior, rng=rng)(y[:1], physics) for rng in seeds]

    before = made()
    float64_by_default()
    for image, expected in zip(made(), before, strict=True):
        assert torch.equal(image, expected)


@pytest.mark.parametrize("method", METHODS)
def test_weights_flags_and_physics_are_as_before(method, prior):
    physics = dinv.physics.Blur(torch.ones(1, 1, 3, 5) / 15, padding="valid")
    physics.filter = torch.nn.Parameter(physics.filter.clone())  # a learned kernel must not collect gradients
    y = physics(torch.rand(2, *IMAGE)).detach()
    prior.train()
    prior.network.last.bias.requires_grad_(False)
    weights = {k: v.clone() for k, v in prior.state_dict().items()}
    METHODS[method](prior)(y, physics)
    assert all(torch.equal(v, weights[k]) for k, v in prior.state_dict().items())
    assert prior.network.dropout.training
    assert [p.requires_grad for p in prior.parameters()] == [True, True, True, False]
    assert all(p.grad is None for p in [*prior.parameters(), *physics.parameters()])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_result_does_not_depend_on_the_callers_gradient_mode(mode, prior, inpainting):
    physics, y = inpainting
    model = METHODS["dmilo-pgd"](prior)
    expected = model(y, physics)
    with mode():
        inside = model(y * 1.0, physics)
    assert torch.equal(inside.clone(), expected)


def test_benchmark_runner_protocol(prior, inpainting):
    """deepinv's benchmark runner moves the model late, assigns its device and hashes its text."""
    physics, y = inpainting
    model = METHODS["dmilo"](prior)
    text = str(model)
    model.to("cpu").double()
    model.device = "cpu"
    assert str(model) == text
    assert "solver=LBFGS(steps=4, tolerance=0.002)" in text
    with torch.no_grad():
        assert model(y[:1], physics).shape == (1, *IMAGE)


def test_deepinv_test_with_convergence_metrics(prior, inpainting, tmp_path):
    physics, _ = inpainting
    model = METHODS["dmilo-pgd"](prior)
    results = dinv.test(
        model,
        DataLoader(torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(1))),
        physics,
        metrics=[dinv.loss.metric.PSNR()],
        online_measurements=True,
        plot_convergence_metrics=True,
        save_folder=tmp_path,
        verbose=False,
        show_progress_bar=False,
    )
    x = torch.rand(2, *IMAGE, generator=torch.Generator().manual_seed(1))
    expected = [dinv.loss.metric.PSNR()(model(physics(x[n : n + 1]), physics), x[n : n + 1]).item() for n in range(2)]
    assert results["PSNR"] == pytest.approx(sum(expected) / 2, abs=1e-3)


@pytest.mark.parametrize(("method", "points"), [("dmilo", 2), ("dmilo-pgd", 2), ("dmplug", 4)])
def test_metrics_have_a_value_per_outer_step_and_sample(method, points, prior, inpainting):
    physics, y = inpainting
    x_gt = torch.rand(4, *IMAGE)
    x, metrics = METHODS[method](prior)(y, physics, x_gt=x_gt, compute_metrics=True)
    noise = {"noise"} if method != "dmplug" else set()
    assert set(metrics) == {"cost", "residual", "passes", "calls", "psnr"} | noise
    assert all(len(curve) == points for curves in metrics.values() for curve in curves)
    assert all(len(curves) == 4 for curves in metrics.values())
    rms = (physics.A(x) - y).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(torch.tensor([c[-1] for c in metrics["residual"]]), rms)
    psnr = dinv.loss.metric.PSNR()(x, x_gt)
    torch.testing.assert_close(torch.tensor([c[-1] for c in metrics["psnr"]]), psnr)
    assert torch.equal(x, METHODS[method](prior)(y, physics))


def saved_bytes(method, num_layers):
    """The peak of what autograd keeps alive during a reconstruction."""
    alive, peak = 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal alive, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            alive += self.size
            peak = max(peak, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.size

    physics = dinv.physics.Inpainting(IMAGE, mask=0.5)
    layers = {} if method == "dmilo" else {"num_layers": num_layers}
    model = METHODS[method](toy_prior(ConvNet(), dtype=torch.float32), **layers)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        model(physics(torch.rand(1, *IMAGE)), physics)
    return peak


@pytest.mark.parametrize("method", ["dmilo-published", "dmilo-pgd-published"])
def test_memory_holds_one_layers_graph(method):
    assert saved_bytes(method, 6) == saved_bytes(method, 2)
    assert saved_bytes("dmilo", 2) < 1.2 * saved_bytes(method, 2)


def test_memory_of_dmplug_holds_them_all():
    assert saved_bytes("dmplug", 6) > 2.5 * saved_bytes("dmplug", 2)


def test_progress_bar_is_complete(prior, inpainting, capsys):
    physics, y = inpainting
    METHODS["dmilo"](prior)(y, physics)
    assert capsys.readouterr().err == ""
    METHODS["dmilo"](prior, verbose=True)(y, physics)
    err = capsys.readouterr().err
    assert "16/16" in err  # 2 levels x 4 passes of two calls
    assert re.search(r"outer=1, residual=0\.\d", err)
    METHODS["dmilo-published"](prior, verbose=True)(y, physics)
    err = capsys.readouterr().err
    assert "36/36" in err  # 2 outer steps x 3 layers x 3 inner steps of two calls
    assert re.search(r"outer=2, residual=0\.\d", err)
    METHODS["dmplug"](prior, verbose=True)(y, physics)
    assert "18/18" in capsys.readouterr().err  # 3 steps, through 3 layers each, of two calls


def test_energy_counts_complex_values_and_lists():
    y = dinv.utils.TensorList([torch.tensor([[3 + 4j, 0j]]), torch.tensor([[2.0]])])
    assert energy(y).tolist() == [29]
    torch.testing.assert_close(mean_energy(y), torch.tensor([29 / 3]))


def test_a_callers_autocast_does_not_reach_the_optimisation(prior, inpainting):
    physics, y = inpainting
    expected = METHODS["dmilo-pgd"](prior)(y, physics)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(METHODS["dmilo-pgd"](prior)(y, physics), expected)


@pytest.mark.parametrize("method", METHODS)
def test_model_moved_late_gives_the_same_image_on_any_device(method, inpainting):
    device = dinv.utils.get_device(verbose=False)  # the GPU where there is one
    physics, y = inpainting
    model = METHODS[method](toy_prior(ConvNet()))
    expected = model(y.double(), physics.double())
    x = model.to(device)(y.double().to(device), physics.to(device)).cpu()
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)  # another order of sums, amplified by Adam


def test_levels_that_the_prior_does_not_tell_apart_are_one():
    prior = DiffusionPrior.from_denoiser(dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1), max_noise=0.2)
    model, physics = DMILO(prior, schedule=Levels(skip=False)), dinv.physics.Denoising()
    ((_, plan),) = model.plan(torch.rand(1, 3, 16, 24), physics).groups
    assert [stage.levels[0].sigma for stage in plan.stages] == [0.2, 0.17, 0.055]


@pytest.mark.parametrize("method", METHODS)
def test_printing_shows_every_setting(method, prior):
    text = repr(METHODS[method](prior, num_samples=3, micro_batch=2, rng=7))
    assert all(part in text for part in ("num_samples=3", "micro_batch=2", "rng=7", "verbose=False", "max_calls=None"))
    if method == "dmilo-pgd":
        levels = "sigmas=(1.0, 0.2), skip=True, decoupled=False, mean=True, deviation_threshold=5.0, finishing=()"
        assert f"schedule=Levels({levels})" in text
        assert "step_size='auto', gradient_steps=10, normalize_gradient=False" in text
