"""The batched L-BFGS as an optimiser in its own right."""

import pytest
import torch

from deepinv_dmilo.optim.lbfgs import minimize


class Rows:
    """The objective of a function (n, d) -> (n,) of points and their rows; ``calls`` collects rows evaluated."""

    def __init__(self, function, rows=None, calls=None):
        self.function, self.rows, self.calls = function, rows, [] if calls is None else calls

    def gradients(self, z):
        rows = torch.arange(len(z)) if self.rows is None else self.rows
        self.calls.append(rows.tolist())
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.function(z, rows)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def select(self, rows):
        return Rows(self.function, rows if self.rows is None else self.rows[rows], self.calls)


def rosenbrock(z, rows):
    return (100 * (z[:, 1:] - z[:, :-1].square()).square() + (1 - z[:, :-1]).square()).sum(1)


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
    x, value, _ = minimize(Rows(rosenbrock), z, steps=150)
    torch.testing.assert_close(x, torch.ones_like(x), rtol=0, atol=1e-8)
    assert (value < 1e-16).all()


@pytest.mark.parametrize(("exponent", "passes"), [(2, 110), (4, 1000)])
def test_ill_conditioned_quadratic_reaches_its_closed_form(exponent, passes):
    """Gradient descent would need about 10 ** exponent times ten steps."""
    function, minimum = quadratic(exponent)
    x, _, _ = minimize(Rows(function), torch.zeros(2, 50, dtype=torch.float64), steps=passes)
    torch.testing.assert_close(x, minimum.expand_as(x), rtol=0, atol=1e-5)


def test_a_batch_is_its_members_one_by_one_and_finished_ones_leave():
    function, minimum = quadratic(2)
    scales = torch.tensor([[1.0], [100.0], [1e-6]], dtype=torch.float64)
    offsets = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scales
    z, calls = minimum + offsets, []
    x, value, passes = minimize(Rows(lambda z, rows: 1 + function(z, rows), calls=calls), z, steps=60, tolerance=1e-4)
    for n in range(3):
        evaluate = Rows(lambda z, rows: 1 + function(z, rows))
        alone, value_alone, _ = minimize(evaluate, z[n : n + 1], steps=60, tolerance=1e-4)
        # one summation order for a batch, another for a member: float64 rounding times the condition number
        torch.testing.assert_close(x[n : n + 1], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(value[n : n + 1], value_alone, rtol=1e-9, atol=1e-9)
    took = [sum(n in rows for rows in calls) for n in range(3)]
    assert passes.tolist() == took
    assert took[2] < took[0] < took[1] <= 60
    assert len(calls) == took[1]


def test_tolerance_ends_a_sample_early():
    function, _ = quadratic(2)
    calls = {}
    for tolerance in (0.0, 1e-2):
        calls[tolerance] = []
        minimize(
            Rows(lambda z, rows: 1 + function(z, rows), calls=calls[tolerance]),
            torch.ones(1, 50, dtype=torch.float64),
            steps=60,
            tolerance=tolerance,
        )
    assert len(calls[1e-2]) < len(calls[0.0]) == 60


@pytest.mark.parametrize("steps", [7, 60])
def test_looking_at_the_device_seldom_changes_no_result(steps):
    z = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    calls = []
    often, _, _ = minimize(Rows(rosenbrock), z, steps=steps, tolerance=1e-3)
    seldom, _, _ = minimize(Rows(rosenbrock, calls=calls), z, steps=steps, tolerance=1e-3, check_every=5)
    torch.testing.assert_close(seldom, often, rtol=1e-10, atol=1e-10)
    assert len(calls) <= steps


def test_a_step_into_infinity_is_shortened():
    barrier = Rows(lambda z, rows: (-z - torch.log(1 - z.square())).sum(1))  # minimum at sqrt(2) - 1
    x, value, _ = minimize(barrier, torch.full((1, 1), -0.999, dtype=torch.float64), steps=50)
    torch.testing.assert_close(x, torch.full_like(x, 2**0.5 - 1), rtol=0, atol=1e-7)
    start = torch.full((1, 1), 2.0, dtype=torch.float64)
    x, value, _ = minimize(barrier, start, steps=50)
    assert torch.equal(x, start)
    assert value == torch.inf


def test_a_start_at_the_minimum_stays_there():
    calls = []
    x, value, _ = minimize(Rows(rosenbrock, calls=calls), torch.ones(1, 4, dtype=torch.float64), steps=50)
    assert torch.equal(x, torch.ones_like(x))
    assert value == 0
    assert len(calls) == 1


@pytest.mark.parametrize("offset", [0.0, -1e3, -1e6, 1e6])
def test_a_value_of_any_sign_is_minimised(offset):
    """A likelihood is known up to a constant: neither its sign nor its size says how far the minimum is."""
    function, minimum = quadratic(2)
    start = minimum + torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, value, _ = minimize(Rows(lambda z, rows: function(z, rows) + offset), start, steps=120)
    # of values of a million, float64 resolves 1e-10: a distance of 1e-5
    torch.testing.assert_close(x, minimum.expand_as(x), rtol=0, atol=1e-3 if offset else 1e-5)
    assert (value - offset).abs().max() < 1e-4


def test_a_unit_ends_a_row_wherever_zero_is():
    function, _ = quadratic(2)
    start = torch.ones(1, 50, dtype=torch.float64)
    results = [
        minimize(Rows(lambda z, rows, c=c: function(z, rows) + c), start, steps=60, tolerance=1e-2, unit=25.0)
        for c in (0.0, -512.0)
    ]
    assert 3 < results[0][2].item() < 60
    assert abs(results[0][2] - results[1][2]) <= 5  # of the first step, whose length follows the value
