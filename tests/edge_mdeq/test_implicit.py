"""Implicit gradients against finite differences, the unrolled loop and a dense solution."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from contractions import linear, nonlinear, offsets, symmetric, to_flat, to_state, zeros
from problems import (
    Problem,
    State,
    dense_jacobian,
    relative_difference,
    spectral_radii,
)
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.gradients import implicit
from edge_mdeq.solvers import Anderson, Broyden, FixedPoint, Solution, Solver, Status

SOLVERS = (FixedPoint(), FixedPoint(0.7), Anderson(), Broyden(), Broyden(line_search=True))
EXACT = {"max_evaluations": 200, "tol": 1e-13}


def implicit_gradient(problem: Problem, solver: Solver | None = None) -> Tensor:
    z = implicit(problem.bind(), problem.equilibrium(), solver or Anderson(), **EXACT)
    return problem.gradient(z)


def backward_solve(
    problem: Problem, solver: Solver, max_evaluations: int, tol: float, z: State | None = None
) -> tuple[Tensor, Solution]:
    """The gradient at an equilibrium (the problem's own), and the solve behind it."""
    solves: list[Solution] = []
    z = problem.equilibrium() if z is None else z
    fz = implicit(problem.bind(), z, solver, max_evaluations, tol, solves.append)
    gradient = problem.gradient(fz)
    (solution,) = solves
    return gradient, solution


# What the gradient is


def test_it_is_the_slope_of_finite_differences(problem: Problem) -> None:
    """Along random directions in all parameters: the loss at equilibria that are solved anew."""
    gradients = {solver: implicit_gradient(problem, solver) for solver in SOLVERS}
    for direction in problem.directions():
        slope = problem.slope(lambda: problem.loss(problem.equilibrium()), direction)
        for solver, gradient in gradients.items():
            assert float(gradient @ direction) == pytest.approx(slope, rel=1e-5), solver


def test_it_is_the_gradient_of_the_unrolled_loop(problem: Problem) -> None:
    f, z = problem.bind(), problem.zero
    for _ in range(150):
        z = f(z)
    unrolled = problem.gradient(z)
    for solver in SOLVERS:
        assert relative_difference(implicit_gradient(problem, solver), unrolled) < 1e-6, solver


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_it_is_the_dense_solution(problem: Problem, solver: Solver) -> None:
    """The backward solve's y is g (I - J)^-1, and all that f depends on sees y."""
    z = problem.equilibrium()
    J = dense_jacobian(problem.bind(), z)
    eye = torch.eye(J.shape[1], dtype=J.dtype)
    y = torch.linalg.solve(eye - J, problem.loss_gradient(z)[:, None, :], left=False)[:, 0]
    gradient, solution = backward_solve(problem, solver, **EXACT)
    assert solution.status is Status.CONVERGED
    assert relative_difference(to_flat(solution.value), y) < 1e-10
    assert relative_difference(gradient, problem.pulled_back(y, z)) < 1e-10


def test_a_map_that_does_not_contract_has_a_gradient_too() -> None:
    """With a spectral radius of 1.5 Broyden and Anderson still find y. The plain iteration does
    not, and its gradient is no worse than g: most iterates of it are a million times as long."""
    A, b = symmetric(1.5), offsets(2).requires_grad_()
    inverse = torch.linalg.inv(torch.eye(11, dtype=A.dtype) - A)  # symmetric, as A
    z = to_state(b.detach() @ inverse)
    problem = Problem(lambda: linear(A, b), zeros(2), [b])
    exact = problem.loss_gradient(z) @ inverse

    for solver in (Broyden(m=27), Anderson(m=6, lam=1e-8)):
        gradient, solution = backward_solve(problem, solver, 200, 1e-10, z)
        assert solution.status is Status.CONVERGED
        assert relative_difference(gradient, exact.flatten()) < 1e-8
    g = problem.loss_gradient(z)
    for tol, status in ((1e-10, Status.DIVERGED), (0.0, Status.MAX_EVALUATIONS)):
        gradient, solution = backward_solve(problem, FixedPoint(), 60, tol, z)
        assert solution.status is status
        assert bool((solution.absolute <= (g @ A).norm(dim=1)).all())
        assert float(gradient.norm()) < 3 * float(g.norm())


def test_it_needs_more_than_one_product(problem: Problem) -> None:
    """Otherwise the comparisons above would accept a gradient through f alone."""
    z = problem.equilibrium()
    truncated = problem.gradient(implicit(problem.bind(), z, FixedPoint(), 1, tol=0.0))
    assert relative_difference(truncated, implicit_gradient(problem)) > 1e-2


def test_the_value_is_f_at_the_equilibrium(problem: Problem) -> None:
    z = problem.equilibrium()
    fz = implicit(problem.bind(), z, Anderson(), 5, tol=0.0)
    torch.testing.assert_close(fz, problem.bind()(z), rtol=0, atol=0)


def test_without_gradients_it_is_just_f(contraction: Problem) -> None:
    z = contraction.equilibrium()
    with torch.no_grad():
        fz = implicit(contraction.bind(), z, FixedPoint(), 5, 0.0)
    assert not any(x.requires_grad for x in fz)
    torch.testing.assert_close(fz, contraction.bind()(z), rtol=0, atol=0)


# Its tolerance and count


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_backward_solve_stops_at_its_tolerance(problem: Problem, solver: Solver) -> None:
    exact, g = implicit_gradient(problem), problem.loss_gradient(problem.equilibrium())
    used, errors = [], []
    for tol in (1e-2, 1e-5, 1e-8):
        gradient, solution = backward_solve(problem, solver, 200, tol)
        assert solution.status is Status.CONVERGED
        assert bool((solution.absolute <= tol * g.norm(dim=1)).all())
        used.append(int(solution.evaluations.max()))
        errors.append(relative_difference(gradient, exact))
    assert used == sorted(set(used)), "a tighter tolerance took no more products"
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-6 < errors[0] < 1


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_backward_solve_stops_at_its_count(problem: Problem, solver: Solver) -> None:
    _, solution = backward_solve(problem, solver, 3, tol=1e-12)
    assert solution.trace.shape == (3, 2)
    assert solution.statuses == [Status.MAX_EVALUATIONS] * 2


@pytest.mark.parametrize("count", [1, 2, 7])
def test_k_products_of_the_plain_iteration_are_the_neumann_sum(
    problem: Problem, count: int
) -> None:
    """y = g + g J + ... + g J^k: a product is one evaluation of the backward solve."""
    z = problem.equilibrium()
    J = dense_jacobian(problem.bind(), z)
    term = y = problem.loss_gradient(z)
    for _ in range(count):
        term = (term[:, None, :] @ J)[:, 0]
        y = y + term
    _, solution = backward_solve(problem, FixedPoint(), count, tol=0.0)
    torch.testing.assert_close(solution.residual, solution.trace[-1], rtol=0, atol=0)  # the last
    assert relative_difference(to_flat(solution.value), y) < 1e-12


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e30])
def test_the_scale_of_the_loss_does_not_matter(contraction: Problem, size: float) -> None:
    """In fp32 the squared norms of such gradients would be zero or infinite."""
    z = tuple(x.float() for x in contraction.equilibrium())
    parameters = [p.detach().float().requires_grad_() for p in contraction.parameters]
    W, b = parameters

    def gradient(factor: float) -> Tensor:
        f = nonlinear(0.8 * W, b)
        fz = implicit(f, z, Anderson(), 50, 1e-6)
        grads = torch.autograd.grad(factor * contraction.loss(fz), parameters)
        return torch.cat([g.flatten() for g in grads]).double()

    assert relative_difference(gradient(size) / size, gradient(1.0)) < 1e-6


def test_samples_do_not_influence_each_other(mdeq: Problem) -> None:
    """Each ends by itself; one that the loss does not look at has gradient zero, not NaN."""
    z = mdeq.equilibrium()

    def solved_for(weights: list[float]) -> State:
        solves: list[Solution] = []
        fz = implicit(mdeq.bind(), z, Broyden(), 30, 1e-6, solves.append)
        column = torch.tensor(weights, dtype=torch.float64).view(2, 1, 1, 1)
        mdeq.gradient(tuple(column * x for x in fz))
        return solves[0].value

    both, first, second = solved_for([1, 1e-9]), solved_for([1, 0]), solved_for([0, 1e-9])
    for a, b, c in zip(both, first, second, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(a[1], c[1], rtol=1e-12, atol=1e-23)
        assert not bool(b[1].any())
        assert not bool(c[0].any())


# What f may look like


def test_f_need_not_depend_on_every_scale() -> None:
    """f = (z_0 / 2 + a, 3 z_0's mean): dL/da is 2 and 6 times the weights' mean."""
    a = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def f(z: State) -> State:
        return z[0] / 2 + a, 3 * z[0].mean(dim=(2, 3), keepdim=True)

    z = (torch.full((1, 1, 2, 2), 2.0, dtype=torch.float64), 6 * torch.ones(1, 1, 1, 1).double())
    fz = implicit(f, z, Broyden(), 20, 1e-13)
    (gradient,) = torch.autograd.grad(fz[0][0, 0, 0, 0] + fz[1].sum(), a)
    expected = torch.full((1, 1, 2, 2), 1.5, dtype=torch.float64)
    expected[0, 0, 0, 0] += 2
    torch.testing.assert_close(gradient, expected)


def test_f_need_not_depend_on_the_state() -> None:
    b = offsets(2).requires_grad_()
    fz = implicit(lambda z: to_state(b.tanh()), to_state(b.detach().tanh()), Anderson(), 9, 1e-9)
    (gradient,) = torch.autograd.grad(to_flat(fz).sum(), b)
    torch.testing.assert_close(gradient, 1 - b.detach().tanh() ** 2)


def test_frozen_parameters_get_no_gradient_and_change_none(contraction: Problem) -> None:
    W, b = contraction.parameters
    whole = implicit_gradient(contraction)
    W.requires_grad_(False)
    z = implicit(contraction.bind(), contraction.equilibrium(), Anderson(), **EXACT)
    (gradient,) = torch.autograd.grad(contraction.loss(z), b)
    torch.testing.assert_close(gradient.flatten(), whole[-b.numel() :], rtol=1e-10, atol=1e-12)


# Backward passes


def test_a_second_backward_pass_gives_the_same_gradient(problem: Problem) -> None:
    z = implicit(problem.bind(), problem.equilibrium(), Anderson(), **EXACT)
    loss = problem.loss(z)
    first = torch.autograd.grad(loss, problem.parameters, retain_graph=True)
    second = torch.autograd.grad(loss, problem.parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_kept_does_not_grow_with_the_iterations(problem: Problem) -> None:
    """What is kept for the backward pass is that of one evaluation of f."""

    def elements_kept(run: Callable[[], object]) -> int:
        """How many numbers are saved for a backward pass while the result is alive."""
        kept = 0

        def count(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            run()
        return kept

    z = problem.equilibrium()
    leaves = tuple(x.requires_grad_() for x in z)
    one = elements_kept(lambda: problem.bind()(leaves))
    assert elements_kept(lambda: implicit(problem.bind(), z, FixedPoint(), 50, 0.0)) == one


@pytest.mark.parametrize("ends", ["backward", "dropped"])
def test_the_graph_is_freed_without_the_garbage_collector(problem: Problem, ends: str) -> None:
    """After the backward pass, or when the result is dropped without one: no reference cycle."""
    f, seen = problem.bind(), []

    def watched(z: State) -> State:
        fz = f(z)
        seen.extend(weakref.ref(x) for x in (*z, *fz))
        return fz

    z = problem.equilibrium()
    gc.collect()
    gc.disable()
    try:
        fz = implicit(watched, z, Anderson(), 5, 0.0)
        if ends == "backward":
            problem.gradient(fz)
        del fz
        assert len(seen) == 4
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()


def test_differentiating_the_backward_pass_is_refused(contraction: Problem) -> None:
    """Its gradient would lack that of the solve, without a word."""
    z = implicit(contraction.bind(), contraction.equilibrium(), Anderson(), 20, 1e-9)
    with pytest.raises(ConfigError, match="create_graph"):
        torch.autograd.grad(contraction.loss(z), contraction.parameters, create_graph=True)


# Knowing how it went


def test_on_backward_is_handed_each_solve(contraction: Problem) -> None:
    """As the loss is scaled: value is f of the iterate, and the residuals are theirs."""
    solves: list[Solution] = []
    z = contraction.equilibrium()
    fz = implicit(contraction.bind(), z, FixedPoint(), 12, 1e-10, solves.append)
    assert not solves
    loss = 1000 * contraction.loss(fz)
    loss.backward(retain_graph=True)
    loss.backward()
    assert len(solves) == 2
    solution = solves[0]
    assert solution.statuses == [Status.MAX_EVALUATIONS] * 2
    assert solution.evaluations.tolist() == [12, 12]
    y = to_flat(solution.iterate)
    step = (y[:, None] @ dense_jacobian(contraction.bind(), z))[:, 0]
    step = step + 1000 * contraction.loss_gradient(z)
    torch.testing.assert_close(to_flat(solution.value), step)
    torch.testing.assert_close(solution.absolute, (step - y).norm(dim=1))
    torch.testing.assert_close(solution.residual, (step - y).norm(dim=1) / step.norm(dim=1))


def test_what_on_backward_raises_comes_out_of_the_backward_pass(contraction: Problem) -> None:
    def refuse(solution: Solution) -> None:
        raise ArithmeticError(solution.status.value)

    z = contraction.equilibrium()
    loss = contraction.loss(implicit(contraction.bind(), z, Anderson(), 2, 1e-10, refuse))
    with pytest.raises(ArithmeticError, match="max_evaluations"):
        loss.backward()
    assert all(p.grad is None for p in contraction.parameters)


@pytest.mark.parametrize("where", ["loss", "jacobian"])
def test_nan_is_a_warning(where: str) -> None:
    """The other sample's gradient is as it would be without."""
    b = offsets(2).requires_grad_()
    factor = torch.full((2, 1), 0.5, dtype=torch.float64)
    if where == "jacobian":
        factor[1] = math.nan
    z = implicit(lambda z: to_state(factor * to_flat(z) + b), zeros(2), Anderson(), 60, 1e-12)
    weights = torch.tensor([[1.0], [math.nan if where == "loss" else 1.0]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        (gradient,) = torch.autograd.grad((weights * to_flat(z)).sum(), b)
    torch.testing.assert_close(gradient[0], torch.full_like(gradient[0], 2.0))
    assert not bool(gradient[1].isfinite().any())


def test_nan_is_no_warning_to_who_looks_at_the_solve() -> None:
    """Warnings are errors here."""
    b, solves = offsets(1).requires_grad_(), []
    z = implicit(lambda z: to_state(math.nan * b), zeros(1), Anderson(), 9, 1e-9, solves.append)
    torch.autograd.grad((math.nan * to_flat(z)).sum(), b)
    assert [s.status for s in solves] == [Status.NON_FINITE]


def test_the_fixture_contracts_but_not_at_once(mdeq: Problem) -> None:
    """Its plain iteration converges, in so many steps that a truncated gradient is told apart."""
    radii = spectral_radii(dense_jacobian(mdeq.bind(), mdeq.equilibrium()))
    assert float(radii.min()) > 0.4
    assert float(radii.max()) < 0.8
