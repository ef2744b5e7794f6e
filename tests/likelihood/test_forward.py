"""Which rows of a batch see which operator, and how often the operator is asked."""

from functools import partial

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from toys import ConvNet, observe, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD
from deepinv_dmilo.likelihood.forward import PerImageForward, SharedForward, WholeBatchForward, forward_model
from deepinv_dmilo.likelihood.measurements import energy
from deepinv_dmilo.schedules.planning import SEVEN

IMAGE = (3, 24, 40)
GAINS = torch.tensor([0.05, 1.0, 0.5, 1.0]).double()


def kernels():
    """One kernel for each of four images."""
    return torch.rand(4, 1, 3, 5, generator=torch.Generator().manual_seed(0)).double()


def hidden_gains(gains):
    """An operator that takes as many images as it has gains, and tells nobody."""
    return LinearPhysics(
        A=lambda x: torch.stack([g * xi for g, xi in zip(gains, x, strict=False)]), A_adjoint=lambda y: y
    )


PHYSICS = {
    "shared": lambda: dinv.physics.Blur(kernels()[:1], padding="circular"),
    "kernels": lambda: dinv.physics.Blur(kernels(), padding="circular"),
    "spectra": lambda: dinv.physics.BlurFFT(IMAGE, filter=kernels()),
    "masks": lambda: dinv.physics.Inpainting(
        IMAGE, mask=(torch.rand(4, *IMAGE) > 0.5).double(), noise_model=GaussianNoise(0.05)
    ).double(),
    "stack of kernels": lambda: dinv.physics.StackedLinearPhysics(
        [dinv.physics.Blur(kernels(), padding="circular"), dinv.physics.Denoising()]
    ),
    "hidden": lambda: hidden_gains(GAINS),
}


def counted(A, counts, x, **kwargs):
    """A of images, after counting them."""
    counts.append(len(x))
    return A(x, **kwargs)


KIND = {"shared": SharedForward, "hidden": WholeBatchForward}


@pytest.mark.parametrize("name", PHYSICS)
@pytest.mark.parametrize("num_samples", [1, 3])
def test_any_rows_have_the_measurements_of_their_images(name, num_samples):
    physics = PHYSICS[name]()
    x = torch.rand(4 * num_samples, *IMAGE).double()
    whole = [physics.A(part) for part in x.split(4)]
    forward = observe(whole[0], physics, num_samples).forward
    assert type(forward) is KIND.get(name, PerImageForward)
    assert forward.is_split is (name != "hidden")
    for rows in (torch.arange(4 * num_samples), torch.tensor([2]), torch.tensor([3, 0]).repeat(1)):
        measured = forward.units.physical(forward(x[rows], rows), rows)
        for k, row in enumerate(rows.tolist()):
            expected = (
                dinv.utils.TensorList([t[row % 4] for t in whole[row // 4]])
                if "stack" in name
                else whole[row // 4][row % 4]
            )
            got = dinv.utils.TensorList([t[k] for t in measured]) if "stack" in name else measured[k]
            assert energy(got - expected).sum() <= 1e-20


@pytest.mark.parametrize("gains", [GAINS, GAINS[[1, 0, 1]], GAINS[[1, 1, 0]], GAINS[[0]]])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_an_operator_that_hides_what_differs_is_found_out(gains, num_samples):
    physics = hidden_gains(gains)
    y = physics.A(torch.rand(len(gains), *IMAGE).double())
    model = DMILO(toy_prior(ConvNet()), max_passes=8 * num_samples, num_samples=num_samples, noise_level=0.01)
    alone = [model(y[n : n + 1], hidden_gains(gains[n : n + 1])) for n in range(len(gains))]
    # float64 rounding, amplified by steps that are accepted or not
    torch.testing.assert_close(model(y, physics), torch.cat(alone), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PHYSICS)
def test_micro_batches_and_samples_of_operators_for_each_image(name):
    """The same images, and no more measurements than whole batches make, where the operator can be split."""
    physics = PHYSICS[name]()
    y = physics.A(torch.rand(4, *IMAGE).double())
    images, measured = {}, {}
    for size in (None, 1, 3):
        counts, inner = [], physics.A
        physics.A = partial(counted, inner, counts)
        model = DMILO(toy_prior(ConvNet()), max_passes=16, num_samples=2, micro_batch=size, noise_level=0.05)
        images[size] = model(y, physics)
        measured[size] = sum(counts)
        physics.A = inner
    for size in (1, 3):
        torch.testing.assert_close(images[size], images[None], rtol=0, atol=1e-6)  # as above
        if name not in ("hidden", "stack of kernels"):
            assert measured[size] <= 1.05 * measured[None]


@pytest.mark.parametrize("name", ["shared", "masks"])
def test_the_physics_is_as_before(name):
    physics = PHYSICS[name]()
    before = {key: t.clone() for key, t in physics.state_dict().items()}
    y = physics.A(torch.rand(4, *IMAGE).double())
    DMILOPGD(toy_prior(ConvNet()), max_passes=8, micro_batch=1)(y, physics)
    assert all(torch.equal(t, before[key]) for key, t in physics.state_dict().items())


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("name", ["inpainting", "super-resolution", "blur", "nonlinear"])
def test_the_operator_is_seldom_asked(method, name):
    """At most 1.5 evaluations of A for a pass of the network, and 120 on top, or 255, for an image."""
    noise = GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
    blur = dinv.physics.Blur(torch.ones(1, 1, 5, 5).double() / 25, padding="circular")
    physics = {
        "inpainting": lambda: dinv.physics.Inpainting(IMAGE, mask=0.5, noise_model=noise),
        "super-resolution": lambda: dinv.physics.Downsampling(
            img_size=IMAGE, filter="bicubic", factor=4, noise_model=noise
        ),
        "blur": lambda: dinv.physics.Blur(torch.ones(1, 1, 5, 5) / 25, padding="circular", noise_model=noise),
        "nonlinear": lambda: dinv.physics.Physics(A=lambda x: blur.A(x).clamp(min=1e-3) ** 0.45, noise_model=noise),
    }[name]().double()
    y = physics(torch.rand(2, *IMAGE).double())
    counts = []
    physics.A = partial(counted, physics.A, counts)
    _, metrics = method(toy_prior(ConvNet()))(y, physics, compute_metrics=True)
    passes = sum(curve[-1] for curve in metrics["passes"]) / 2
    looks = len(SEVEN)  # of the metrics
    assert sum(counts) / 2 - looks <= 1.5 * passes + (255 if name == "nonlinear" else 120)


@pytest.mark.parametrize(
    ("A", "linear"),
    [
        (lambda x: 3 * x[..., ::2].flatten(1), True),
        (lambda x: torch.fft.fft2(x), True),
        (lambda x: x + 0.1, False),
        (lambda x: x.square(), False),
        (lambda x: x.clamp(0, 1), False),
        (lambda x: torch.sigmoid(8 * (x - 0.5)), False),
    ],
)
def test_an_operator_that_does_not_say_so_is_found_to_be_linear(A, linear):
    x = torch.rand(2, 3, 8, 10)
    assert forward_model(dinv.physics.Physics(A=A), tuple(x.shape), x, single=False).is_linear is linear


@pytest.fixture
def tf32():
    """Torch may round factors, as it does in convolutions on a GPU."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def rounded(t, bits=11):
    mantissa, exponent = torch.frexp(t)
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent)


def blur_by_the_batch(kernel):
    """A blur whose factors are rounded to TF32 in batches of at least three, as another algorithm is chosen there."""

    def A(x):
        factors = (x, kernel) if len(x) < 3 else (x + (rounded(x) - x).detach(), rounded(kernel))
        return torch.nn.functional.conv2d(*factors, groups=3)

    return dinv.physics.Physics(A=A)


@pytest.mark.parametrize("kernel", ["box", "Laplacian"])
def test_rounding_that_depends_on_the_batch_is_no_other_operator(kernel, tf32):
    kernels = {"box": torch.ones(3, 3) / 9, "Laplacian": torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])}
    physics, x = blur_by_the_batch(kernels[kernel].expand(3, 1, 3, 3)), torch.rand(4, *IMAGE)
    forward = forward_model(physics, tuple(x.shape), x, single=False)
    assert isinstance(forward, SharedForward)
    assert forward.is_linear
    torch.set_float32_matmul_precision("highest")
    assert not isinstance(forward_model(physics, tuple(x.shape), x, single=False), SharedForward)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_the_physics_is_no_other_operator(dtype):
    """Sums of a batch of at least three are rounded the other way in the last bit; 196,608 squares exceed float16."""
    x, bits = torch.rand(4, 3, 256, 256), {torch.bfloat16: 8, torch.float16: 11}[dtype]

    def physics(gain):
        def A(x):
            half = (100 * x).to(dtype)
            return half if len(x) < 3 else (half * (1 + gain * 2.0 ** (1 - bits))).to(dtype)

        return dinv.physics.Physics(A=A)

    assert isinstance(forward_model(physics(1), tuple(x.shape), x, single=False), SharedForward)
    assert not isinstance(forward_model(physics(16), tuple(x.shape), x, single=False), SharedForward)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
def test_precision_that_is_set_by_backends_is_understood():
    """Torch's older function, which tells the precision, then raises an error."""
    torch.backends.fp32_precision = "tf32"
    try:
        x = torch.rand(2, *IMAGE)
        assert isinstance(forward_model(dinv.physics.Denoising(), tuple(x.shape), x, single=False), SharedForward)
    finally:
        torch.backends.fp32_precision = "none"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("difference", ["gain", "pixel", "kernel"])
def test_another_operator_for_each_image_is_none_of_rounding(difference, tf32):
    x = torch.rand(4, *IMAGE)
    if difference == "gain":  # of half a percent
        physics = hidden_gains([1.0, 1.0, 1.005, 1.0])
    elif difference == "pixel":  # of 983 thousand
        x, mask = torch.rand(2, 3, 320, 1024), torch.ones(2, 3, 320, 1024)
        mask[1, 0, 3, 5] = 0
        physics = hidden_gains(mask)
    else:
        blurs = [dinv.physics.functional.gaussian_blur(sigma=(s, s), psf_size=(9, 9)) for s in (1.0, 1.0, 1.02, 1.0)]
        kernels = [blur.expand(3, 1, 9, 9) for blur in blurs]
        physics = LinearPhysics(
            A=lambda x: torch.cat(
                [torch.nn.functional.conv2d(xi[None], k, groups=3) for k, xi in zip(kernels, x, strict=False)]
            ),
            A_adjoint=lambda y: y,
        )
    assert not isinstance(forward_model(physics, tuple(x.shape), x, single=False), SharedForward)
