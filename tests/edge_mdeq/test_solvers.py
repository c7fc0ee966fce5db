"""The solvers: their steps, what they converge to, their static structure, their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contractions import (
    EVERY_SOLVER,
    SIZE,
    Map,
    linear,
    nonlinear,
    offsets,
    scaled,
    symmetric,
    to_flat,
    to_state,
    zeros,
)
from torch import Tensor
from torch.utils._pytree import tree_map, tree_structure

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers import (
    SOLVERS,
    Anderson,
    Broyden,
    FixedPoint,
    Solver,
    Status,
    make_solver,
    relative_residual,
    solve,
)

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
    for solver in (FixedPoint(0.5), Anderson(beta=0.5), Broyden(m=1), Broyden(line_search=True)):
        assert solve(f, zeros(1, torch.float32), solver, 4).value[0].dtype == torch.float32


# By name


@pytest.mark.parametrize("name", SOLVERS)
def test_every_registered_solver_is_made_by_its_name(name: str) -> None:
    assert isinstance(make_solver(name), SOLVERS[name])  # type: ignore[arg-type]


def test_settings_reach_the_solver() -> None:
    assert make_solver("fixed_point", tau=0.5) == FixedPoint(0.5)
    assert make_solver("anderson", m=3, beta=0.9, lam=1e-3) == Anderson(3, 0.9, 1e-3)
    assert make_solver("broyden", m=3) == Broyden(3)
    assert make_solver("broyden", m=3.0, line_search=1.0) == Broyden(3, line_search=True)


def test_a_whole_number_may_come_as_a_float() -> None:
    """As it does from a manifest, whose settings are floats."""
    f = linear(symmetric(0.5), offsets(1))
    solution = solve(f, zeros(1), make_solver("anderson", m=3.0), 6)
    torch.testing.assert_close(solution.value, solve(f, zeros(1), Anderson(3), 6).value)


def test_an_unknown_solver_suggests_a_near_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown solver 'andersen'.*did you mean 'anderson'\?"):
        make_solver("andersen")
    with pytest.raises(ConfigError, match=r"unknown solver 'broyen'.*did you mean 'broyden'\?"):
        make_solver("broyen")


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
        ("broyden", {"m": 0}, "m is 0, must be a whole number from 1"),
        ("broyden", {"m": float("inf")}, "m is inf, must be a whole number from 1"),
        ("broyden", {"m": 2.5}, "m is 2.5, must be a whole number from 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(
    name: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_solver(name, **settings)


# A history of full size from the first step on


@EVERY_SOLVER
@pytest.mark.parametrize(
    "f", [linear(symmetric(0.8), offsets(2)), nonlinear(symmetric(1.5), offsets(2))]
)
def test_a_full_history_of_zeros_gives_the_iterates_that_a_growing_one_gives(
    solver: Solver, f: Map
) -> None:
    z = to_state(offsets(2, seed=3))
    if isinstance(solver, Broyden) and solver.line_search:
        with pytest.raises(ConfigError, match="line search"):
            solver.init_full(z)
        return
    growing, full = solver.init(z), solver.init_full(z)
    structure = tree_structure(full)
    for _ in range(12):
        growing, full = solver.advance(growing, f(growing.z)), solver.advance(full, f(full.z))
        torch.testing.assert_close(to_flat(full.z), to_flat(growing.z), rtol=1e-9, atol=1e-9)
        assert tree_structure(full) == structure


@pytest.mark.parametrize("solver", [Anderson(3), Broyden(3)])
def test_emptying_a_history_starts_the_solve_anew(solver: Solver) -> None:
    f, z = nonlinear(symmetric(1.5), offsets(2)), to_state(offsets(2, seed=3))
    state = solver.init_full(z)
    for _ in range(5):
        state = solver.advance(state, f(state.z))
    emptied = tree_map(torch.zeros_like, state)._replace(z=state.z)
    fresh = solver.init(state.z)
    for _ in range(4):
        emptied, fresh = solver.advance(emptied, f(emptied.z)), solver.advance(fresh, f(fresh.z))
    torch.testing.assert_close(to_flat(emptied.z), to_flat(fresh.z), rtol=1e-9, atol=1e-9)
