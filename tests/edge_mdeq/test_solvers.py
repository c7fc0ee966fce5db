"""Solvers on contractions whose fixed points are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers import (
    SOLVERS,
    Anderson,
    FixedPoint,
    Solver,
    Status,
    make_solver,
    relative_residual,
    solve,
)

State = tuple[Tensor, ...]
Map = Callable[[State], State]

SHAPES = ((2, 2, 2), (3, 1, 1))  # two scales, 11 numbers per sample
SIZE = 11
EVERY_SOLVER = pytest.mark.parametrize(
    "solver",
    [FixedPoint(), FixedPoint(0.7), Anderson(), Anderson(m=1), Anderson(m=6, beta=0.8)],
    ids=str,
)


def to_state(flat: Tensor) -> State:
    """(B, 11) to tensors (B, C, H, W)."""
    parts = flat.split([8, 3], dim=1)
    return tuple(p.reshape(-1, *s) for p, s in zip(parts, SHAPES, strict=True))


def to_flat(state: State) -> Tensor:
    return torch.cat([x.flatten(1) for x in state], dim=1)


def zeros(batch: int, dtype: torch.dtype = torch.float64) -> State:
    return to_state(torch.zeros(batch, SIZE, dtype=dtype))


def symmetric(radius: float, seed: int = 0) -> Tensor:
    """A symmetric (11, 11) matrix with eigenvalues spread over -radius..radius."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(-radius, radius, SIZE, dtype=torch.float64)) @ q.T


def offsets(batch: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, SIZE, generator=generator, dtype=torch.float64)


def linear(A: Tensor, b: Tensor) -> Map:
    """z -> A z + b."""
    return lambda z: to_state(to_flat(z) @ A.T + b)


def nonlinear(A: Tensor, b: Tensor) -> Map:
    """z -> tanh(A z + b)."""
    return lambda z: to_state(torch.tanh(to_flat(z) @ A.T + b))


def scaled(factors: list[float], offset: float = 1.0) -> Map:
    """z -> factor z + offset, with a factor per sample."""
    column = torch.tensor(factors, dtype=torch.float64)[:, None]
    return lambda z: to_state(column * to_flat(z) + offset)


# The residual


def test_the_residual_is_relative_to_f_over_all_scales() -> None:
    z, fz = to_state(offsets(2, seed=3)), to_state(offsets(2, seed=4))
    a, b = to_flat(z).numpy(), to_flat(fz).numpy()
    expected = np.linalg.norm(b - a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(relative_residual(z, fz).numpy(), expected, rtol=1e-7)


def test_the_residual_of_zero_against_zero_is_zero() -> None:
    assert relative_residual(zeros(1), zeros(1)).tolist() == [0.0]


def test_the_residual_of_half_precision_states_does_not_overflow() -> None:
    """The square of 300 is beyond fp16."""
    z, fz = (to_state(torch.full((1, SIZE), v, dtype=torch.float16)) for v in (300.0, 600.0))
    assert relative_residual(z, fz).item() == pytest.approx(0.5)


# One step


def test_the_plain_step_is_f() -> None:
    f, z = linear(symmetric(0.5), offsets(2)), to_state(offsets(2, seed=3))
    solver = FixedPoint()
    assert torch.equal(to_flat(solver.advance(solver.init(z), f(z)).z), to_flat(f(z)))


def test_the_damped_step_mixes_f_and_z() -> None:
    z, fz = to_state(offsets(2, seed=3)), to_state(offsets(2, seed=4))
    solver = FixedPoint(tau=0.25)
    after = to_flat(solver.advance(solver.init(z), fz).z)
    torch.testing.assert_close(after, 0.25 * to_flat(fz) + 0.75 * to_flat(z))


def bordered_step(X: np.ndarray, Fx: np.ndarray, beta: float, lam: float) -> np.ndarray:
    """The published Anderson step for one sample; X and Fx are (history, D)."""
    m = len(X)
    G = Fx - X
    ridge = lam * (G * G).sum(axis=1).max()
    H = np.zeros((m + 1, m + 1))
    H[0, 1:] = H[1:, 0] = 1
    H[1:, 1:] = G @ G.T + ridge * np.eye(m)
    right = np.zeros(m + 1)
    right[0] = 1
    alpha = np.linalg.solve(H, right)[1:]
    return np.asarray(beta * alpha @ Fx + (1 - beta) * alpha @ X)


@pytest.mark.parametrize(("m", "beta", "lam"), [(1, 1.0, 1e-4), (3, 1.0, 1e-4), (5, 0.7, 1e-2)])
def test_anderson_solves_the_published_bordered_system(m: int, beta: float, lam: float) -> None:
    f = nonlinear(symmetric(0.9), offsets(2))
    solver = Anderson(m=m, beta=beta, lam=lam)
    state = solver.init(to_state(offsets(2, seed=3)))
    X: list[np.ndarray] = []
    Fx: list[np.ndarray] = []
    for _ in range(8):  # beyond m, so that the window slides
        fz = f(state.z)
        X, Fx = [*X, to_flat(state.z).numpy()][-m:], [*Fx, to_flat(fz).numpy()][-m:]
        state = solver.advance(state, fz)
        for sample in range(2):
            expected = bordered_step(
                np.stack([x[sample] for x in X]), np.stack([x[sample] for x in Fx]), beta, lam
            )
            np.testing.assert_allclose(to_flat(state.z)[sample].numpy(), expected, rtol=1e-7)


def test_anderson_without_history_is_the_damped_iteration() -> None:
    f, z0 = nonlinear(symmetric(0.9), offsets(2)), zeros(2)
    one = solve(f, z0, Anderson(m=1, beta=0.6), 6)
    damped = solve(f, z0, FixedPoint(0.6), 6)
    torch.testing.assert_close(one.value, damped.value)


@pytest.mark.parametrize("length", [2, 5])
def test_anderson_weights_sum_to_one(length: int) -> None:
    states = [to_state(offsets(3, seed=10 + k)) for k in range(2 * length)]
    alpha = Anderson().weights(tuple(states[:length]), tuple(states[length:]))
    torch.testing.assert_close(torch.stack(alpha).sum(dim=0), torch.ones(3, dtype=torch.float64))


# Convergence


@EVERY_SOLVER
def test_every_solver_finds_the_fixed_point_of_a_linear_contraction(solver: Solver) -> None:
    A, b = symmetric(0.6), offsets(3)
    solution = solve(linear(A, b), zeros(3), solver, 200, tol=1e-12)
    expected = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - A, b.T).T
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(to_flat(solution.value), expected, rtol=1e-9, atol=1e-9)


@EVERY_SOLVER
def test_every_solver_finds_a_fixed_point_of_a_nonlinear_contraction(solver: Solver) -> None:
    f = nonlinear(symmetric(0.9), offsets(3))
    solution = solve(f, zeros(3), solver, 300, tol=1e-10)
    torch.testing.assert_close(f(solution.value), solution.value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dimension", [2, 3, 4])
def test_anderson_solves_a_linear_problem_in_one_step_more_than_its_dimension(
    dimension: int,
) -> None:
    """It is then equivalent to GMRES; the last evaluation sees the solution."""
    factors = torch.zeros(SIZE, dtype=torch.float64)
    factors[:dimension] = torch.tensor([0.95, -0.8, 0.5, 0.2])[:dimension]
    b = torch.zeros(1, SIZE, dtype=torch.float64)
    b[:, :dimension] = 1.0
    solution = solve(
        linear(torch.diag(factors), b), zeros(1), Anderson(m=6, lam=1e-14), dimension + 2
    )
    assert solution.residual.item() < 1e-6
    assert solution.trace[-2].item() > 1e-3


def test_anderson_beats_plain_iteration_on_a_slow_contraction() -> None:
    f = nonlinear(symmetric(0.98), 0.1 * offsets(2))
    plain = solve(f, zeros(2), FixedPoint(), 20)
    accelerated = solve(f, zeros(2), Anderson(), 20)
    assert bool((accelerated.residual < 0.1 * plain.residual).all())


def test_damping_converges_where_the_plain_iteration_oscillates() -> None:
    f = scaled([-1.1])
    assert solve(f, zeros(1), FixedPoint(), 100).residual.item() > 1
    assert solve(f, zeros(1), FixedPoint(0.5), 100).residual.item() < 1e-12


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_iterating_on_at_the_fixed_point_stays_there(solver: Solver, dtype: torch.dtype) -> None:
    """At residual zero nothing is divided by zero."""
    start = to_state(offsets(2).to(dtype))
    solution = solve(lambda z: tuple(x.clone() for x in start), start, solver, 12)
    assert bool((solution.trace < 8 * torch.finfo(dtype).eps).all())


@EVERY_SOLVER
def test_the_zero_map_is_solved(solver: Solver) -> None:
    solution = solve(lambda z: tuple(0 * x for x in z), zeros(2), solver, 8)
    assert not to_flat(solution.value).any()
    assert solution.residual.tolist() == [0.0, 0.0]


# Samples of a batch


@EVERY_SOLVER
def test_a_sample_s_solution_does_not_depend_on_its_batch(solver: Solver) -> None:
    A, b = symmetric(0.9), offsets(3)
    together = solve(nonlinear(A, b), zeros(3), solver, 10)
    for k in range(3):
        alone = solve(nonlinear(A, b[k : k + 1]), zeros(1), solver, 10)
        torch.testing.assert_close(
            to_flat(together.value)[k : k + 1], to_flat(alone.value), rtol=1e-9, atol=1e-12
        )


@EVERY_SOLVER
def test_a_sample_that_diverges_does_not_spoil_the_others(solver: Solver) -> None:
    f = scaled([float("inf"), 0.5])
    solution = solve(f, to_state(torch.ones(2, SIZE, dtype=torch.float64)), solver, 60)
    assert solution.status is Status.NON_FINITE
    torch.testing.assert_close(
        to_flat(solution.value)[1], torch.full((SIZE,), 2.0, dtype=torch.float64)
    )


# What a solution says


@EVERY_SOLVER
@pytest.mark.parametrize("best", [False, True])
def test_value_iterate_and_residual_belong_together(solver: Solver, best: bool) -> None:
    f = nonlinear(symmetric(1.4), offsets(3))
    solution = solve(f, zeros(3), solver, 9, best=best)
    torch.testing.assert_close(f(solution.iterate), solution.value)
    torch.testing.assert_close(
        relative_residual(solution.iterate, solution.value), solution.residual
    )


def test_the_trace_holds_the_residual_of_every_evaluation() -> None:
    f, z = nonlinear(symmetric(0.9), offsets(2)), zeros(2)
    trace = solve(f, z, FixedPoint(), 5).trace
    assert trace.shape == (5, 2)
    for row in trace:
        torch.testing.assert_close(row, relative_residual(z, f(z)))
        z = f(z)


def test_the_last_iterate_is_returned_unless_the_best_is_asked_for() -> None:
    solution = solve(scaled([-1.5]), zeros(1), FixedPoint(), 8)
    assert solution.residual.item() == solution.trace[-1].item()
    assert solution.residual.item() > solution.trace.min().item()


def test_best_returns_each_sample_s_lowest_residual() -> None:
    """One sample gets worse with every step, the other better."""
    f, start = scaled([1.5, 0.5]), to_state(torch.full((2, SIZE), -1.9, dtype=torch.float64))
    solution = solve(f, start, FixedPoint(), 8, best=True)
    assert torch.equal(solution.residual, solution.trace.amin(dim=0))
    where = solution.trace.argmin(dim=0).tolist()
    assert where[0] != where[1]  # or the test would not tell samples apart


def test_best_survives_iterates_that_are_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    values = iter([nan, 2.0, 1.9, nan, inf])
    solution = solve(
        lambda z: to_state(torch.full((1, SIZE), next(values), dtype=torch.float64)),
        zeros(1),
        FixedPoint(),
        5,
        best=True,
    )
    assert solution.status is Status.MAX_EVALUATIONS
    assert to_flat(solution.value)[0, 0].item() == 1.9


def test_status_converged_means_every_sample_met_the_tolerance() -> None:
    solution = solve(scaled([0.1, 0.5]), zeros(2), FixedPoint(), 100, tol=1e-6)
    assert solution.status is Status.CONVERGED
    assert bool((solution.residual <= 1e-6).all())


def test_status_max_evaluations_means_some_sample_did_not() -> None:
    solution = solve(scaled([0.1, 0.99]), zeros(2), FixedPoint(), 20, tol=1e-6)
    assert solution.status is Status.MAX_EVALUATIONS


def test_without_a_tolerance_nothing_is_called_converged() -> None:
    assert solve(scaled([0.1]), zeros(1), FixedPoint(), 50).status is Status.MAX_EVALUATIONS


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("best", [False, True])
def test_status_non_finite_names_a_broken_solve(bad: float, best: bool) -> None:
    solution = solve(
        lambda z: tuple(torch.full_like(x, bad) for x in z), zeros(1), FixedPoint(), 3, best=best
    )
    assert solution.status is Status.NON_FINITE


def test_evaluations_are_counted_per_sample() -> None:
    solution = solve(scaled([0.1, 0.8]), zeros(2), FixedPoint(), 100, tol=1e-3)
    met = (solution.trace <= 1e-3).long().argmax(dim=0) + 1
    assert solution.evaluations.tolist() == met.tolist()
    assert met[0] < met[1]
    assert len(solution.trace) == met[1]  # the solve went on for the slower one only


def test_a_sample_that_never_meets_the_tolerance_counts_all_evaluations() -> None:
    solution = solve(scaled([0.1, 0.99]), zeros(2), FixedPoint(), 20, tol=1e-3)
    assert solution.evaluations[1].item() == 20


@EVERY_SOLVER
def test_without_a_tolerance_f_is_evaluated_exactly_so_often(solver: Solver) -> None:
    calls = 0

    def f(z: State) -> State:
        nonlocal calls
        calls += 1
        return tuple(0.0 * x for x in z)  # converged at once, and still not stopped

    solve(f, zeros(1), solver, 7)
    assert calls == 7


def test_no_evaluation_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_evaluations is 0, need at least 1"):
        solve(scaled([0.5]), zeros(1), FixedPoint(), 0)


# Static structure, which is what lets a solver be unrolled into a graph


def structure(value: Any) -> Any:
    """Nested tuples with shapes and types in place of tensors."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else tuple(map(structure, value))


@EVERY_SOLVER
def test_the_structure_of_the_state_does_not_depend_on_data(solver: Solver) -> None:
    seen = []
    for value in (1.0, 0.0, float("nan")):
        state = solver.init(zeros(2))
        steps = []
        for _ in range(8):
            state = solver.advance(state, tuple(torch.full_like(x, value) for x in state.z))
            steps.append(structure(state))
        seen.append(steps)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("m", [1, 3, 6])
def test_anderson_s_history_stops_growing_at_m_minus_one(m: int) -> None:
    solver = Anderson(m=m)
    state = solver.init(zeros(1))
    lengths = []
    for _ in range(8):
        state = solver.advance(state, state.z)
        lengths.append((len(state.past_z), len(state.past_f)))
    assert lengths == [(min(k, m - 1),) * 2 for k in range(1, 9)]


@EVERY_SOLVER
def test_advancing_changes_no_tensor_in_place(solver: Solver) -> None:
    f, state = nonlinear(symmetric(0.9), offsets(2)), solver.init(zeros(2))
    for _ in range(7):
        fz = f(state.z)
        before = to_flat(state.z).clone(), to_flat(fz).clone()
        following = solver.advance(state, fz)
        assert torch.equal(to_flat(state.z), before[0])
        assert torch.equal(to_flat(fz), before[1])
        state = following


def test_a_solve_keeps_the_precision_of_its_states() -> None:
    f = linear(symmetric(0.5).float(), offsets(1).float())
    for solver in (FixedPoint(0.5), Anderson(beta=0.5)):
        assert solve(f, zeros(1, torch.float32), solver, 4).value[0].dtype == torch.float32


# By name


@pytest.mark.parametrize("name", SOLVERS)
def test_every_registered_solver_is_made_by_its_name(name: str) -> None:
    assert isinstance(make_solver(name), SOLVERS[name])  # type: ignore[arg-type]


def test_settings_reach_the_solver() -> None:
    assert make_solver("fixed_point", tau=0.5) == FixedPoint(0.5)
    assert make_solver("anderson", m=3, beta=0.9, lam=1e-3) == Anderson(3, 0.9, 1e-3)


def test_a_whole_number_may_come_as_a_float() -> None:
    """As it does from a manifest, whose settings are floats."""
    f = linear(symmetric(0.5), offsets(1))
    solution = solve(f, zeros(1), make_solver("anderson", m=3.0), 6)
    torch.testing.assert_close(solution.value, solve(f, zeros(1), Anderson(3), 6).value)


def test_an_unknown_solver_suggests_a_near_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown solver 'andersen'.*did you mean 'anderson'\?"):
        make_solver("andersen")


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fixed_point' does not take \{'m': 5\}"):
        make_solver("fixed_point", m=5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fixed_point", {"tau": 0.0}, "tau is 0.0"),
        ("fixed_point", {"tau": 1.1}, "tau is 1.1"),
        ("anderson", {"m": 0}, "m is 0, must be 1 to 6"),
        ("anderson", {"m": 7}, "m is 7, must be 1 to 6"),
        ("anderson", {"m": 2.5}, "m is 2.5, must be"),
        ("anderson", {"beta": 0.0}, "beta is 0.0"),
        ("anderson", {"beta": 1.5}, "beta is 1.5"),
        ("anderson", {"lam": 0.0}, "lam is 0.0, must be positive"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    name: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_solver(name, **settings)
