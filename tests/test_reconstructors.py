"""What holds for every method on every physics: shapes, batches, seeds, flags, memory, metrics."""

import re
import sys
from math import log
from types import SimpleNamespace

import deepinv as dinv
import pytest
import torch
from deepinv.physics import LinearPhysics, Physics
from deepinv.utils import TensorList
from diffusers import UNet2DModel
from torch.utils.data import DataLoader
from toys import AffineNet, ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Chain, DiffusionPrior, DMPlug, Levels
from deepinv_dmilo.core.measurements import energy, mean_energy, parts

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


@pytest.fixture
def prior():
    return toy_prior(ConvNet(), dtype=torch.float32)


@pytest.fixture
def inpainting():
    physics = dinv.physics.Inpainting(IMAGE, mask=0.5, rng=torch.Generator().manual_seed(0))
    return physics, physics(torch.rand(4, *IMAGE))


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
    assert set(metrics) == {"cost", "residual", "passes", "psnr"} | ({"noise"} if method != "dmplug" else set())
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
    assert "8/8" in err  # 2 levels x 4 passes
    assert re.search(r"outer=1, residual=0\.\d", err)
    METHODS["dmilo-published"](prior, verbose=True)(y, physics)
    err = capsys.readouterr().err
    assert "18/18" in err  # 2 outer steps x 3 layers x 3 inner steps
    assert re.search(r"outer=2, residual=0\.\d", err)


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


def test_any_deepinv_denoiser_is_a_prior(inpainting):
    class Shrink(dinv.models.Denoiser):
        """The posterior mean of pixels of mean 0.4 and variance 0.01."""

        def forward(self, x, sigma):
            return 0.4 + (x - 0.4) * 0.01 / (0.01 + sigma**2)

    physics, y = inpainting
    y, physics = y.double(), physics.double()
    model = DMILO(Shrink(), noise_level=0.02)
    assert model.prior.level(10.0).sigma == 0.2
    x = model(y, physics, init=torch.full_like(y, 0.5))
    hidden = (physics.mask == 0).expand_as(x)
    torch.testing.assert_close(x[hidden], torch.full_like(x[hidden], 0.4), rtol=0, atol=2e-2)  # of the tolerance
    assert ((x - y)[~hidden]).square().mean().sqrt() < 0.05
    prior = DiffusionPrior.from_denoiser(Shrink(), max_noise=0.5)
    assert DMILO(prior).prior is prior
    assert prior.level(10.0).sigma == 0.5
    assert METHODS["dmilo-published"](prior)(y, physics).shape == x.shape


def test_levels_that_the_prior_does_not_tell_apart_are_one():
    prior = DiffusionPrior.from_denoiser(dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1), max_noise=0.2)
    assert [chain[0].sigma for chain in Levels().chains(prior)] == [0.2, 0.17, 0.055]


def test_a_drunet_restores_and_lowers_the_residual(inpainting):
    physics, y = inpainting
    torch.manual_seed(0)
    model = DMILO(dinv.models.DRUNet(pretrained=None, nc=(8, 8, 8, 8), nb=1), max_passes=6, noise_level=0.1)
    x, metrics = model(y[:1], physics, compute_metrics=True)
    assert x.shape == (1, *IMAGE)
    assert metrics["residual"][0][-1] < y[:1].square().mean().sqrt()


@pytest.mark.parametrize("method", METHODS)
def test_printing_shows_every_setting(method, prior):
    text = repr(METHODS[method](prior, num_samples=3, micro_batch=2, rng=7))
    assert all(part in text for part in ("num_samples=3", "micro_batch=2", "rng=7", "verbose=False", "max_passes=None"))
    if method == "dmilo-pgd":
        assert "schedule=Levels(sigmas=(1.0, 0.2), skip=True, mean=True, deviation_threshold=5.0)" in text
        assert "step_size='auto', gradient_steps=10, normalize_gradient=False" in text


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


def test_a_denoiser_is_tried_at_the_door(inpainting):
    class Frozen(dinv.models.Denoiser):
        @torch.no_grad()
        def forward(self, x, sigma):
            return 0.9 * x

    physics, y = inpainting
    with pytest.raises(ValueError, match=r"without a gradient; pass one that .* without no_grad\(\)"):
        DMILO(Frozen())(y, physics)
    grey = dinv.models.DRUNet(in_channels=1, out_channels=1, pretrained=None, nc=(4, 4, 4, 4), nb=1)
    with pytest.raises(ValueError, match="do not fit the denoiser DRUNet"):
        DMILO(grey)(y, physics)
    colour = dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1)
    assert DMILO(colour, max_passes=4)(y[:1].double(), physics.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", [dinv.models.TVDenoiser, dinv.models.WaveletDenoiser, dinv.models.BM3D])
def test_a_denoiser_without_a_network_is_told_where_it_goes(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", SimpleNamespace())  # which deepinv's BM3D asks for
    with pytest.raises(TypeError, match=f"a {kind.__name__} has no network .* such as deepinv.optim.PGD"):
        DMILO(kind())


def test_a_denoiser_that_takes_a_gradient_itself_is_told(inpainting):
    physics, y = inpainting
    with pytest.raises(ValueError, match="GSPnP has no gradient that can be taken"):
        DMILO(dinv.models.GSDRUNet(pretrained=None))(y, physics)


def test_a_diffusion_model_of_deepinv_starts_at_the_noise_that_it_was_trained_up_to(inpainting):
    """Also at a size that it does not take."""
    torch.manual_seed(0)
    net = dinv.models.NCSNpp(img_resolution=16, model_channels=32, num_blocks=1, pretrained=None)
    model = DMILO(net, max_passes=4)
    assert model.prior.level(1000.0).sigma == 40.0
    physics = dinv.physics.Inpainting((3, 18, 16), mask=0.5)
    assert model(physics(torch.rand(1, 3, 18, 16)), physics).shape == (1, 3, 18, 16)
    wrapped = DiffusionPrior.from_pretrained("digits").denoiser()
    assert DiffusionPrior.from_denoiser(wrapped).max_noise == pytest.approx(78.6, rel=0.01)


def test_a_score_model_of_deepinv_tells_its_noise_by_a_function_and_its_size_by_what_is_inside():
    class Score(UNet2DModel):
        def forward(self, x, t, **settings):
            return super().forward(x, t).sample

    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    schedule = {"sigma_t": lambda t: 0.01 * 50**t, "sigma_inverse": lambda s: (100 * s).log() / log(50)}
    network = dinv.models.ScoreModelWrapper(Score(**sizes, **kinds), **schedule, variance_exploding=True)
    model = DMILO(network, max_passes=4)
    assert model.prior.max_noise == pytest.approx(0.25)  # a half for images in [-1, 1]
    physics = dinv.physics.Inpainting((3, 17, 18), mask=0.5)
    assert model(physics(torch.rand(1, 3, 17, 18)), physics).shape == (1, 3, 17, 18)


def test_a_large_picture_of_a_diffusion_model_of_deepinv_tells_what_attention_costs(monkeypatch):
    net = dinv.models.DiffUNet(pretrained=None, large_model=False)
    monkeypatch.setattr(net, "img_size", 16)
    monkeypatch.setattr(net, "forward", lambda x, sigma: 0.9 * x)
    with pytest.warns(RuntimeWarning, match="16 times that of its 16 x 16 pixels; a network without it, Tiled"):
        DMILO(net).prior.check_shape((1, 3, 32, 32))


def test_a_denoiser_starts_from_an_image_not_from_noise(inpainting):
    """It was never shown pure noise."""
    seen = []

    class Watched(dinv.models.Denoiser):
        def forward(self, x, sigma):
            seen.append(x.detach().std().item())
            return x / (1 + sigma**2)

    physics, y = inpainting
    DMILO(Watched(), max_passes=4, noise_level=0.05)(y, physics)
    assert max(seen) < 0.5  # the noise of level 0.2 on an image in [0, 1]


def test_a_chain_of_a_denoiser_and_a_chain_without_deviations(prior, inpainting):
    physics, y = inpainting
    chain = DMILO(prior, schedule=Chain(num_layers=2, outer_steps=1, sparsity=None), solver=LBFGS(steps=3))
    assert chain(y, physics).shape == y.shape
