"""The gradient step of DMILO-PGD and its size."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import LinearPhysics

from deepinv_dmilo.measurements import energy
from deepinv_dmilo.projection import gradient_steps, squared_norm

IMAGE = (3, 24, 40)


def test_auto_step_is_the_inverse_squared_norm_cached_and_refreshed(monkeypatch):
    x = torch.rand(2, *IMAGE)
    physics = dinv.physics.Downsampling(img_size=IMAGE, filter="bilinear", factor=4)
    matrix = torch.func.vmap(lambda e: physics.A(e.view(1, 3, 24, 40)).flatten())(torch.eye(2880)[:960])
    norm = squared_norm(physics, x)
    # the power method stops at a relative change of 1e-4 an iteration; close eigenvalues leave it a per cent low
    assert norm == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)) ** 2, rel=2e-2)
    calls = []
    monkeypatch.setattr(type(physics), "compute_sqnorm", lambda *_, **__: calls.append(1) or torch.tensor(7.0))
    assert squared_norm(physics, x) == norm
    assert not calls
    physics.update_parameters(filter=2 * physics.filter)
    assert squared_norm(physics, x) == 7


def test_auto_step_follows_an_operator_that_hides_its_parameters():
    gain = {"value": 1.0}
    physics = LinearPhysics(A=lambda x: gain["value"] * x, A_adjoint=lambda y: gain["value"] * y)
    x = torch.rand(2, *IMAGE)
    assert squared_norm(physics, x) == pytest.approx(1, rel=1e-3)
    gain["value"] = 10.0
    assert squared_norm(physics, x) == pytest.approx(100, rel=1e-3)


def test_auto_step_solves_inpainting_at_once():
    """1/||A||^2 is the projection onto {x : A x = y} where A is a mask."""
    physics = dinv.physics.Inpainting(IMAGE, mask=0.5)
    y = physics.A(torch.rand(2, *IMAGE))
    x = gradient_steps(torch.full((2, *IMAGE), 0.5), y, physics, steps=1, step_size="auto", normalize=False)
    torch.testing.assert_close(physics.A(x), y, rtol=0, atol=1e-4)  # of the power method


def test_auto_step_decreases_a_nonlinear_misfit_sample_by_sample():
    gain = torch.tensor([1.0, 1.0, 30.0]).view(3, 1, 1, 1)  # another scale, hence another step
    physics = dinv.physics.Physics(A=lambda x: gain * x.clamp(min=1e-3) ** 0.45)
    y = physics.A(torch.rand(3, *IMAGE))
    x = torch.full((3, *IMAGE), 0.5)
    misfits = [energy(physics.A(x) - y)]
    for _ in range(3):
        x = gradient_steps(x, y, physics, steps=1, step_size="auto", normalize=False)
        misfits.append(energy(physics.A(x) - y))
    curves = torch.stack(misfits)
    assert (curves[1:] < curves[:-1]).all()


def test_normalized_gradient_moves_by_the_step_size_at_most():
    """The gradient of ||x - y|| has norm one."""
    x = torch.full((2, *IMAGE), 0.5)
    y = x + torch.randn_like(x)
    moved = gradient_steps(x, y, dinv.physics.Denoising(), steps=1, step_size=0.1, normalize=True)
    torch.testing.assert_close((moved - x).flatten(1).norm(dim=1), torch.full((2,), 0.1))
