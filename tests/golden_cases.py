"""Calls of the public interface on toys, in float64, whose results test_golden.py keeps: a case for every path."""

from typing import Any, NamedTuple

import deepinv as dinv
import torch
from deepinv.optim import L2, PoissonLikelihood
from deepinv.physics import Denoising, GaussianNoise, Inpainting, Physics, PoissonNoise
from golden_physics import (
    EACH,
    NOISES,
    SHAPE,
    SIZES,
    UNTOLD,
    Own,
    blur,
    blur_fft,
    camera,
    compressed,
    fourier,
    hiding,
    kernel,
    latent_prior,
    masked,
    micro_units,
    mri,
    noise,
    one_of_three_masked,
    phase_retrieval,
    pictures,
    smaller,
    stack,
    tanh,
    wiener,
)
from toys import ConvNet, Gain, prior_that_believes, toy_prior

from deepinv_dmilo import (
    DMILO,
    DMILOPGD,
    LBFGS,
    Adam,
    Chain,
    Custom,
    DMPlug,
    Free,
    LatentPrior,
    Levels,
    Positive,
    Simplex,
    Tiled,
)


class Case(NamedTuple):
    """What is called, and with what; ``network`` is the one that the prior calls."""

    model: torch.nn.Module
    network: torch.nn.Module
    y: Any
    physics: Physics
    asked: dict[str, Any]


def case(physics, method=DMILO, *, images=2, shape=SHAPE, network=None, measured_by=None, asked=None, **settings):
    """Of smooth pictures, measured by the physics, or by another one that it is only a guess of."""
    x = pictures(images, shape).to(torch.complex128 if "phase" in type(physics).__name__.lower() else torch.float64)
    y = (measured_by or physics)(x)
    prior = wiener() if network == "wiener" else network or toy_prior(ConvNet(shape[0]))
    make = settings.pop("make", method)
    inside = prior.prior if isinstance(prior, LatentPrior | Tiled) else prior
    return Case(make(prior, **settings), inside.network, y, physics, asked or {})


def untold(make, **settings):
    """Measurements with noise, by a physics that tells of none."""
    silent = make(dinv.physics.ZeroNoise())
    return case(silent, measured_by=make(UNTOLD), **settings)


def blind(make, sigma, method=DMILO, told=None, **settings):
    """Of a blur that is narrower than its guess."""
    guess = make(told or noise(sigma), width=1.6)
    asked = {"return_unknown": True}
    settings = {"unknown": {"filter": Simplex(kernel(1.6))}, "max_passes": 20, **settings}
    return case(guess, method, measured_by=make(noise(sigma), width=0.8), asked=asked, **settings)


def gained(constraint, method=DMILO, noise_model=None, **settings):
    physics, truth = Gain(), Gain(0.6)
    for one in (physics, truth):
        one.noise_model = noise_model or noise(0.01)
    settings = {"max_passes": 20, **settings}
    return case(
        physics, method, measured_by=truth, asked={"return_unknown": True}, unknown={"gain": constraint}, **settings
    )


ONE = torch.ones(1, 1, 1, 1).double()
SHORT = {"schedule": Levels((1.0, 0.2)), "solver": LBFGS(steps=4)}
PUBLISHED = {"outer_steps": 2, "inner_steps": 3}

CASES = {
    # methods and settings
    **{f"DMILO, {n} passes": lambda n=n: case(masked(), max_passes=n) for n in (5, 12, 25)},
    "DMILO, default passes": lambda: case(Denoising(noise()).double()),
    "DMILO, default passes, denoiser": lambda: case(masked(), network="wiener"),
    "DMILO-PGD": lambda: case(masked(), DMILOPGD, max_passes=25),
    "DMILO-PGD, own step": lambda: case(blur(), DMILOPGD, max_passes=12, step_size=0.5),
    "DMILO-PGD, own step, normalised": lambda: case(
        blur(), DMILOPGD, max_passes=12, step_size=0.5, normalize_gradient=True
    ),
    "DMPlug": lambda: case(masked(), DMPlug, steps=4),
    "DMPlug, budget and samples": lambda: case(masked(), DMPlug, max_passes=13, num_samples=2, num_layers=2),
    "published DMILO": lambda: case(masked(), make=lambda p: DMILO.from_preset("inpainting", p, **PUBLISHED)),
    "published DMILO-PGD": lambda: case(
        smaller(), make=lambda p: DMILOPGD.from_preset("super_resolution", p, **PUBLISHED)
    ),
    "published DMILO-PGD, deblurring": lambda: case(
        blur(), make=lambda p: DMILOPGD.from_preset("deblurring", p, gradient_steps=5, **PUBLISHED)
    ),
    "chain, L-BFGS": lambda: case(masked(), schedule=Chain(2, 2, sparsity=None), solver=LBFGS(steps=3)),
    "chain, Adam": lambda: case(masked(), schedule=Chain(3, 2, sparsity=None), solver=Adam(steps=4)),
    "chain, deviations": lambda: case(masked(), schedule=Chain(3, 2), solver=Adam(steps=4, deviation_lr=0.05)),
    "chain, budget": lambda: case(masked(), schedule=Chain(3, 2), solver=Adam(), max_passes=14),
    "chain, gradient steps on tanh": lambda: case(
        tanh(), DMILOPGD, schedule=Chain(2, 2, sparsity=None), solver=LBFGS(steps=3)
    ),
    "chain, init": lambda: case(
        masked(), schedule=Chain(2, 2), solver=Adam(steps=3), asked={"init": 2 * pictures() - 1}
    ),
    "levels, Adam": lambda: case(masked(), schedule=Levels((1.0, 0.2)), solver=Adam(steps=4)),
    "levels, few": lambda: case(masked(), **SHORT),
    "levels, no skip": lambda: case(Denoising(noise()).double(), schedule=Levels(skip=False), max_passes=25),
    "levels, no mean": lambda: case(masked(), schedule=Levels(mean=False), max_passes=12),
    "levels, no deviation": lambda: case(masked(), schedule=Levels(deviation_threshold=None), max_passes=12),
    "levels, much deviation": lambda: case(masked(), schedule=Levels(deviation_threshold=1.0), max_passes=12),
    "init": lambda: case(masked(), max_passes=12, asked={"init": pictures().flip(3)}),
    "samples": lambda: case(masked(), max_passes=24, num_samples=2),
    "samples, small batches": lambda: case(masked(images=2), num_samples=2, micro_batch=3, max_passes=24),
    "generator": lambda: case(masked(), rng=torch.Generator().manual_seed(3), max_passes=12),
    "one image": lambda: case(masked(), images=1, max_passes=12),
    "denoiser": lambda: case(masked(), network="wiener", max_passes=25),
    "latents": lambda: case(
        Inpainting((3, 16, 16), mask=0.5, noise_model=noise(), rng=torch.Generator().manual_seed(0)).double(),
        shape=(3, 16, 16),
        network=latent_prior(),
        schedule=Levels((1.0, 0.2)),
        max_passes=8,
    ),
    "tiles": lambda: case(
        Denoising(noise()).double(),
        shape=(3, 16, 40),
        network=Tiled(toy_prior(ConvNet()), tile=16, overlap=4),
        max_passes=12,
    ),
    # operators
    "denoising": lambda: case(Denoising(noise()).double(), max_passes=12),
    "mask for each image": lambda: case(masked(images=2), max_passes=12),
    "mask for each image, DMILO-PGD": lambda: case(masked(images=2), DMILOPGD, max_passes=12),
    "blur, FFT": lambda: case(blur_fft(), max_passes=12),
    "blur, valid": lambda: case(blur(), max_passes=12),
    "blur, valid, DMILO-PGD": lambda: case(blur(), DMILOPGD, max_passes=12),
    "blur, circular": lambda: case(blur(padding="circular"), max_passes=12),
    "super-resolution": lambda: case(smaller(), max_passes=12),
    "compressed sensing": lambda: case(compressed(), max_passes=12),
    "MRI": lambda: case(mri(), shape=(2, 12, 20), max_passes=12),
    "complex": lambda: case(fourier(), max_passes=12),
    "stack": lambda: case(stack(noise(), noise()), max_passes=12),
    "stack of unlike noise": lambda: case(stack(noise(0.01), noise(0.2)), max_passes=12),
    "stack of unlike noise, DMILO-PGD": lambda: case(stack(noise(0.01), noise(0.2)), DMILOPGD, max_passes=12),
    "stack of photons and Gaussian noise": lambda: case(stack(PoissonNoise(0.02), noise(0.1)), max_passes=12),
    "tanh": lambda: case(tanh(), max_passes=12),
    "tanh, DMILO-PGD": lambda: case(tanh(), DMILOPGD, max_passes=12),
    "tanh, much noise": lambda: case(tanh(noise(0.6)), max_passes=25),
    "camera": lambda: case(camera(), max_passes=12),
    "phase retrieval": lambda: case(phase_retrieval(), max_passes=12),
    "hidden differences": lambda: case(hiding(), max_passes=12),
    "hidden differences, DMILO-PGD": lambda: case(hiding(), DMILOPGD, max_passes=12, num_samples=2),
    "small units": lambda: case(micro_units(), max_passes=12),
    # noise
    **{
        f"noise: {name}": lambda make=make: case(Denoising(make()).double(), max_passes=12)
        for name, make in NOISES.items()
    },
    "noise: each measurement": lambda: case(
        Denoising(GaussianNoise(SIZES)).double(), measured_by=Denoising(Own(SIZES.double())), max_passes=12
    ),
    "noise: Poisson, each image": lambda: case(
        Denoising(PoissonNoise(torch.tensor([0.035, 0.045]))).double(), max_passes=5
    ),
    "noise: Poisson, masked": lambda: case(masked(PoissonNoise(0.02)), max_passes=12),
    "noise: Poisson, tanh": lambda: case(
        Physics(A=lambda x: 0.5 + 0.5 * torch.tanh(2 * x - 1), noise_model=PoissonNoise(0.02)), max_passes=12
    ),
    "noise: Poisson, DMILO-PGD": lambda: case(Denoising(PoissonNoise(0.02)).double(), DMILOPGD, max_passes=12),
    "noise: salt and pepper, DMILO-PGD": lambda: case(
        Denoising(NOISES["salt and pepper"]()).double(), DMILOPGD, max_passes=12
    ),
    "noise: not told": lambda: untold(Denoising, network="wiener", max_passes=12),
    "noise: not told, mask for each image": lambda: untold(
        lambda n: masked(n, images=2), network="wiener", max_passes=25
    ),
    "noise: not told, blur": lambda: untold(blur, network="wiener", max_passes=25),
    "noise: not told, tanh": lambda: untold(tanh, method=DMILOPGD, max_passes=12),
    "noise level": lambda: untold(masked, noise_level=0.04, max_passes=12),
    "fidelity: squares": lambda: untold(masked, data_fidelity=L2(0.04), max_passes=12),
    "fidelity: photons": lambda: case(
        Denoising(PoissonNoise(0.02)).double(), data_fidelity=PoissonLikelihood(gain=0.02, bkg=0.01), max_passes=12
    ),
    # unknown parameters
    "blind: circular": lambda: blind(blur_fft, 0.005),
    "blind: circular, 40 passes": lambda: blind(blur_fft, 0.012, max_passes=40),
    "blind: circular, much noise": lambda: blind(blur_fft, 0.1, max_passes=60),
    "blind: circular, much noise, denoiser": lambda: blind(blur_fft, 0.1, max_passes=60, network="wiener"),
    "blind: circular, noise of each image": lambda: blind(blur_fft, torch.tensor([0.012, 0.1]), max_passes=30),
    "blind: valid, noise of each image": lambda: blind(blur, torch.tensor([0.012, 0.1]), max_passes=30),
    "blind: circular, samples": lambda: blind(blur_fft, 0.012, num_samples=3, max_passes=45),
    "blind: circular, noise not told": lambda: blind(blur_fft, 0.02, told=dinv.physics.ZeroNoise()),
    "blind: circular, default passes": lambda: blind(blur_fft, 0.1, max_passes=None, images=1),
    "blind: valid": lambda: blind(blur, 0.005),
    "blind: valid, 60 passes": lambda: blind(blur, 0.012, max_passes=60),
    "blind: valid, much noise": lambda: blind(blur, 0.06, max_passes=60),
    "blind: valid, noise about that much": lambda: blind(blur, torch.tensor([0.0115, 0.0145]), max_passes=10),
    "blind: valid, noise not told": lambda: blind(blur, 0.02, told=dinv.physics.ZeroNoise()),
    "blind: valid, own levels": lambda: blind(blur, 0.01, schedule=Levels((1.0, 0.37, 0.1)), solver=LBFGS(steps=3)),
    "blind: valid, samples": lambda: blind(blur, 0.06, num_samples=2, max_passes=20),
    "blind: DMILO-PGD": lambda: blind(blur_fft, 0.012, DMILOPGD),
    "blind: photons": lambda: blind(blur_fft, 0.01, told=PoissonNoise(0.002)),
    "gain: positive": lambda: gained(Positive(ONE)),
    "gain: positive, DMILO-PGD": lambda: gained(Positive(ONE), DMILOPGD),
    "gain: free, believing prior": lambda: gained(Free(ONE), network=prior_that_believes()),
    "gain: custom": lambda: gained(Custom(0 * ONE, lambda raw: 2 * torch.sigmoid(raw))),
    "gain: squares": lambda: gained(Positive(ONE), data_fidelity=L2(0.01)),
    "gain: chain": lambda: gained(Positive(ONE), schedule=Chain(2, 2), solver=Adam(steps=4)),
    # several rules in a batch
    "mixed: one masked": lambda: case(one_of_three_masked(), images=3, max_passes=25),
    "mixed: one masked, samples": lambda: case(one_of_three_masked(), images=3, max_passes=24, num_samples=2),
    "mixed: noise": lambda: case(Denoising(GaussianNoise(EACH)).double(), images=3, max_passes=25),
    "mixed: noise and one masked": lambda: case(one_of_three_masked(GaussianNoise(EACH)), images=3, max_passes=25),
    "mixed: noise, DMILO-PGD": lambda: case(blur_fft(GaussianNoise(EACH)), DMILOPGD, images=3, max_passes=25),
    "mixed: denoiser": lambda: case(
        one_of_three_masked(GaussianNoise(EACH)), images=3, network="wiener", max_passes=40
    ),
}
