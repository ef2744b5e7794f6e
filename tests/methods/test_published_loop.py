"""The published algorithms written out naively, from their equations, against the product."""

import pytest
import torch
from deepinv.physics import Blur, Downsampling, Inpainting
from toys import AffineNet, ConvNet, observe, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DMPlug
from deepinv_dmilo.likelihood.observe import mean_squares

IMAGE = (3, 24, 40)
LEVELS = [(999, 666), (666, 333), (333, 0)]
PUBLISHED = {
    "schedule": Chain(num_layers=3, outer_steps=2, sparsity=0.1, latent_penalty=1e-4),
    "solver": Adam(steps=10, latent_lr=2e-2, deviation_lr=1e-3),
}
ROUNDING = {"rtol": 0, "atol": 1e-6}  # float64, amplified by Adam's first, sign-like steps


def ddim(prior, t, s, z):
    abar = prior.family.alphas_cumprod
    eps = prior.network(z, torch.full((len(z),), t))
    x0 = ((z - (1 - abar[t]) ** 0.5 * eps) / abar[t] ** 0.5).clamp(-1, 1)
    eps = (z - abar[t] ** 0.5 * x0) / (1 - abar[t]) ** 0.5
    return abar[s] ** 0.5 * x0 + (1 - abar[s]) ** 0.5 * eps


def naive_pass(prior, A, y, z, nu, inner):
    """One DMILO outer step on one image; z has the three latents, nu the three deviations."""
    for i in (2, 1, 0):
        zi, ni = z[i].clone().requires_grad_(), nu[i].clone().requires_grad_()
        adam = torch.optim.Adam([{"params": [zi], "lr": 2e-2}, {"params": [ni], "lr": 1e-3}])
        for _ in range(inner):
            out = ddim(prior, *LEVELS[i], zi) + ni
            fit = 4 * ((A((out + 1) / 2) - y) ** 2).mean() if i == 2 else ((out - z[i + 1]) ** 2).mean()
            loss = fit + 0.1 * ni.abs().mean() + 1e-4 * (zi**2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        z[i], nu[i] = zi.detach(), ni.detach()
    with torch.no_grad():
        out = z[0]
        for i in range(3):
            z[i] = out
            out = ddim(prior, *LEVELS[i], out) + nu[i]
    return ((out + 1) / 2).clamp(0, 1)


def naive(prior, physics, y, z_init, *, outer, inner, step_size=None):
    """DMILO, with a step size DMILO-PGD, one image at a time."""
    images = []
    for n in range(len(y)):
        with torch.no_grad():
            z, out = [], z_init[n : n + 1]
            for t, s in LEVELS:
                z.append(out)
                out = ddim(prior, t, s, out)
        nu = [torch.zeros_like(z[0]) for _ in range(3)]
        x, target = torch.full_like(z[0], 0.5), y[n : n + 1]
        for _ in range(outer):
            if step_size is not None:
                xg = x.clone().requires_grad_()
                (0.5 * ((physics.A(xg) - y[n : n + 1]) ** 2).sum()).backward()
                target = physics.A((x - step_size * xg.grad).clamp(0, 1))
            x = naive_pass(prior, physics.A, target, z, nu, inner)
        images.append(x)
    return torch.cat(images)


@pytest.fixture
def problem():
    prior = toy_prior(ConvNet()).eval()
    physics = Downsampling(img_size=IMAGE, filter="bicubic", factor=4).double()
    y = physics(torch.rand(2, *IMAGE, dtype=torch.float64))
    return prior, physics, y, torch.randn(2, *IMAGE, dtype=torch.float64)


def test_dmilo_is_the_published_loop(problem):
    prior, physics, y, z = problem
    expected = naive(prior, physics, y, z, outer=2, inner=10)
    x = DMILO(prior, **PUBLISHED)(y, physics, init=z)
    torch.testing.assert_close(x, expected, **ROUNDING)


@pytest.mark.parametrize("step_size", [16.0, 1.0])
def test_dmilo_pgd_is_the_published_loop(problem, step_size):
    prior, physics, y, z = problem
    expected = naive(prior, physics, y, z, outer=2, inner=10, step_size=step_size)
    model = DMILOPGD(prior, step_size=step_size, gradient_steps=1, **PUBLISHED)
    torch.testing.assert_close(model(y, physics, init=z), expected, **ROUNDING)


def test_dmplug_is_the_published_loop(problem):
    prior, physics, y, z_init = problem
    images = []
    for n in range(2):
        z = z_init[n : n + 1].clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=1e-2)
        for _ in range(20):
            out = z
            for t, s in LEVELS:
                out = ddim(prior, t, s, out)
            adam.zero_grad()
            (4 * ((physics.A((out + 1) / 2) - y[n : n + 1]) ** 2).mean()).backward()
            adam.step()
        with torch.no_grad():
            out = z
            for t, s in LEVELS:
                out = ddim(prior, t, s, out)
        images.append(((out + 1) / 2).clamp(0, 1))
    x = DMPlug(prior, steps=20, lr=1e-2)(y, physics, init=z_init)
    torch.testing.assert_close(x, torch.cat(images), **ROUNDING)


def test_the_paper_computes_the_data_term_in_minus_one_one():
    """For linear A the paper's residual is A u - (2 y - A 1): the factor 4 gives its mean square."""
    physics = Blur(torch.rand(1, 1, 3, 5).double(), padding="circular")
    x, y = torch.rand(2, *IMAGE).double(), torch.rand(2, *IMAGE).double()
    (fit,) = mean_squares(y, observe(y, physics).forward)
    paper = physics.A(2 * x - 1) - (2 * y - physics.A(torch.ones_like(x)))
    torch.testing.assert_close(fit(x), paper.square().mean((1, 2, 3)))


def test_a_layer_of_the_affine_prior_reaches_its_closed_form():
    """One layer, no deviation, a diagonal operator: ridge regression, pixel by pixel."""
    prior = toy_prior(AffineNet(0.5, 0.0625), prediction_type="sample", clip_sample=False)
    mask = (torch.rand(1, *IMAGE) > 0.5).double()
    physics = Inpainting(IMAGE, mask=mask).double()
    y = physics(torch.rand(1, *IMAGE).double())
    zero = torch.zeros_like(y)
    offset = prior(zero, 1)
    gain = prior(zero + 1, 1) - offset
    rho = 1e-4
    # minimise mask (gain z + offset + 1 - 2 y)^2 + rho z^2
    z = mask * gain * (2 * y - 1 - offset) / (mask * gain**2 + rho)
    expected = ((gain * z + offset + 1) / 2).clamp(0, 1)
    chain = Chain(num_layers=1, outer_steps=5, sparsity=None, latent_penalty=rho)
    adam = DMILO(prior, schedule=chain, solver=Adam(steps=200, latent_lr=1e-2))
    # Adam with a constant rate ends within a fraction of a step, 1e-2 times the gain of 0.5, of the optimum
    torch.testing.assert_close(adam(y, physics, init=z + 0.3), expected, rtol=0, atol=1e-3)
    lbfgs = DMILO(prior, schedule=chain, solver=LBFGS(steps=30, tolerance=0.0))
    torch.testing.assert_close(lbfgs(y, physics, init=z + 0.3), expected, rtol=0, atol=1e-6)


def test_presets_are_the_papers_and_an_override_changes_one_setting():
    prior = toy_prior(ConvNet())
    model = DMILO.from_preset("super_resolution", prior, outer_steps=2)
    assert model.schedule == Chain(num_layers=3, outer_steps=2, sparsity=0.1, latent_penalty=1e-4)
    assert model.solver == Adam(steps=1000, latent_lr=1e-2)
    plain = DMILO.from_preset("super_resolution", prior)
    assert plain.schedule == Chain(outer_steps=5)
    assert str(model) == str(plain).replace("outer_steps=5", "outer_steps=2")
    for name in ("inpainting", "super_resolution", "deblurring", "nonlinear_deblurring"):
        for method in (DMILO, DMILOPGD, DMPlug):
            method.from_preset(name, prior, num_layers=2, max_passes=60)


def test_the_flat_names_of_a_preset_reach_chain_solver_and_method():
    settings = {"num_layers": 2, "outer_steps": 3, "inner_steps": 4, "latent_lr": 0.5, "deviation_lr": 0.25}
    model = DMILOPGD.from_preset(
        "deblurring", toy_prior(ConvNet()), sparsity=0.3, latent_penalty=0.1, gradient_steps=7, **settings
    )
    assert model.schedule == Chain(2, 3, 0.3, 0.1)
    assert model.solver == Adam(4, 0.5, 0.25)
    assert (model.gradient_steps, model.step_size, model.normalize_gradient) == (7, 1.0, True)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_step_of_super_resolution_fits_every_factor(factor):
    """The published 16 is 1 / ||A||^2 at 4x; at 2x it would be four times too long."""
    physics = Downsampling(img_size=(3, 24, 40), filter="bicubic", factor=factor)
    y = physics(torch.full((1, 3, 24, 40), 0.7))
    forward = observe(y, physics).forward
    assert 1 / (forward.units.scale**2 * forward.squared_norm.item()) == pytest.approx(factor**2, rel=0.15)
    assert DMILOPGD.from_preset("super_resolution", toy_prior(ConvNet())).step_size == "auto"
