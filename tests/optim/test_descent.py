"""What moves images without the network: the gradient steps of DMILO-PGD and their size, and proximal points."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import LinearPhysics
from toys import ConvNet, observe, toy_prior

from deepinv_dmilo import DMILOPGD
from deepinv_dmilo.optim.descent import gradient_steps, proximal_point, squared_norm

IMAGE = (3, 24, 40)


def misfit(y, physics):
    """``||A(x) - y||^2`` of each image."""
    return lambda x: (physics.A(x) - y).square().flatten(1).sum(1)


def test_the_norm_is_that_of_the_matrix():
    physics = dinv.physics.Downsampling(img_size=IMAGE, filter="bilinear", factor=4)
    matrix = torch.func.vmap(lambda e: physics.A(e.view(1, 3, 24, 40)).flatten())(torch.eye(2880)[:960])
    norm = squared_norm(physics.A, torch.rand(2, *IMAGE))
    # the power method stops when a step gains less than a hundredth, which close eigenvalues make several of
    assert norm.tolist() == pytest.approx([float(torch.linalg.matrix_norm(matrix, 2)) ** 2] * 2, rel=0.1)


def test_the_norm_asks_autograd_for_the_adjoint():
    physics = LinearPhysics(A=lambda x: 3 * x[:, :, ::2], A_adjoint=lambda y: 0.01 * y)
    assert squared_norm(physics.A, torch.rand(1, *IMAGE)).item() == pytest.approx(9, rel=1e-2)


def test_the_norm_is_found_once_a_call(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "deepinv_dmilo.likelihood.forward.squared_norm", lambda *args: calls.append(1) or squared_norm(*args)
    )
    physics = dinv.physics.Blur(torch.ones(1, 1, 3, 5) / 15, padding="circular")
    y = physics.A(torch.rand(2, *IMAGE))
    DMILOPGD(toy_prior(ConvNet(), dtype=torch.float32), max_passes=10)(y, physics)
    assert len(calls) == 1


def auto(physics, x):
    """The step size of ``step_size="auto"``."""
    return 1 / squared_norm(physics.A, x)


def test_auto_step_solves_inpainting_at_once():
    """1/||A||^2 is the projection onto {x : A x = y} where A is a mask."""
    physics = dinv.physics.Inpainting(IMAGE, mask=0.5)
    y = physics.A(torch.rand(2, *IMAGE))
    x = torch.full((2, *IMAGE), 0.5)
    moved = gradient_steps(x, misfit(y, physics), steps=1, size=auto(physics, x))
    torch.testing.assert_close(physics.A(moved), y, rtol=0, atol=1e-4)  # of the power method


@pytest.mark.parametrize("size", [True, False])
def test_an_image_that_stands_still_costs_nothing_more(size):
    physics = dinv.physics.Inpainting(IMAGE, mask=0.5)
    y, x, calls = physics.A(torch.rand(2, *IMAGE)), torch.full((2, *IMAGE), 0.5), []
    counted = lambda image: calls.append(len(image)) or misfit(y, physics)(image)  # noqa: E731
    gradient_steps(x, counted, steps=50, size=auto(physics, x) if size else None, standstill=1e-3)
    assert len(calls) < 20


def test_backtracking_decreases_a_nonlinear_misfit_image_by_image():
    gain = torch.tensor([1.0, 1.0, 30.0]).view(3, 1, 1, 1)  # another scale, hence another step
    physics = dinv.physics.Physics(A=lambda x: gain * x.clamp(min=1e-3) ** 0.45)
    distance = misfit(physics.A(torch.rand(3, *IMAGE)), physics)
    x = torch.full((3, *IMAGE), 0.5)
    curves = torch.stack([distance(gradient_steps(x, distance, steps=k, size=None)) for k in (1, 3, 6, 12)])
    assert (curves[1:] <= curves[:-1]).all()
    assert (curves[-1] < 0.25 * distance(x)).all()  # dark pixels are steep


def test_normalized_gradient_moves_by_the_step_size_at_most():
    """The gradient of ||x - y|| has norm one."""
    x = torch.full((2, *IMAGE), 0.5)
    distance = misfit(x + torch.randn_like(x), dinv.physics.Denoising())
    moved = gradient_steps(x, distance, steps=1, size=torch.full((2,), 0.1), normalize=True)
    torch.testing.assert_close((moved - x).flatten(1).norm(dim=1), torch.full((2,), 0.1))


def test_steps_towards_a_proximal_point_reach_it_whatever_the_step_size():
    """min |x - y|^2 / 2 + p |x - x0|^2 / 2 is at (y + p x0) / (1 + p)."""
    x0, y, pull = torch.rand(2, *IMAGE), torch.rand(2, *IMAGE), torch.tensor([0.5, 9.0])
    expected = (y + pull.view(2, 1, 1, 1) * x0) / (1 + pull.view(2, 1, 1, 1))
    physics = dinv.physics.Denoising()
    for size in (auto(physics, x0), torch.ones(2)):
        x = gradient_steps(x0, misfit(y, physics), steps=3, size=size, pull=pull)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)  # of the power method
    x = gradient_steps(x0.double(), misfit(y, physics), steps=60, size=None, pull=pull)
    torch.testing.assert_close(x, expected.double(), rtol=0, atol=1e-5)


def test_every_kernel_of_a_batch_has_its_own_norm():
    kernels = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    kernels = kernels * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    physics = dinv.physics.Blur(kernels, padding="circular")
    operator = observe(physics.A(torch.rand(2, *IMAGE)), physics).operator
    together = operator.units.scale**2 * operator.squared_norm
    for n in range(2):
        alone = dinv.physics.Blur(kernels[n : n + 1], padding="circular")
        torch.testing.assert_close(together[n : n + 1], squared_norm(alone.A, torch.rand(1, *IMAGE)), rtol=1e-4, atol=0)


def test_the_proximal_point_is_reached_in_few_evaluations_image_by_image():
    """Also where A hardly sees some directions, which gradient steps would take thousands for."""
    matrix = torch.diag(torch.logspace(0, -2, 24).double()) @ torch.linalg.qr(torch.randn(24, 24).double())[0]
    x0, y = torch.rand(2, 1, 4, 6).double(), torch.randn(2, 24).double()
    pull = torch.tensor([1e-2, 10.0]).double()

    def misfit(x, rows=slice(None)):
        return (x.flatten(1) @ matrix.T - y[rows]).square().sum(1)

    def objective(x):
        return misfit(x) + pull * (x - x0).square().flatten(1).sum(1)

    pulls = pull.view(2, 1, 1)
    left, right = matrix.T @ matrix + pulls * torch.eye(24).double(), y @ matrix + pull[:, None] * x0.flatten(1)
    best = objective(torch.linalg.solve(left, right).view_as(x0))
    found = proximal_point(x0, misfit, pull=pull, steps=30, limits=(-1e9, 1e9))
    assert (objective(found) < 1.001 * best).all()
    slow = gradient_steps(x0, misfit, steps=30, size=torch.ones(2).double(), pull=pull, limits=(-1e9, 1e9))
    assert objective(slow)[0] > 1.01 * best[0]
    alone = proximal_point(x0[1:], lambda x: misfit(x, slice(1, 2)), pull=pull[1:], steps=30)
    torch.testing.assert_close(alone, found[1:].clamp(0, 1))
