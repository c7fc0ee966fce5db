"""Broyden against its definition with a dense matrix, and against the published implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from contractions import (
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
from reference import load_reference
from torch import Tensor

from edge_mdeq.config import ModelConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Broyden, FixedPoint, solve
from edge_mdeq.solvers.broyden import BroydenState
from edge_mdeq.weights import load_weights
from mdeq_export.images import scene
from mdeq_export.pieces import Inject

ROOT = Path(__file__).parents[2]

# One sample's iterates


def dense_iterates(f: Map, x: np.ndarray, m: int, steps: int) -> list[np.ndarray]:
    """Broyden as MDEQ_SPEC 3.1 states it for one sample x (D,), with B as a matrix.

    After m rank-one terms the matrix is -I again, and the step a plain one.
    """

    def g(x: np.ndarray) -> np.ndarray:
        state = to_state(torch.from_numpy(x)[None])
        return to_flat(f(state))[0].numpy() - x

    B, rank = -np.eye(len(x)), 0
    iterates, gx, p = [x], g(x), g(x)
    for _ in range(steps):
        new = x + p
        gnew = g(new)
        dx, dg = new - x, gnew - gx
        vT = dx @ B
        u = (dx - B @ dg) / (vT @ dg)
        B, rank = (B + np.outer(u, vT), rank + 1) if rank < m else (-np.eye(len(x)), 0)
        x, gx, p = new, gnew, -B @ gnew
        iterates.append(x)
    return iterates


@pytest.mark.parametrize("m", [1, 2, 4, 30])
@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("kind", ["contraction", "expansion"])
def test_iterates_are_those_of_the_dense_method(m: int, seed: int, kind: str) -> None:
    A, b = symmetric(0.9 if kind == "contraction" else 1.3, seed), offsets(2, seed)
    start = offsets(2, seed + 10)
    f, solver = nonlinear(A, b), Broyden(m=m)
    state = solver.init(to_state(start))
    found = [to_flat(state.z).numpy()]
    for _ in range(12):  # beyond m, so that terms are dropped
        state = solver.advance(state, f(state.z))
        found.append(to_flat(state.z).numpy())
    for sample in range(2):
        own = nonlinear(A, b[sample : sample + 1])
        expected = dense_iterates(own, start[sample].numpy(), m, 12)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[sample], theirs, rtol=1e-6, atol=1e-8)


def test_the_first_step_is_f() -> None:
    f, z = nonlinear(symmetric(0.9), offsets(2)), to_state(offsets(2, seed=3))
    solver = Broyden()
    assert torch.equal(to_flat(solver.advance(solver.init(z), f(z)).z), to_flat(f(z)))


@pytest.mark.parametrize("m", [1, 3, 8])
def test_history_stops_growing_at_m(m: int) -> None:
    solver = Broyden(m=m)
    state = solver.init(zeros(1))
    lengths = []
    for _ in range(12):
        state = solver.advance(state, state.z)
        lengths.append((len(state.step), len(state.u), len(state.v)))
    assert lengths == [(1, min(k, m), min(k, m)) for k in range(12)]


def test_history_is_one_flat_tensor_per_vector() -> None:
    solver = Broyden()
    state = solver.init(zeros(2))
    for _ in range(3):
        state = solver.advance(state, state.z)
    assert {x.shape for x in (*state.step, *state.u, *state.v)} == {(2, SIZE)}


# Where a division has nothing to divide by


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_denominator_leaves_the_update_out(dtype: torch.dtype) -> None:
    """g is constant for the first sample, so dg is zero; the second is an ordinary contraction."""
    column = torch.tensor([[1.0], [0.5]], dtype=dtype)
    f: Map = lambda z: to_state(column * to_flat(z) + 1.0)  # noqa: E731
    solution = solve(f, zeros(2, dtype), Broyden(m=2), 6)
    found = to_flat(solution.iterate)
    torch.testing.assert_close(found[0], torch.full((SIZE,), 5.0, dtype=dtype))
    torch.testing.assert_close(found[1], torch.full((SIZE,), 2.0, dtype=dtype))


def test_steps_too_small_to_be_squared_stay_finite() -> None:
    """The square of 1e-25 is zero in fp32."""
    f = linear(symmetric(0.5).float(), 1e-25 * offsets(1).float())
    solution = solve(f, zeros(1, torch.float32), Broyden(), 8)
    assert bool(to_flat(solution.value).isfinite().all())


def test_half_precision_holds_the_history() -> None:
    """u and v are of like size, however small the steps become."""
    f = linear(symmetric(0.5).half().float(), torch.zeros(1, SIZE))
    start = to_state(1e-3 * offsets(1, seed=5).half())

    def half(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.half() for x in f(tuple(x.float() for x in z)))

    solver = Broyden()
    state = solver.init(start)
    for _ in range(4):
        state = solver.advance(state, half(state.z))
    assert all(x.dtype == torch.float16 for x in (*state.z, *state.u, *state.v))
    sizes = [x.float().norm().item() for x in (*state.u, *state.v)]
    assert all(0.01 < size < 100 for size in sizes), sizes
    fine = solve(f, tuple(x.float() for x in start), Broyden(), 5).iterate
    gap = (to_flat(state.z).float() - to_flat(fine)).norm() / to_flat(start).float().norm()
    assert gap.item() < 5e-3


# How fast


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_a_linear_problem_is_solved_in_twice_its_dimension(dimension: int) -> None:
    """Gay (1979): Broyden's method ends after at most 2 n steps on a linear system of n."""
    factors = torch.zeros(SIZE, dtype=torch.float64)
    factors[:dimension] = torch.tensor([0.95, -0.8, 1.5, 0.2])[:dimension]
    b = torch.zeros(1, SIZE, dtype=torch.float64)
    b[:, :dimension] = torch.tensor([1.0, -2.0, 0.5, 3.0])[:dimension]
    solution = solve(linear(torch.diag(factors), b), zeros(1), Broyden(30), 2 * dimension + 1)
    expected = b / (1 - factors)
    torch.testing.assert_close(to_flat(solution.iterate), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_broyden_solves_expansions_that_no_plain_iteration_solves(seed: int) -> None:
    A, b = symmetric(3.0, seed), offsets(2, seed)
    solution = solve(linear(A, b), zeros(2), Broyden(40), 40, tol=1e-9)
    expected = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - A, b.T).T
    torch.testing.assert_close(to_flat(solution.value), expected, rtol=1e-6, atol=1e-6)
    assert not (solve(linear(A, b), zeros(2), FixedPoint(), 40).residual < 0.1).any()


def test_convergence_is_superlinear() -> None:
    """The residual's quotients fall; those of the plain iteration tend to the spectral radius."""
    f = nonlinear(symmetric(0.98), 0.3 * offsets(1))
    broyden = solve(f, zeros(1), Broyden(40), 60, tol=1e-12)
    plain = solve(f, zeros(1), FixedPoint(), 2000, tol=1e-12)
    assert 4 * broyden.evaluations.item() < plain.evaluations.item()
    trace = broyden.trace[:, 0]
    half = len(trace) // 2
    early = (trace[half] / trace[0]) ** (1 / half)
    late = (trace[-1] / trace[half]) ** (1 / (len(trace) - 1 - half))
    assert late < 0.5 * early
    rates = plain.trace[1:, 0] / plain.trace[:-1, 0]
    assert rates[-1] > 0.5


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_broyden_gets_closer_to_a_model_s_equilibrium(
    build: Callable[..., MDEQ], seed: int
) -> None:
    """Of random weights, which the plain iteration hardly approaches."""
    config = ModelConfig(task="segmentation", classes=3, channels=(16, 24), expansion=2)
    model = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    u = model.inject(torch.randn(2, 3, 16, 24, generator=generator))
    f, z0 = model.bind(u), model.zero_state(u)
    plain, broyden = (solve(f, z0, s, 20, best=True).residual for s in (FixedPoint(), Broyden()))
    assert bool((broyden < 0.7 * plain).all()), (broyden, plain)


# The published implementations


@torch.no_grad()
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_logits_are_those_of_the_published_solver(version: str) -> None:
    """Six steps, the lowest residual in the version's own sense, each image on its own.

    What is read out there is the iterate, not f of it.
    """
    model, images, values = load_reference(version)
    for image, expected in zip(images, values["broyden6_output"], strict=True):
        u = model.inject(image[None])
        solution = solve(
            model.bind(u),
            model.zero_state(u),
            Broyden(m=27),
            7,
            best=True,
            stop_mode={"v1": "abs", "v2": "rel"}[version],
        )
        logits = model.readout(solution.iterate)[0].numpy()
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        assert error < 1e-4
        elsewhere = model.readout(solution.value)[0].numpy()
        assert np.linalg.norm(elsewhere - expected) / np.linalg.norm(expected) > 1e-2


# Line search


def test_steps_that_help_are_taken_whole() -> None:
    """So that line search changes nothing where ||g|| falls with every step."""
    f, start = linear(0.3 * symmetric(1.0), offsets(2)), zeros(2)
    plain = solve(f, start, Broyden(), 6)
    assert bool((plain.trace[1:] < plain.trace[:-1]).all())
    searched = solve(f, start, Broyden(line_search=True), 6)
    torch.testing.assert_close(searched.value, plain.value, rtol=1e-12, atol=1e-12)


def test_a_step_that_overshoots_is_shortened_for_its_sample_alone() -> None:
    """z -> -3 z + 4 from 0: g goes from 4 to -12 at the full step, nine times its square.

    The quadratic through ||g||^2 = 16 with slope -16 and 144 has its minimum at 1/18.
    """
    f = scaled([-3.0, 0.5], offset=4.0)
    solver = Broyden(line_search=True)
    state = solver.init(zeros(2))
    for _ in range(2):
        state = solver.advance(state, f(state.z))
    found = to_flat(state.z)[:, 0].tolist()
    assert found == pytest.approx([4 / 18, 8.0])
    after = solver.advance(state, f(state.z))  # a secant of a linear function: at the solution
    assert to_flat(after.z)[:, 0].tolist() == pytest.approx([1.0, 8.0])


def matrix(state: BroydenState) -> Tensor:
    """B of a batch of one."""
    count = int(state.steps[0].item()) - 1
    terms = list(zip(state.u, state.v, strict=True))[len(state.u) - count :]
    return sum((torch.outer(u[0], v[0]) for u, v in terms), -torch.eye(SIZE, dtype=torch.float64))


@pytest.mark.parametrize("m", [1, 3, 40])
def test_with_line_search_each_update_is_broyden_s_for_the_step_that_was_taken(m: int) -> None:
    f = nonlinear(symmetric(6.0), offsets(1))

    def g(z: tuple[Tensor, ...]) -> Tensor:
        return (to_flat(f(z)) - to_flat(z))[0]

    solver, start = Broyden(m, line_search=True), zeros(1)
    state = solver.advance(solver.init(start), f(start))
    lengths = []
    for _ in range(30):
        after = solver.advance(state, f(state.z))
        B, s = matrix(state), state.trial[0].s.item()
        reached = to_flat(after.z)[0] - to_flat(start)[0]
        if after.trial[0].phi.item() == after.trial[0].start.item():  # accepted
            dx, dg = (to_flat(state.z) - to_flat(start))[0], g(state.z) - g(start)
            vT = dx @ B
            updated = B + torch.outer((dx - B @ dg) / (vT @ dg), vT)
            B = -torch.eye(len(vT), dtype=B.dtype) if state.steps[0].item() == m + 1 else updated
            torch.testing.assert_close(after.step[0][0], -B @ g(state.z), rtol=1e-6, atol=1e-8)
            start = state.z
            lengths.append(s)
        else:  # back along the same step
            torch.testing.assert_close(reached, after.trial[0].s * state.step[0][0])
        torch.testing.assert_close(matrix(after), B, rtol=1e-6, atol=1e-8)
        state = after
    assert lengths.count(1.0) > 1
    assert sum(length < 1 for length in lengths) > 1


def test_when_no_length_is_left_the_full_step_is_taken_after_all() -> None:
    """z -> -99 z + 1: the first quadratic asks for 1/(2 99^2), below the shortest step."""
    f = scaled([-99.0])
    solver = Broyden(line_search=True)
    state = solver.init(zeros(1))
    seen = []
    for _ in range(3):
        state = solver.advance(state, f(state.z))
        seen.append(to_flat(state.z)[0, 0].item())
    assert seen[:2] == pytest.approx([1.0, 1.0])
    assert seen[2] == pytest.approx(0.01)  # accepted, and the secant of a linear function


def test_line_search_solves_what_full_steps_do_not_reach_as_well() -> None:
    """On steep saturating maps the lowest residual is below that of full steps, on the whole."""
    lower = 0
    for seed in range(8):
        f = nonlinear(symmetric(6.0, seed), offsets(1, seed))
        plain = solve(f, zeros(1), Broyden(40), 40, best=True).residual.item()
        searched = solve(f, zeros(1), Broyden(40, line_search=True), 40, best=True)
        lower += searched.residual.item() <= plain
    assert lower >= 4


def test_trained_weights_stay_solved_long_after_the_memory_is_full() -> None:
    """A ring of terms, each made for the B before it, diverges here after some thirty steps."""
    model, card = load_weights(ROOT / "samples/models/camvid-nano")
    frozen = model.freeze()
    image = torch.from_numpy(scene(0, card.input.height, card.input.width))[None]
    with torch.no_grad():
        u = Inject(frozen, card.input)(image)
        reached = {
            m: solve(frozen.bind(u), frozen.zero_state(u), Broyden(m), 60).residual.item()
            for m in (4, 8)
        }
    assert max(reached.values()) < 1e-2
