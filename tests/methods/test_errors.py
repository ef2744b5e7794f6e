"""Measurements, physics and starts that do not fit: one named error that says what to type instead."""

import deepinv as dinv
import pytest
import torch
from diffusers import DDIMScheduler
from toys import ConvNet, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, DiffusionPrior, DMILOSampler, DMPlug, Levels
from deepinv_dmilo.optim import lbfgs
from deepinv_dmilo.utils.memory import is_out_of_memory

IMAGE = (1, 16, 24)


@pytest.fixture
def prior():
    return DiffusionPrior(tiny_unet(), DDIMScheduler())


@pytest.fixture
def model(prior):
    return DMILOPGD(prior, solver=LBFGS(steps=2))


@pytest.fixture
def physics():
    return dinv.physics.Inpainting(IMAGE, mask=0.5)


def test_the_fixtures_work(model, physics):
    assert model(physics(torch.rand(2, *IMAGE)), physics).shape == (2, *IMAGE)


def test_wrong_number_of_channels(model):
    physics = dinv.physics.Inpainting((3, 16, 24), mask=0.5)
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 24\) do not fit the prior, which takes \(B, 1, H, W\)"):
        model(physics(torch.rand(2, 3, 16, 24)), physics)


def test_a_latent_of_a_size_that_the_network_cannot_take(prior):
    physics = dinv.physics.Inpainting((1, 16, 25), mask=0.5)
    y = physics(torch.rand(1, 1, 16, 25))
    for method in (DMPlug(prior, steps=1), DMILO.from_preset("inpainting", prior)):
        with pytest.raises(ValueError, match="which the prior's network does not take without padding"):
            method(y, physics, init=torch.randn(1, 1, 16, 25))


def test_measurements_of_another_physics(model, physics):
    with pytest.raises(ValueError, match=r"does not match physics .* pass y = physics\(x\)"):
        model(torch.rand(2, 1, 4, 6), physics)


def test_physics_that_hides_its_image_size_is_asked_to_tell_it(model):
    physics = dinv.physics.Physics(A=lambda x: x.flatten(1)[:, :100].square())
    y = torch.rand(2, 100)
    assert model(y, physics).shape == (2, 1, 16, 16)  # the prior's own size fits
    y, physics = torch.rand(2, 384), dinv.physics.Physics(A=lambda x: x.flatten(1).square())
    with pytest.raises(ValueError, match=r"type physics.img_size = \(C, H, W\)"):
        model(y, physics)
    assert model(y, physics, init=torch.randn(2, *IMAGE)).shape == (2, *IMAGE)
    physics.img_size = IMAGE
    assert model(y, physics).shape == (2, *IMAGE)


def test_complex_measurements_of_a_real_physics_and_the_reverse(model):
    fourier = dinv.physics.Physics(A=lambda x: torch.fft.fft2(x, norm="ortho"))
    y = torch.rand(2, 1, 8, 8)
    with pytest.raises(TypeError, match="y is real and the physics' measurements are complex"):
        model(y, fourier)
    with pytest.raises(TypeError, match="y is complex and the physics' measurements are real"):
        model(y.to(torch.complex64), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)))


def test_a_check_looks_at_all_that_a_call_looks_at(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    with pytest.raises(ValueError, match="cannot be differentiated"):
        model.check(y, dinv.physics.Physics(A=lambda x: x.detach()))
    one = DMILO(model.prior, max_passes=4)
    one.max_passes = 0
    with pytest.raises(ValueError, match="max_passes=0: type a whole number of at least 1"):
        one(y, physics)


def test_a_first_image_of_another_scale_is_told(model, physics):
    x = torch.rand(2, *IMAGE)
    with pytest.warns(RuntimeWarning, match=r"init has values from .* to .*, and is an image in \[0, 1\]"):
        model(physics(x), physics, init=255 * x)


def test_init_of_another_batch(model, physics):
    with pytest.raises(ValueError, match="init has shape"):
        model(physics(torch.rand(2, *IMAGE)), physics, init=torch.randn(3, *IMAGE))
    with pytest.raises(ValueError, match=r"init has shape \(2, 1, 8, 8\)"):
        model(physics(torch.rand(2, *IMAGE)), physics, init=torch.randn(2, 1, 8, 8))


def test_physics_and_prior_on_another_device(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    with pytest.raises(ValueError, match=r"physics is on meta and y on cpu; type physics.to\(y.device\)"):
        model(y, physics.to("meta"))
    model.prior.to("meta")
    with pytest.raises(ValueError, match=r"the prior is on meta and y on cpu; type model.to\(y.device\)"):
        model(y, physics)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_measurements_that_are_not_finite(model, physics, value):
    y = physics(torch.rand(2, *IMAGE))
    y[0, 0, 3, 4] = value
    with pytest.raises(ValueError, match="y has 1 NaN or infinite values"):
        model(y, physics)


def test_empty_batch(model, physics):
    with pytest.raises(ValueError, match="non-empty batch"):
        model(torch.zeros(0, *IMAGE), physics)


def test_arguments_in_the_wrong_order_or_of_the_wrong_kind(model, physics, prior):
    y = physics(torch.rand(1, *IMAGE))
    with pytest.raises(TypeError, match="y is a Inpainting"):
        model(physics, y)
    with pytest.raises(TypeError, match="physics is a function"):
        model(y, lambda x: x)
    with pytest.raises(TypeError, match="prior is a UNet2DModel; pass DiffusionPrior"):
        DMILO(prior.network)
    with pytest.raises(TypeError, match="rng is a str; pass a seed"):
        DMILO(prior, rng="3")
    with pytest.raises(TypeError, match="no alphas_cumprod"):
        DiffusionPrior(prior.network, object())


def test_an_operator_without_a_gradient(model):
    physics = dinv.physics.LinearPhysics(A=lambda x: torch.from_numpy(x.detach().numpy()), A_adjoint=lambda y: y)
    with pytest.raises(ValueError, match=r"physics.A cannot be differentiated; write it in torch"):
        model(torch.rand(1, *IMAGE), physics)


@pytest.mark.parametrize("operator", [lambda x: x.mul_(2), lambda x: torch.from_numpy(x.numpy())])
def test_an_operator_that_torch_cannot_follow(model, operator):
    with pytest.raises(ValueError, match=r"cannot be differentiated \(.*\); write it in torch, without detach"):
        model(torch.rand(1, *IMAGE), dinv.physics.Physics(A=operator))


def test_an_operator_whose_gradient_is_zero(model):
    with pytest.raises(ValueError, match=r"its gradient is zero, as that of rounding"):
        model(torch.rand(1, *IMAGE), dinv.physics.Physics(A=lambda x: (8 * x).round() / 8))


@pytest.mark.parametrize("batch", [1, 2])
def test_an_operator_that_is_another_at_each_call(model, batch):
    """A new mask, or a lamp that flickers: what A draws is not what y was made with."""
    y = torch.rand(batch, *IMAGE)
    masks = dinv.physics.Physics(A=lambda x: x * (torch.rand_like(x) < 0.5))
    flickering = dinv.physics.Physics(A=lambda x: (0.9 + 0.1 * torch.rand(())) * x)
    dropout = torch.nn.Dropout(0.1)
    for physics in (masks, flickering, dinv.physics.Physics(A=dropout)):
        for call in (model.check, model):
            with pytest.raises(ValueError, match=r"physics\.A gives two results for the same image; pass a physics"):
                call(y, physics)
    assert model.check(y, dinv.physics.Physics(A=dropout.eval())) == (batch, *IMAGE)


def test_finite_differences_have_a_gradient(model):
    """Though not at a constant image."""
    physics = dinv.physics.Physics(A=lambda x: x.diff(dim=3).square())
    assert model(physics.A(torch.rand(1, *IMAGE)), physics, init=torch.rand(1, *IMAGE)).shape == (1, *IMAGE)


def test_whole_numbers_are_no_measurements(model, physics):
    y = physics(torch.rand(1, *IMAGE))
    with pytest.raises(TypeError, match=r"y is torch\.uint8; pass floats on the scale of"):
        model((255 * y).byte(), physics)
    with pytest.raises(TypeError, match=r"init is a tensor of torch\.uint8; pass a floating tensor"):
        model(y, physics, init=torch.zeros(1, *IMAGE).byte())


def test_a_physics_that_takes_no_image_is_told(model):
    y, kernel = torch.rand(1, *IMAGE), torch.full((1, 1, 3, 3), 1 / 9)
    with pytest.raises(TypeError, match=r"y is torch.float64, and physics computes in torch.float32 .*; pass y.to"):
        model(y.double(), dinv.physics.Blur(kernel))
    with pytest.raises(ValueError, match=r"physics.A takes no image of shape .* kernel\[None, None\]"):
        model(y, dinv.physics.Blur(kernel[0, 0]))


def test_init_and_several_samples(prior, physics):
    y = physics(torch.rand(1, *IMAGE))
    for method in (DMPlug(prior, steps=1, num_samples=2), DMILO.from_preset("inpainting", prior, num_samples=2)):
        with pytest.raises(ValueError, match="type num_samples=1, or leave init out"):
            method(y, physics, init=torch.randn(1, *IMAGE))


def test_a_network_that_is_no_module_and_a_type_that_is_none(prior):
    with pytest.raises(TypeError, match="network is a function"):
        DiffusionPrior(lambda z, t: z, DDIMScheduler())
    with pytest.raises(TypeError, match=r"autocast='bfloat16': type torch.bfloat16"):
        DiffusionPrior(prior.network, DDIMScheduler(), autocast="bfloat16")


def test_ground_truth_of_another_shape(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    for x_gt in (torch.rand(1, *IMAGE), torch.rand(2, *IMAGE).numpy()):
        with pytest.raises(ValueError, match=r"x_gt is .* pass the ground truth of the batch, a tensor of shape \(2, "):
            model(y, physics, x_gt=x_gt, compute_metrics=True)
    with pytest.raises(ValueError, match="x_gt is only used for the metric psnr; type compute_metrics=True"):
        model(y, physics, x_gt=torch.rand(2, *IMAGE))


def test_divergence_in_the_last_step_is_not_returned(model, physics, monkeypatch):
    """The step that is taken after the last objective that anyone looks at."""
    minimize = lbfgs.minimize

    def diverging(*args, **settings):
        z, value, passes = minimize(*args, **settings)
        return z * float("nan"), value, passes

    monkeypatch.setattr(lbfgs, "minimize", diverging)
    model = DMILO(model.prior, schedule=Levels((1.0,), mean=False, deviation_threshold=None))
    with pytest.raises(FloatingPointError, match="the last step left NaN"):
        model(physics(torch.rand(1, *IMAGE)), physics)


def test_divergence_names_step_and_row(physics):
    net = ConvNet(channels=1)
    net.register_forward_hook(lambda module, given, output: output * float("nan"))
    prior = toy_prior(net, dtype=torch.float32)
    y = physics(torch.rand(1, *IMAGE))
    with pytest.raises(
        FloatingPointError, match=r"layer 3 of 3, outer step 1: .* became nan in step 1 of row 0; lower"
    ):
        DMILO.from_preset("inpainting", prior, inner_steps=2)(y, physics)
    with pytest.raises(FloatingPointError, match=r"layer 1 of 1, outer step \d: .* nowhere finite, .*give a power"):
        DMILO(prior, noise_level=0.1)(y, physics)
    with pytest.raises(FloatingPointError, match=r"all layers, outer step 1: .* became nan in step 1 of row 0; lower"):
        DMPlug(prior)(y, physics)
    with pytest.raises(FloatingPointError, match="infinite pixels; use float32 weights, or a larger noise_level"):
        DMILOSampler(prior, noise_level=0.1, num_samples=1)(y, physics)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate.handle.`"),
        getattr(torch, "AcceleratorError", MemoryError)("CUDA error: an illegal memory access was encountered"),
    ],
)
@pytest.mark.parametrize("allowed", [0, 1, 2, 4, 6, 9])
def test_out_of_memory_in_the_physics_arrives_as_what_it_is(prior, error, allowed):
    """Wherever it happens: at the door, where the operator is looked at, in the noise, in a pass."""
    blur, calls = dinv.physics.Blur(torch.rand(2, 1, 3, 5), padding="circular"), []

    def short_of_memory(x):
        calls.append(len(x))
        if len(calls) > allowed:
            raise error
        return blur.A(x)

    physics = dinv.physics.Physics(A=short_of_memory)
    with pytest.raises(type(error), match=str(error)):
        DMILO(prior, solver=LBFGS(steps=2))(torch.rand(2, *IMAGE), physics)


@pytest.mark.parametrize(
    ("words", "is_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA driver error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if", True),
        ("cuFFT error: CUFFT_ALLOC_FAILED", True),
        ("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED", True),
        ("HIP error: rocblas_status_memory_error", True),
        ("miopenStatusAllocFailed", True),
        ("MPS backend out of memory (MPS allocated: 8.00 GB)", True),
        ("Invalid buffer size: 24.00 GiB", True),
        ("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: not enough memory: you tried to allocate", True),
        ("unable to mmap 8589934592 bytes from file: Cannot allocate memory (12)", True),
        ("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1", False),
        ("CUDA error: CUBLAS_STATUS_INVALID_VALUE", False),
    ],
)
def test_out_of_memory_has_many_faces(words, is_memory):
    assert is_out_of_memory(RuntimeError(words)) is is_memory


def test_out_of_memory_in_the_noise_arrives_as_what_it_is(prior):
    class Exhausted(dinv.physics.GaussianNoise):
        def forward(self, x, *args, **kwargs):
            raise torch.OutOfMemoryError("no")

    physics = dinv.physics.Denoising(Exhausted(0.1))
    with pytest.raises(torch.OutOfMemoryError):
        DMILO(prior, solver=LBFGS(steps=2))(torch.rand(2, *IMAGE), physics)
