"""Any shape, type, operator and combination of settings: a finite reconstruction in range, or one error that helps."""

import os
import warnings
from functools import partial

import deepinv as dinv
import torch
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from toys import ConvNet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, Custom, DMILOSampler, DMPlug, Free, Levels, Positive

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "25"))  # the whole file in a minute; thousands to search for defects
REFUSALS = (ValueError, TypeError, FloatingPointError)
#: what an error of ours says to do; one of another's, that only went through, does not
ADVICE = ("type ", "pass ", "give ", "leave ", "lower ", "write it ", "replace ", "pad ", "use ")


class Complex(dinv.physics.LinearPhysics):
    """Half of the Fourier transform."""

    def A(self, x, **kwargs):
        return torch.fft.fft2(x, norm="ortho")[..., ::2]

    def A_adjoint(self, y, **kwargs):
        full = torch.zeros(*y.shape[:-1], self.width, dtype=y.dtype)
        full[..., ::2] = y
        return torch.fft.ifft2(full, norm="ortho").real


def make_complex(shape, noise):
    physics = Complex(img_size=shape, noise_model=noise)
    physics.width = shape[-1]
    return physics


def make_stack(shape, noise):
    mask = dinv.physics.Inpainting(shape, mask=0.5, noise_model=noise)
    return dinv.physics.stack(mask, dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)))


PHYSICS = {
    "denoising": lambda shape, noise: dinv.physics.Denoising(noise),
    "mask": lambda shape, noise: dinv.physics.Inpainting(shape, mask=0.5, noise_model=noise),
    "empty mask": lambda shape, noise: dinv.physics.Inpainting(shape, mask=torch.zeros(shape), noise_model=noise),
    "blur": lambda shape, noise: dinv.physics.Blur(
        torch.full((1, 1, 1, 1), 0.5), padding="circular", noise_model=noise
    ),
    "nonlinear": lambda shape, noise: dinv.physics.Physics(A=lambda x: x.square() + 0.1 * x, noise_model=noise),
    "mean": lambda shape, noise: dinv.physics.Physics(A=lambda x: x.flatten(1).mean(1, keepdim=True), img_size=shape),
    "rounding": lambda shape, noise: dinv.physics.Physics(A=lambda x: (8 * x).round() / 8, noise_model=noise),
    "complex": make_complex,
    "stack": make_stack,
}
KERNEL = torch.full((1, 1, 1, 1), 0.4)
UNKNOWN = (None, {"filter": Free(KERNEL)}, {"filter": Positive(KERNEL)}, {"filter": Custom(KERNEL, torch.sigmoid)})
GAMMA = partial(dinv.physics.GammaNoise, 4.0)  # of deepinv, which takes nothing that is 0
NOISES = (
    lambda: dinv.physics.ZeroNoise(),
    lambda: dinv.physics.GaussianNoise(0.05),
    lambda: dinv.physics.PoissonNoise(0.1),
    lambda: dinv.physics.UniformNoise(0.1),
    lambda: dinv.physics.PoissonGaussianNoise(0.05, 0.1, clip_positive=True),
    lambda: dinv.physics.LogPoissonNoise(50.0, 0.5),
    GAMMA,
    lambda: dinv.physics.LaplaceNoise(0.1),
    lambda: dinv.physics.SaltPepperNoise(0.1, 0.1),
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
MAYBE_ONE = st.sampled_from((None, 1))


@st.composite
def schedules(draw):
    if draw(st.booleans()):
        return Levels(draw(st.sampled_from(((1.0,), (1.0, 0.2), (5.0, 0.5, 0.05), (0.01,)))))
    sparsity = draw(st.sampled_from((0.1, None, 0.0)))
    return Chain(num_layers=draw(st.integers(1, 3)), outer_steps=draw(st.integers(1, 2)), sparsity=sparsity)


SOLVERS = st.one_of(
    st.builds(LBFGS, steps=st.sampled_from((None, 1, 3)), tolerance=st.sampled_from((0.0, 2e-3))),
    st.builds(Adam, steps=st.integers(1, 3), latent_lr=st.sampled_from((1e-3, 0.1, 10.0))),
)


@st.composite
def models(draw, channels, dtype, unknown=(None,)):
    prior = toy_prior(ConvNet(channels), dtype=dtype)
    shared = {
        **draw(st.sampled_from(({"max_passes": 1}, {"max_passes": 3}, {"max_calls": 5}, {"max_calls": 12}))),
        "num_samples": draw(st.integers(1, 2)),
        "micro_batch": draw(MAYBE_ONE),
        "rng": draw(st.sampled_from((0, 7))),
    }
    method = draw(st.sampled_from((DMILO, DMILOPGD, DMPlug, DMILOSampler)))
    if method is DMILOSampler:
        settings = {**shared, "max_passes": None, "max_calls": 20 * shared["num_samples"]}
        return DMILOSampler(prior, noise_level=draw(st.sampled_from((None, None, 1e-3, 0.5))), **settings)
    if method is DMPlug:
        return DMPlug(prior, num_layers=draw(st.integers(1, 3)), steps=draw(st.integers(1, 3)), **shared)
    extra = {"schedule": draw(schedules()), "solver": draw(SOLVERS)}
    extra["noise_level"] = draw(st.sampled_from((None, None, 1e-3, 0.5)))
    extra["data_fidelity"] = draw(st.sampled_from((None, None, dinv.optim.L2(0.1), dinv.optim.L1())))
    extra["unknown"] = draw(st.sampled_from(unknown))
    if method is DMILOPGD:
        extra["step_size"] = draw(st.sampled_from(("auto", 0.5)))
        extra["gradient_steps"] = draw(st.sampled_from((1, 3)))
        extra["normalize_gradient"] = draw(st.booleans())
    return method(prior, **extra, **shared)


def attempt(run):
    """The outcome, or None where it was refused with advice."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of measurements that an untrained network leaves unexplained
            return run()
    except REFUSALS as error:
        note(str(error))
        if not any(word in str(error) for word in ADVICE):
            raise
        return None


def check_images(images, shape, dtype):
    assert images.shape == shape
    assert images.dtype == dtype
    assert torch.isfinite(images).all()


def working(y):
    real = y.real.dtype if y.is_complex() else y.dtype
    return torch.promote_types(real, torch.float32)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.data(), SHAPES, st.integers(1, 2), st.sampled_from(sorted(PHYSICS)), st.sampled_from(NOISES))
def test_a_combination_of_settings_gives_images_or_is_refused(data, shape, batch, kind, noise):
    torch.manual_seed(0)
    x = torch.rand(batch, *shape)
    assume(kind != "complex" or noise in NOISES[:2])  # deepinv's others are of real measurements
    assume(noise is not GAMMA or kind in ("denoising", "blur", "nonlinear", "mean"))  # also not through a stack's mask
    physics = PHYSICS[kind](shape, noise())
    with torch.no_grad():
        y = physics(x)
    model = attempt(lambda: data.draw(models(shape[0], torch.float32, UNKNOWN if kind == "blur" else (None,))))
    asked = {"compute_metrics": data.draw(st.booleans())}
    asked["init"] = torch.randn(x.shape) if data.draw(st.booleans()) else None
    if getattr(model, "unknown", None):
        asked["return_unknown"] = True
    result = None if model is None else attempt(lambda: model(y, physics, **asked))
    if result is None:
        return
    images, *rest = result if isinstance(result, tuple) else (result,)
    if getattr(model, "unknown", None):
        assert torch.isfinite(rest.pop(0)["filter"]).all()
    check_images(images, x.shape, torch.float32)
    low, high = images.min(), images.max()
    assert low >= -1e-6  # rounding of a mean over samples
    assert high <= 1 + 1e-6
    assert len(rest) == asked["compute_metrics"]
    if asked["compute_metrics"]:
        assert all(len(rows) == batch for rows in rest[-1].values())
        assert torch.isfinite(torch.tensor(rest[-1]["residual"])).all()


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    st.sampled_from((DMILO, DMILOPGD, DMPlug)),
    SHAPES,
    st.integers(0, 3),
    st.sampled_from(DTYPES),
    st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    st.sampled_from((0.0, 1.0, 1e3, 1e30, float("nan"))),
)
def test_measurements_of_any_type_shape_and_scale_give_images_or_are_refused(
    method, shape, batch, dtype, weights, scale
):
    torch.manual_seed(0)
    model = method(toy_prior(ConvNet(shape[0]), dtype=weights), max_passes=3)
    y = (scale * torch.rand(batch, *shape)).to(dtype)
    physics = dinv.physics.Inpainting(shape, mask=0.5).to(dtype if dtype.is_floating_point else torch.float32)
    images = attempt(lambda: model(y, physics))
    if images is not None:
        assert batch
        assert dtype.is_floating_point
        check_images(images, (batch, *shape), working(y))


NUMBERS = st.one_of(st.sampled_from((None, True, "3", 0, -1, 1.5, float("nan"), float("inf"), 2, 10**30)), st.floats())


@settings(max_examples=4 * EXAMPLES, deadline=None, derandomize=True)
@given(
    st.sampled_from(
        [(DMILO, name) for name in ("max_passes", "num_samples", "micro_batch", "rng", "noise_level", "data_fidelity")]
        + [(DMILO, name) for name in ("schedule", "solver", "step_size", "sparsty")]
        + [(DMILOPGD, name) for name in ("step_size", "gradient_steps")]
        + [(DMPlug, name) for name in ("num_layers", "steps", "lr")]
        + [(Chain, name) for name in ("num_layers", "outer_steps", "sparsity", "latent_penalty")]
        + [(LBFGS, name) for name in ("steps", "tolerance")]
        + [(Adam, name) for name in ("steps", "latent_lr")]
        + [(Levels, name) for name in ("sigmas", "deviation_threshold", "skip")]
    ),
    NUMBERS,
)
def test_a_setting_of_any_value_is_taken_or_refused(setting, value):
    kind, name = setting
    first = (toy_prior(ConvNet(1)),) if kind in (DMILO, DMILOPGD, DMPlug) else ()
    attempt(lambda: kind(*first, **{name: value}))
