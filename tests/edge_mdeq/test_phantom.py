"""Phantom gradients against their closed form, finite differences and the implicit gradient."""

from __future__ import annotations

import pytest
import torch
from problems import Problem, dense_jacobian, relative_difference
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.gradients import implicit, phantom
from edge_mdeq.solvers import Anderson

STEPS = pytest.mark.parametrize(("steps", "tau"), [(1, 1.0), (2, 0.5), (5, 0.7), (5, 1.0)])


def implicit_gradient(problem: Problem) -> Tensor:
    z = problem.equilibrium()
    return problem.gradient(implicit(problem.bind(), z, Anderson(), 200, tol=1e-13))


@STEPS
def test_it_is_the_truncated_neumann_sum(problem: Problem, steps: int, tau: float) -> None:
    """dL/dz tau (I + M + ... + M^(k-1)) df with M = tau J + (1 - tau) I; at tau 1 M is J
    (arXiv:2111.05177, section 3)."""
    z = problem.equilibrium()
    J = dense_jacobian(problem.bind(), z)
    M = tau * J + (1 - tau) * torch.eye(J.shape[1], dtype=J.dtype)
    term = y = tau * problem.loss_gradient(z)
    for _ in range(steps - 1):
        term = (term[:, None, :] @ M)[:, 0]
        y = y + term
    gradient = problem.gradient(phantom(problem.bind(), z, steps, tau))
    assert relative_difference(gradient, problem.pulled_back(y, z)) < 1e-9


@STEPS
def test_it_is_the_slope_of_its_steps(problem: Problem, steps: int, tau: float) -> None:
    """By finite differences, from a start that is no equilibrium and stays where it is."""
    z = tuple(x + 0.1 for x in problem.equilibrium())
    gradient = problem.gradient(phantom(problem.bind(), z, steps, tau))
    for direction in problem.directions():
        slope = problem.slope(
            lambda: problem.loss(phantom(problem.bind(), z, steps, tau)), direction
        )
        assert float(gradient @ direction) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_it_approaches_the_implicit_gradient_with_more_steps(problem: Problem, tau: float) -> None:
    z, exact = problem.equilibrium(), implicit_gradient(problem)
    errors = [
        relative_difference(problem.gradient(phantom(problem.bind(), z, steps, tau)), exact)
        for steps in (1, 4, 12, 150)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[3] < 1e-6


def test_it_stays_at_the_equilibrium(problem: Problem) -> None:
    z = problem.equilibrium()
    torch.testing.assert_close(phantom(problem.bind(), z, 3, tau=0.5), z, rtol=1e-10, atol=1e-10)


def test_the_steps_follow_the_damping_formula(problem: Problem) -> None:
    """Away from the equilibrium, where each step is another."""
    f, z = problem.bind(), tuple(x + 1 for x in problem.zero)
    for _ in range(2):
        z = tuple(0.25 * fz + 0.75 * x for x, fz in zip(z, f(z), strict=True))
    start = tuple(x + 1 for x in problem.zero)
    torch.testing.assert_close(phantom(f, start, 2, tau=0.25), z, rtol=0, atol=1e-15)


@pytest.mark.parametrize("steps", [0, -1])
def test_it_needs_a_step(contraction: Problem, steps: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        phantom(contraction.bind(), contraction.zero, steps)
