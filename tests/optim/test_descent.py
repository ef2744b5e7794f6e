"""What moves images without the network: the gradient steps of DMILO-PGD and their size, and proximal points."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import LinearPhysics
from toys import ConvNet, observe, toy_prior

from deepinv_dmilo import DMILOPGD
from deepinv_dmilo.likelihood.measurements import energy
from deepinv_dmilo.likelihood.wiener import SPREAD, conditional_spectrum
from deepinv_dmilo.optim.descent import (
    correlated_proximal_point,
    filtered,
    gradient_steps,
    proximal_point,
    sparse_deviation,
    squared_norm,
)

IMAGE = (3, 24, 40)


def norm(A, like):
    """``||A||^2`` of each image."""
    return squared_norm(lambda x: energy(A(x)), like)


class HalfSquares:
    """``||A(x) - y||^2 / 2`` of each image; ``A`` takes images and their rows, ``calls`` collects rows evaluated."""

    def __init__(self, y, A, rows=None, calls=None):
        self.y, self.A, self.calls = y, A, [] if calls is None else calls
        self.rows = torch.arange(len(y)) if rows is None else rows

    def __call__(self, x):
        self.calls.append(self.rows.tolist())
        return (self.A(x, self.rows) - self.y[self.rows]).square().flatten(1).sum(1) / 2

    def select(self, rows):
        return HalfSquares(self.y, self.A, self.rows[rows], self.calls)


def misfit(y, physics):
    """``||A(x) - y||^2 / 2`` of one operator for all images."""
    return HalfSquares(y, lambda x, rows: physics.A(x))


def test_the_norm_is_that_of_the_matrix():
    physics = dinv.physics.Downsampling(img_size=IMAGE, filter="bilinear", factor=4)
    matrix = torch.func.vmap(lambda e: physics.A(e.view(1, 3, 24, 40)).flatten())(torch.eye(2880)[:960])
    found = norm(physics.A, torch.rand(2, *IMAGE))
    # the power method stops when a step gains less than a hundredth, which close eigenvalues make several of
    assert found.tolist() == pytest.approx([float(torch.linalg.matrix_norm(matrix, 2)) ** 2] * 2, rel=0.1)


def test_the_norm_asks_autograd_for_the_adjoint():
    physics = LinearPhysics(A=lambda x: 3 * x[:, :, ::2], A_adjoint=lambda y: 0.01 * y)
    assert norm(physics.A, torch.rand(1, *IMAGE)).item() == pytest.approx(9, rel=1e-2)


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
    return 1 / norm(physics.A, x)


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
    y, x = physics.A(torch.rand(2, *IMAGE)), torch.full((2, *IMAGE), 0.5)
    distance = misfit(y, physics)
    gradient_steps(x, distance, steps=50, size=auto(physics, x) if size else None, standstill=1e-3)
    assert len(distance.calls) < 20


def test_backtracking_decreases_a_nonlinear_misfit_image_by_image():
    gain = torch.tensor([1.0, 1.0, 30.0]).view(3, 1, 1, 1)  # another scale, hence another step

    def A(x, rows):
        return gain[rows] * x.clamp(min=1e-3) ** 0.45

    distance = HalfSquares(A(torch.rand(3, *IMAGE), torch.arange(3)), A)
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
    x0, y, penalty = torch.rand(2, *IMAGE), torch.rand(2, *IMAGE), torch.tensor([0.5, 9.0])
    expected = (y + penalty.view(2, 1, 1, 1) * x0) / (1 + penalty.view(2, 1, 1, 1))
    physics = dinv.physics.Denoising()
    for size in (auto(physics, x0), torch.ones(2)):
        x = gradient_steps(x0, misfit(y, physics), steps=3, size=size, penalty=penalty)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)  # of the power method
    x = gradient_steps(x0.double(), misfit(y, physics), steps=60, size=None, penalty=penalty)
    torch.testing.assert_close(x, expected.double(), rtol=0, atol=1e-5)


def test_every_kernel_of_a_batch_has_its_own_norm():
    kernels = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    kernels = kernels * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)
    physics = dinv.physics.Blur(kernels, padding="circular")
    forward = observe(physics.A(torch.rand(2, *IMAGE)), physics).forward
    together = forward.units.scale**2 * forward.squared_norm
    for n in range(2):
        alone = dinv.physics.Blur(kernels[n : n + 1], padding="circular")
        torch.testing.assert_close(together[n : n + 1], norm(alone.A, torch.rand(1, *IMAGE)), rtol=1e-4, atol=0)


def test_the_proximal_point_is_reached_in_few_evaluations_image_by_image():
    """Also where A hardly sees some directions, which gradient steps would take thousands for."""
    matrix = torch.diag(torch.logspace(0, -2, 24).double()) @ torch.linalg.qr(torch.randn(24, 24).double())[0]
    x0, y = torch.rand(2, 1, 4, 6).double(), torch.randn(2, 24).double()
    penalty = torch.tensor([1e-2, 10.0]).double()
    misfit = HalfSquares(y, lambda x, rows: x.flatten(1) @ matrix.T)

    def objective(x):
        return misfit(x) + penalty * (x - x0).square().flatten(1).sum(1) / 2

    left = matrix.T @ matrix + penalty.view(2, 1, 1) * torch.eye(24).double()
    right = y @ matrix + penalty[:, None] * x0.flatten(1)
    best = objective(torch.linalg.solve(left, right).view_as(x0))
    found = proximal_point(x0, misfit, penalty=penalty, steps=30, limits=(-1e9, 1e9))
    assert (objective(found) < 1.001 * best).all()
    slow = gradient_steps(x0, misfit, steps=30, size=torch.ones(2).double(), penalty=penalty, limits=(-1e9, 1e9))
    assert objective(slow)[0] > 1.01 * best[0]
    alone = proximal_point(x0[1:], misfit.select(torch.tensor([1])), penalty=penalty[1:], steps=30)
    torch.testing.assert_close(alone, found[1:].clamp(0, 1))


@pytest.mark.parametrize("kind", ["constant", "constant of each image", "1/f", "1/f of each image"])
def test_the_proximal_point_is_that_of_the_covariance_with_a_spectrum(kind):
    """x0 + C A' (A C A' + I)^-1 (y - A x0), image by image, also where one of them is explained from the start."""
    A, size = torch.randn(12, 24).double(), (1, 4, 6)
    x0 = torch.rand(3, *size).double()
    y = x0.flatten(1) @ A.T + torch.tensor([1.0, 0.0, 3.0]).double()[:, None] * torch.randn(3, 12).double()
    of_each = torch.tensor([0.1, 0.5, 2.0]).double().view(3, 1, 1, 1)
    one_over_f = conditional_spectrum(x0, 0.5)
    assert one_over_f.shape == size[1:]
    spectrum = {
        "constant": torch.full(size[1:], 0.3).double(),
        "constant of each image": of_each,
        "1/f": one_over_f,
        "1/f of each image": of_each * one_over_f,
    }[kind]
    units = torch.eye(24).double().view(24, *size)
    expected = []
    for n in range(3):
        C = filtered(units, spectrum[n] if spectrum.ndim == 4 else spectrum).flatten(1)
        torch.testing.assert_close(C, C.T)
        gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + torch.eye(12).double())
        expected.append(x0[n] + (gain @ (y[n] - A @ x0[n].flatten())).view(size))
    misfit = HalfSquares(y, lambda x, rows: x.flatten(1) @ A.T)
    found = correlated_proximal_point(x0, misfit, spectrum=spectrum, steps=60, limits=(-1e9, 1e9))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=5e-3)
    assert sum(1 in rows for rows in misfit.calls) <= 2  # of the 60 steps
    for n in range(3):
        row = torch.tensor([n])
        of_one = spectrum[row] if spectrum.ndim == 4 else spectrum
        alone = correlated_proximal_point(x0[row], misfit.select(row), spectrum=of_one, steps=60, limits=(-1e9, 1e9))
        torch.testing.assert_close(alone, found[row])


def test_a_conditional_spectrum_is_that_of_the_image_below_the_noise_and_white_above():
    x = torch.rand(1, *IMAGE).double()
    of_image = conditional_spectrum(x, float("inf"))
    torch.testing.assert_close(conditional_spectrum(x, 1e-4), torch.full(IMAGE[1:], 1e-8).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(conditional_spectrum(x, 0.1), of_image * 0.01 / (of_image + 0.01))
    assert of_image.argmax() == 0
    assert of_image.mean().sqrt().item() == pytest.approx(SPREAD)


def test_a_proximal_point_where_nothing_is_finite_is_where_it_began():
    x = torch.rand(2, *IMAGE).double()
    nowhere = HalfSquares(x, lambda v, rows: torch.where(rows.view(-1, 1, 1, 1) == 0, v.log() * torch.nan, v))
    found = correlated_proximal_point(x, nowhere, spectrum=torch.ones(IMAGE[1:]).double(), steps=5)
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("how", ["gradient steps", "backtracking", "proximal point", "sparse deviation"])
def test_a_row_that_has_finished_is_not_evaluated_again(how):
    """The second of three images is explained from the start, by the operator that is its own."""
    slopes = torch.logspace(0, -1, 40).double()
    gain = torch.tensor([1.0, 3.0, 0.5]).view(3, 1, 1, 1).double() * slopes
    x, one = torch.full((3, *IMAGE), 0.5).double(), torch.ones(3).double()
    y = gain * torch.rand(3, *IMAGE).double()
    y[1] = gain[1] * x[1]

    def moved(rows):
        objective = HalfSquares(y, lambda x, rows: gain[rows] * x, rows)
        start, of_row = x[rows], one[rows]
        if how in ("gradient steps", "backtracking"):
            size = of_row / 9 if how == "gradient steps" else None
            return objective, gradient_steps(start, objective, steps=20, size=size, standstill=1e-3)
        if how == "proximal point":
            return objective, proximal_point(start, objective, penalty=0.01 * of_row, steps=20)
        return objective, start + sparse_deviation(objective, start, 1e-3 * of_row, of_row / 9)

    objective, together = moved(torch.arange(3))
    evaluated = [sum(row in rows for rows in objective.calls) for row in range(3)]
    assert evaluated[1] <= 2  # at the start, and where the first step leads
    assert min(evaluated[0], evaluated[2]) > 4
    for row in range(3):  # and the others see no difference
        _, alone = moved(torch.tensor([row]))
        torch.testing.assert_close(together[row : row + 1], alone)
