"""The batched L-BFGS as an optimiser in its own right."""

import pytest
import torch

from deepinv_dmilo.lbfgs import minimize


def by_autograd(function, calls=None):
    """An ``evaluate`` of a function (n, d) -> (n,); ``calls`` collects the rows of every evaluation."""

    def evaluate(z, rows):
        if calls is not None:
            calls.append(rows.tolist())
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = function(z, rows)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    return evaluate


def rosenbrock(z, rows):
    return (100 * (z[:, 1:] - z[:, :-1].square()).square() + (1 - z[:, :-1]).square()).sum(1)


def budget(n, passes):
    return torch.full((n,), passes)


def quadratic(condition, d=50):
    """0.5 (z - t) H (z - t) with eigenvalues from 1 to ``condition``, and its minimum t."""
    rng = torch.Generator().manual_seed(0)
    eigenvalues = torch.logspace(0, condition, d, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=rng))
    hessian = basis * eigenvalues @ basis.T
    minimum = torch.randn(d, dtype=torch.float64, generator=rng)
    return lambda z, rows: (((z - minimum) @ hessian) * (z - minimum)).sum(1) / 2, minimum


def test_rosenbrock_from_many_starts():
    z = 2 * torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, value = minimize(by_autograd(rosenbrock), z, budget(5, 150))
    torch.testing.assert_close(x, torch.ones_like(x), rtol=0, atol=1e-8)
    assert (value < 1e-16).all()


@pytest.mark.parametrize(("exponent", "passes"), [(2, 110), (4, 1000)])
def test_ill_conditioned_quadratic_reaches_its_closed_form(exponent, passes):
    """Gradient descent would need about 10 ** exponent times ten steps."""
    function, minimum = quadratic(exponent)
    x, _ = minimize(by_autograd(function), torch.zeros(2, 50, dtype=torch.float64), budget(2, passes))
    torch.testing.assert_close(x, minimum.expand_as(x), rtol=0, atol=1e-5)


def test_a_batch_is_its_members_one_by_one_and_finished_ones_leave():
    function, _ = quadratic(2)
    z = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [[1.0], [100.0], [1e-6]]
    )
    passes, calls = torch.tensor([7, 40, 0]), []
    x, value = minimize(by_autograd(function, calls), z, passes)
    for n in range(3):
        alone, value_alone = minimize(by_autograd(function), z[n : n + 1], passes[n : n + 1])
        # one summation order for a batch, another for a member: float64 rounding times the condition number
        torch.testing.assert_close(x[n : n + 1], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(value[n : n + 1], value_alone, rtol=1e-9, atol=1e-9)
    assert calls[:7] == [[0, 1]] * 7
    assert calls[7:] == [[1]] * 33
    assert torch.equal(x[2], z[2])
    assert value[2] == torch.inf


def test_tolerance_ends_a_sample_early():
    function, _ = quadratic(2)
    calls = {}
    for tolerance in (0.0, 1e-2):
        calls[tolerance] = []
        minimize(
            by_autograd(lambda z, rows: 1 + function(z, rows), calls[tolerance]),
            torch.ones(1, 50, dtype=torch.float64),
            budget(1, 60),
            tolerance=tolerance,
        )
    assert len(calls[1e-2]) < len(calls[0.0]) == 60


def test_looking_at_the_device_seldom_changes_no_result():
    z = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    passes = torch.tensor([3, 9, 14, 30])
    often, _ = minimize(by_autograd(rosenbrock), z, passes)
    seldom, _ = minimize(by_autograd(rosenbrock), z, passes, check_every=5)
    torch.testing.assert_close(seldom, often, rtol=1e-10, atol=1e-10)


def test_a_step_into_infinity_is_shortened():
    barrier = by_autograd(lambda z, rows: (-z - torch.log(1 - z.square())).sum(1))  # minimum at sqrt(2) - 1
    x, value = minimize(barrier, torch.full((1, 1), -0.999, dtype=torch.float64), budget(1, 50))
    torch.testing.assert_close(x, torch.full_like(x, 2**0.5 - 1), rtol=0, atol=1e-7)
    start = torch.full((1, 1), 2.0, dtype=torch.float64)
    x, value = minimize(barrier, start, budget(1, 50))
    assert torch.equal(x, start)
    assert value == torch.inf


def test_a_start_at_the_minimum_stays_there():
    calls = []
    x, value = minimize(by_autograd(rosenbrock, calls), torch.ones(1, 4, dtype=torch.float64), budget(1, 50))
    assert torch.equal(x, torch.ones_like(x))
    assert value == 0
    assert len(calls) == 1
