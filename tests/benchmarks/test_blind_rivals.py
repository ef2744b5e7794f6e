"""Our versions of the rivals of blind deblurring: their steps, each against what it is to be, and on a digit."""

import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising
from toys import ConvNet, toy_prior

from deepinv_dmilo.benchmarks import blind_rivals, report
from deepinv_dmilo.benchmarks.blind_rivals import BlindDPS, FastDiffusionEM, ancestral, blurred, centred
from deepinv_dmilo.benchmarks.methods import METHODS
from deepinv_dmilo.benchmarks.studies import PRESETS, Study, measurements
from deepinv_dmilo.priors.blur_kernels import as_images, as_kernels, middle
from deepinv_dmilo.tools.scoring import score

NOISE, TASK = 0.005, "blind-motion-deblurring"
WEIGHTS = {FastDiffusionEM: 2.0, BlindDPS: 6.0}


@pytest.fixture(scope="module")
def study():
    return Study.open(PRESETS["digits"], "cpu")


@pytest.fixture
def kernel():
    """Asymmetric, (1, 1, 5, 7), centred."""
    kernel = torch.zeros(1, 1, 5, 7)
    kernel[0, 0, 2, 1:6] = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1])
    kernel[0, 0, 3, 4] = 0.1
    return kernel


def rival(kind, study, steps=20):
    return kind(study.prior, tuple(study.pictures.shape[1:]), NOISE, WEIGHTS[kind], steps=steps)


def found(kind, study, x, task=TASK):
    """A rival, its images, and their sum of PSNR; its passes of the network of images are counted, and no others."""
    physics = study.physics(task, NOISE)
    y, model = measurements(x, range(len(x)), physics), rival(kind, study)
    x_hat, scores = score(model, x, y, physics, guessed=study.physics(task, NOISE, kernel=study.guess(task)))
    assert (scores[0]["passes"], scores[0]["calls"]) == (model.steps, 0)
    return model, x_hat, sum(s["psnr"] for s in scores)


def test_images_of_kernels_go_back_to_kernels(kernel):
    torch.testing.assert_close(as_kernels(as_images(kernel), 5, 7), kernel, rtol=0, atol=1e-6)  # its floor


def test_the_middle_of_a_kernel_keeps_its_origin(kernel):
    wide = torch.nn.functional.pad(kernel, [30, 30, 30, 30])
    found = middle(wide)
    assert found.shape == (1, 1, 33, 33)
    assert torch.equal(found[..., 14:19, 13:20], kernel)
    assert torch.equal(middle(kernel), kernel)


def test_the_blur_is_deepinvs(kernel):
    x = torch.rand(2, 3, 24, 40)
    torch.testing.assert_close(blurred(x, kernel), Blur(filter=kernel, padding="circular").A(x))
    torch.testing.assert_close(blurred(x, kernel), BlurFFT((3, 24, 40), filter=kernel).A(x))


@pytest.mark.parametrize(
    "physics",
    [
        Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="valid"),
        Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="reflect"),
        Blur(filter=torch.ones(1, 1, 35, 35) / 35**2, padding="circular"),
        BlurFFT((3, 24, 40), filter=torch.rand(1, 3, 3, 3)),
        Denoising(),
    ],
    ids=["open boundary", "reflected", "too large", "a kernel for each channel", "no blur"],
)
def test_other_blurs_are_refused(physics):
    model = BlindDPS(toy_prior(ConvNet(), dtype=torch.float32), (3, 24, 40), NOISE, 1.0, steps=2)
    with pytest.raises(ValueError, match="type a"):
        model.guess(physics.A(torch.rand(1, 3, 24, 40)), physics)


def test_a_step_of_ddpm_has_the_mean_and_the_noise_of_its_level(study):
    """Of 40,000 numbers: the error of both is half a per cent."""
    torch.manual_seed(0)
    a, b = study.prior.levels(10)[3:5]
    u = torch.full((1, 1, 200, 200), 0.7)
    z = ancestral(a.signal * u + a.noise * torch.randn_like(u), u, a, b)
    assert (z - b.signal * u).mean().abs() < 0.02
    assert z.std().item() == pytest.approx(b.noise, rel=0.02)


def test_a_kernel_is_centred_by_whole_pixels(kernel):
    moved = torch.cat([kernel.roll((1, -1), (-2, -1)), kernel])
    torch.testing.assert_close(centred(moved), kernel.expand(2, -1, -1, -1))


def test_the_m_step_finds_the_kernel_of_a_known_image(study):
    """In ten rounds, of the dozens that a reconstruction has."""
    x, physics = study.pictures[:2], study.physics(TASK, NOISE)
    y, model = measurements(x, range(2), physics), rival(FastDiffusionEM, study)
    kernels = start = study.guess(TASK).expand(2, -1, -1, -1)
    for _ in range(10):
        kernels = model.likeliest(kernels, x, y)
    true = physics.filter[:, :1]
    errors = [(k - centred(true)).flatten(1).norm(dim=1) / true.norm() for k in (kernels, start)]
    assert (errors[0] < errors[1] / 2).all()


@pytest.mark.parametrize("kind", [FastDiffusionEM, BlindDPS])
def test_each_is_better_than_with_the_guess_as_the_kernel(kind, study, monkeypatch):
    x = study.pictures[:2]
    model, x_hat, psnr = found(kind, study, x)
    assert model.kernels.shape == (2, *study.guess(TASK).shape[1:])
    assert (model.kernels >= 0).all()
    torch.testing.assert_close(model.kernels.sum((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(found(kind, study, x)[1], x_hat)  # of the same seed
    guess = study.guess(TASK)
    monkeypatch.setattr(FastDiffusionEM, "likeliest", lambda self, kernels, x, y: kernels)
    monkeypatch.setattr(blind_rivals, "as_kernels", lambda images, h, w: guess + 0 * images.sum((2, 3), True))
    assert psnr > found(kind, study, x)[2] + 2


def test_no_noise_and_no_kernel_give_numbers(study):
    x, model = study.pictures[:1], FastDiffusionEM(study.prior, tuple(study.pictures.shape[1:]), 0.0, 1.0, steps=2)
    assert torch.isfinite(model(x, study.physics(TASK, 0.0))).all()
    assert torch.isfinite(model.denoised(torch.zeros(1, 1, 5, 7))).all()


def test_levels_that_begin_far_below_pure_noise_are_refused(study):
    assert rival(BlindDPS, study, steps=100).training_levels(study.prior)[0].ratio > 10
    with pytest.raises(ValueError, match="type 100"):
        rival(BlindDPS, study, steps=600).training_levels(study.prior)


def test_blur_kernel_takes_about_its_calls(study):
    method, x = METHODS["DMILO, BlurKernel, 200 calls"], study.pictures[:1]
    _, (cost,) = report.reconstruct(study, method, TASK, NOISE, 0.0, x, 0)
    assert 100 < 2 * cost["passes"] + cost["calls"] < 220  # with what finishes it


def test_blind_methods_are_asked_for_blind_tasks_alone(study):
    for name in ("Fast Diffusion EM, 50 passes", "BlindDPS, 100 passes", "DMILO, BlurKernel, 200 calls", "MPRNet"):
        assert report.applies(study, METHODS[name], TASK)
        assert not report.applies(study, METHODS[name], "motion-deblurring")
