"""The gradient step of DMILO-PGD and its size."""

import deepinv as dinv
import pytest
import torch
from deepinv.physics import LinearPhysics

from deepinv_dmilo.core.measurements import energy
from deepinv_dmilo.core.projection import gradient_steps, squared_norm

IMAGE = (3, 24, 40)


def test_auto_step_is_the_inverse_squared_norm_cached_and_refreshed():
    x = torch.rand(2, *IMAGE)
    physics = dinv.physics.Downsampling(img_size=IMAGE, filter="bilinear", factor=4)
    matrix = torch.func.vmap(lambda e: physics.A(e.view(1, 3, 24, 40)).flatten())(torch.eye(2880)[:960])
    norm = squared_norm(physics, x)
    # close eigenvalues leave the power method a per cent low after its 100 steps
    assert norm.tolist() == pytest.approx([float(torch.linalg.matrix_norm(matrix, 2)) ** 2] * 2, rel=2e-2)
    assert squared_norm(physics, x) is norm
    physics.update_parameters(filter=2 * physics.filter)
    torch.testing.assert_close(squared_norm(physics, x), 4 * norm)


def test_auto_step_follows_an_operator_that_hides_its_parameters():
    gain = {"value": 1.0}
    physics = LinearPhysics(A=lambda x: gain["value"] * x, A_adjoint=lambda y: 0.01 * y)  # nor has its true adjoint
    x = torch.rand(2, *IMAGE)
    assert squared_norm(physics, x).tolist() == pytest.approx([1, 1], rel=1e-3)
    gain["value"] = 10.0
    assert squared_norm(physics, x).tolist() == pytest.approx([100, 100], rel=1e-3)


def test_auto_step_of_an_operator_without_an_adjoint():
    physics = LinearPhysics(A=lambda x: 3 * x[:, :, ::2])
    assert squared_norm(physics, torch.rand(1, *IMAGE)).item() == pytest.approx(9, rel=1e-3)


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


def test_steps_towards_a_proximal_point_reach_it_whatever_the_step_size():
    """min |x - y|^2 / 2 + p |x - x0|^2 / 2 is at (y + p x0) / (1 + p)."""
    x0, y, pull = torch.rand(2, *IMAGE), torch.rand(2, *IMAGE), torch.tensor([0.5, 9.0])
    expected = (y + pull.view(2, 1, 1, 1) * x0) / (1 + pull.view(2, 1, 1, 1))
    for step_size in ("auto", 1.0):
        x = gradient_steps(x0, y, dinv.physics.Denoising(), steps=3, step_size=step_size, pull=pull)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)  # of the power method


def test_every_kernel_of_a_batch_has_its_own_norm():
    kernels = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0]).view(
        2, 1, 1, 1
    )
    x = torch.rand(2, *IMAGE)
    together = squared_norm(dinv.physics.Blur(kernels, padding="circular"), x)
    for n in range(2):
        alone = squared_norm(dinv.physics.Blur(kernels[n : n + 1], padding="circular"), x[:1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-4, atol=0)
