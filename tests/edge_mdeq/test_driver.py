"""Driving a solver: stopping per sample, guards, the best iterate, what a solution says."""

from __future__ import annotations

import pytest
import torch
from contractions import (
    EVERY_SOLVER,
    SIZE,
    Map,
    State,
    nonlinear,
    offsets,
    scaled,
    symmetric,
    to_flat,
    to_state,
    zeros,
)

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers import Broyden, FixedPoint, Solver, Status, relative_residual, solve

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


# Stopping, per sample


def listed(*values: list[float]) -> Map:
    """A map that ignores its argument: each evaluation gives the next value, one per sample."""
    following = iter(values)

    def f(z: State) -> State:
        column = torch.tensor(next(following), dtype=torch.float64)[:, None]
        return to_state(column.expand(-1, SIZE))

    return f


@EVERY_SOLVER
@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("stop_mode", ["rel", "abs"])
def test_a_sample_stops_as_it_would_alone(solver: Solver, best: bool, stop_mode: str) -> None:
    """Samples of different speed, one of which never gets there."""
    factors = torch.tensor([[0.3], [0.9], [2.5]], dtype=torch.float64)
    A, b = symmetric(0.9), offsets(3)

    def f(k: int | None) -> Map:
        rows = slice(None) if k is None else slice(k, k + 1)
        return lambda z: to_state(torch.sin(factors[rows] * (to_flat(z) @ A.T)) + b[rows])

    together = solve(f(None), zeros(3), solver, 25, tol=1e-3, best=best, stop_mode=stop_mode)
    assert len(set(together.evaluations.tolist())) > 1, "they all stopped at once"
    for k in range(3):
        alone = solve(f(k), zeros(1), solver, 25, tol=1e-3, best=best, stop_mode=stop_mode)
        assert together.evaluations[k] == alone.evaluations[0]
        assert together.statuses[k] is alone.status
        for a, c in (
            (to_flat(together.value)[k], to_flat(alone.value)[0]),
            (to_flat(together.iterate)[k], to_flat(alone.iterate)[0]),
            (together.residual[k], alone.residual[0]),
            (together.absolute[k], alone.absolute[0]),
        ):
            torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-10)


def test_a_sample_that_met_the_tolerance_is_held() -> None:
    """Even though a later evaluation would be better still, or worse."""
    f = listed([1, 1], [1.001, 3], [1.001, 7], [5, 7.001])
    for best in (False, True):
        solution = solve(f, zeros(2), FixedPoint(), 9, tol=1e-2, best=best)
        assert to_flat(solution.value)[:, 0].tolist() == [1.001, 7.001]
        assert solution.evaluations.tolist() == [2, 4]
        assert solution.statuses == [Status.CONVERGED] * 2
        assert solution.residual.tolist() == pytest.approx([0.001 / 1.001, 0.001 / 7.001])
        f = listed([1, 1], [1.001, 3], [1.001, 7], [5, 7.001])


def test_the_absolute_residual_is_not_divided() -> None:
    z, fz = to_state(offsets(2, seed=3)), to_state(offsets(2, seed=4))
    solution = solve(lambda _: fz, z, FixedPoint(), 1)
    expected = (to_flat(fz) - to_flat(z)).norm(dim=1)
    torch.testing.assert_close(solution.absolute, expected)


def test_the_best_iterate_is_that_of_the_mode() -> None:
    """The states grow, so that the second is relatively better than the first, and not absolutely.

    The first iterate counts as well.
    """
    values = [1.0], [3.0], [10.0]
    relative = solve(listed(*values), zeros(1), FixedPoint(), 3, best=True)
    absolute = solve(listed(*values), zeros(1), FixedPoint(), 3, best=True, stop_mode="abs")
    assert to_flat(relative.value)[0, 0].item() == 3.0
    assert to_flat(absolute.value)[0, 0].item() == 1.0
    assert relative.residual.item() == pytest.approx(2 / 3)
    assert absolute.residual.item() == pytest.approx(1.0)


def test_the_tolerance_is_that_of_the_mode() -> None:
    """A relative error of 1e-3 in a state of norm 3300 is an absolute one of 3.3."""
    f = scaled([0.5], offset=500.0)
    relative = solve(f, zeros(1), FixedPoint(), 60, tol=1e-3)
    absolute = solve(f, zeros(1), FixedPoint(), 60, tol=1e-3, stop_mode="abs")
    assert relative.absolute.item() > 1
    assert absolute.absolute.item() <= 1e-3
    assert absolute.evaluations.item() > relative.evaluations.item()
    assert absolute.status is Status.CONVERGED


def test_an_unknown_stop_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown stop mode 'relative', known: rel, abs"):
        solve(scaled([0.5]), zeros(1), FixedPoint(), 3, stop_mode="relative")


@pytest.mark.parametrize("tol", [-1e-3, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tol: float) -> None:
    with pytest.raises(ConfigError, match=r"tol is .*must be 0 \(no tolerance\) or positive"):
        solve(scaled([0.5]), zeros(1), FixedPoint(), 3, tol=tol)


@EVERY_SOLVER
@pytest.mark.parametrize("best", [False, True])
def test_without_a_tolerance_no_value_leaves_the_device(solver: Solver, best: bool) -> None:
    """Tensors on torch's meta device have no values to read."""
    solution = solve(
        lambda z: tuple(0.5 * x for x in z),
        to_state(torch.zeros(2, SIZE, device="meta")),
        solver,
        12,
        best=best,
    )
    assert solution.trace.shape == (12, 2)


# Guards


def test_an_absolute_residual_beyond_a_million_times_the_first_is_divergence() -> None:
    """3^12 is below a million, 3^13 above: the 14th evaluation ends the sample."""
    solution = solve(scaled([-3.0, 0.5]), zeros(2), FixedPoint(), 60, tol=1e-9)
    assert solution.statuses == [Status.DIVERGED, Status.CONVERGED]
    assert solution.status is Status.DIVERGED
    assert solution.evaluations[0].item() == 14
    assert to_flat(solution.iterate)[0, 0].item() == 0.0
    assert to_flat(solution.value)[0, 0].item() == 1.0
    assert solution.absolute[0].item() == pytest.approx(SIZE**0.5)


def test_a_relative_residual_beyond_a_thousand_times_the_first_is_divergence() -> None:
    """The states shrink, so that the absolute residual stays small."""
    start = to_state(torch.ones(1, SIZE, dtype=torch.float64))
    f = listed([0.999], [0.0005], [1.0])
    solution = solve(f, start, FixedPoint(), 9, tol=1e-6)
    assert solution.status is Status.DIVERGED
    assert solution.evaluations.item() == 2
    assert to_flat(solution.value)[0, 0].item() == 0.999


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_that_stops_being_finite_returns_its_best_iterate(best: bool, bad: float) -> None:
    f = listed([1, 1], [1.2, 2], [1.7, 3], [bad, 4], [0, 4.01])
    solution = solve(f, zeros(2), FixedPoint(), 9, tol=1e-2, best=best)
    assert solution.statuses == [Status.NON_FINITE, Status.CONVERGED]
    assert to_flat(solution.value)[:, 0].tolist() == [1.2, 4.01]
    assert solution.evaluations.tolist() == [4, 5]
    assert solution.residual[0].item() == pytest.approx(0.2 / 1.2)


@pytest.mark.parametrize("best", [False, True])
def test_a_residual_that_stays_just_above_the_tolerance_is_a_stall(best: bool) -> None:
    """More than thirty evaluations, the last thirty alike, and below three times the tolerance."""
    tol = SIZE**0.5 / 2.9  # z -> z + 1 has the residual sqrt(11) for ever
    f = scaled([1.0, 0.9])
    solution = solve(f, zeros(2), FixedPoint(), 50, tol=tol, best=best, stop_mode="abs")
    assert solution.statuses == [Status.STALLED, Status.CONVERGED]
    assert solution.evaluations[0].item() == len(solution.trace) == 31
    assert to_flat(solution.iterate)[0, 0].item() == (0.0 if best else 30.0)


def test_no_stall_far_from_the_tolerance_or_while_the_residual_falls() -> None:
    size = SIZE**0.5
    far = solve(scaled([1.0]), zeros(1), FixedPoint(), 40, tol=size / 3.1, stop_mode="abs")
    assert far.status is Status.MAX_EVALUATIONS
    assert len(far.trace) == 40
    # 0.99^29 is 0.747, the quotient 1.34
    falling = solve(scaled([0.99]), zeros(1), FixedPoint(), 40, tol=size / 2, stop_mode="abs")
    assert falling.status is Status.MAX_EVALUATIONS


def test_a_guard_that_ended_every_sample_ends_the_solve() -> None:
    solution = solve(scaled([-30.0, float("inf")]), zeros(2), FixedPoint(), 60, tol=1e-3)
    assert solution.statuses == [Status.DIVERGED, Status.NON_FINITE]
    assert len(solution.trace) == max(solution.evaluations.tolist()) < 10


def test_without_a_tolerance_no_guard_looks() -> None:
    """As in a graph: the last iterate of exactly so many evaluations."""
    solution = solve(scaled([-3.0]), zeros(1), FixedPoint(), 40)
    assert solution.status is Status.MAX_EVALUATIONS
    assert solution.evaluations.item() == 40
    assert to_flat(solution.iterate)[0, 0].item() == pytest.approx((1 - (-3.0) ** 39) / 4)


def test_the_worst_sample_names_the_solve() -> None:
    assert [status.code for status in Status] == [0, 1, 2, 3, 4]
    solution = solve(scaled([0.1, 0.99, -30.0]), zeros(3), FixedPoint(), 20, tol=1e-6)
    assert solution.statuses == [Status.CONVERGED, Status.MAX_EVALUATIONS, Status.DIVERGED]
    assert solution.status is Status.DIVERGED


def test_residuals_carry_no_gradient_and_values_do() -> None:
    A = symmetric(0.5).requires_grad_()
    for best in (False, True):
        solution = solve(nonlinear(A, offsets(2)), zeros(2), Broyden(), 4, best=best)
        assert not solution.trace.requires_grad
        assert to_flat(solution.value).requires_grad
