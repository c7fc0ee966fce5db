"""What graphs are compared with: torch, step by step, in single and in double precision."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_mdeq.config import ModelCard
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, FixedPoint, Solver, solve
from edge_mdeq.weights import load_weights
from mdeq_export.convergence import equilibria
from mdeq_export.exporter import affordable, compared
from mdeq_export.images import scene
from mdeq_export.pieces import Inject
from mdeq_export.reference import TorchReference

IMAGES = np.stack([scene(seed, 64, 96) for seed in range(3)])
SOLVERS: dict[str, Solver] = {"fixed point": FixedPoint(), "anderson": Anderson(3)}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.fixture(scope="module")
def frozen(segmenter_weights: Path) -> tuple[MDEQ, ModelCard]:
    model, card = load_weights(segmenter_weights)
    return model.freeze(), card


@solvers
def test_rounding_is_the_distance_to_a_model_in_double(
    frozen: tuple[MDEQ, ModelCard], solver: Solver
) -> None:
    """... that is a whole copy of its own here, and needs none there."""
    model, card = frozen
    found = (
        TorchReference(model, card.input, solver, best=False).bind(IMAGES).rounding(None, [1, 5])
    )
    ends = []
    for precision in (torch.float32, torch.float64):
        own = copy.deepcopy(model).to(precision)
        with torch.no_grad():
            u = Inject(own, card.input).to(precision)(torch.from_numpy(IMAGES).to(precision))
            zero = own.zero_state(u)
            assert zero[0].dtype == precision
            ends.append({n: solve(own.bind(u), zero, solver, n).value for n in (1, 5)})
    for count, single in ends[0].items():
        double = ends[1][count]
        gap = sum(float((a - b).square().sum()) for a, b in zip(single, double, strict=True))
        size = sum(float(b.square().sum()) for b in double)
        assert 1e-8 < found[count] < 1e-4
        assert found[count] == pytest.approx((gap / size) ** 0.5, rel=0.05)


def test_a_solve_is_passed_once(
    frozen: tuple[MDEQ, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same start, whether it is given or left out, and for as many evaluations."""
    model, card = frozen
    problem = TorchReference(model, card.input, FixedPoint(), best=False).bind(IMAGES[:1])
    walk, walks = problem.walk, []

    def note(f: object, start: tuple[torch.Tensor, ...], count: int) -> object:
        walks.append((start[0].dtype, count))
        return walk(f, start, count)  # type: ignore[arg-type]

    monkeypatch.setattr(problem, "walk", note)
    cold = problem.solve(None, [1, 3])
    zeros = [np.zeros_like(z) for z in cold[3].states]
    problem.rounding(zeros, [1, 3])
    assert problem.solve(zeros, [3])[3] is cold[3]
    assert walks == [(torch.float32, 3), (torch.float64, 3)]
    problem.rounding(cold[3].states, [3])
    assert problem.solve(None, [2]).keys() == {2}
    assert walks[2:] == [(torch.float32, 3), (torch.float64, 3), (torch.float32, 2)]


def test_a_model_stays_in_single_precision(frozen: tuple[MDEQ, ModelCard]) -> None:
    model, card = frozen
    reference = TorchReference(model, card.input, FixedPoint(), best=False)
    before = [x.clone() for x in model.state_dict().values()]
    reference.bind(IMAGES[:1]).rounding(None, [2])
    for tensor, right in zip(model.state_dict().values(), before, strict=True):
        assert tensor.dtype == right.dtype
        assert torch.equal(tensor, right)


@solvers
@pytest.mark.parametrize("best", [False, True])
def test_a_course_passes_the_ends_of_all_solves(
    frozen: tuple[MDEQ, ModelCard], solver: Solver, best: bool
) -> None:
    model, card = frozen
    problem = TorchReference(model, card.input, solver, best).bind(IMAGES[:1])
    ends = problem.solve(None, range(1, 6))
    course = list(problem.course(5))
    assert len(course) == 5
    for count, answer in enumerate(course, 1):
        np.testing.assert_array_equal(answer.residual, ends[count].residual)
        np.testing.assert_array_equal(answer.classes, ends[count].classes)
        for state, right in zip(answer.states, ends[count].states, strict=True):
            np.testing.assert_array_equal(state, right)


def test_a_converged_answer_that_is_known_is_not_solved_for(
    frozen: tuple[MDEQ, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the image, for several at once too; what is not known is solved for."""
    model, card = frozen
    goals = equilibria(model, card.input, IMAGES)
    known = {image.tobytes(): goal for image, goal in zip(IMAGES, goals, strict=True)}
    reference = TorchReference(model, card.input, FixedPoint(), best=False, goals=known)
    unknown = scene(7, 64, 96)
    both = np.stack([IMAGES[0], unknown])
    mixed = reference.bind(both).converged()
    np.testing.assert_allclose(mixed.states[0][0], goals[0].states[0][0], atol=1e-2)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("solved again")

    monkeypatch.setattr("mdeq_export.reference.solve", refuse)
    assert reference.bind(IMAGES[1:2]).converged() is goals[1]
    pair = reference.bind(IMAGES[[2, 0]]).converged()
    for found, place in zip((2, 0), range(2), strict=True):
        for state, right in zip(pair.states, goals[found].states, strict=True):
            np.testing.assert_array_equal(state[place], right[0])
        np.testing.assert_array_equal(pair.classes[place], goals[found].classes[0])
        assert pair.residual[place] == goals[found].residual[0]
    with pytest.raises(AssertionError, match="solved again"):
        reference.bind(unknown[None]).converged()


def test_long_ladders_and_large_models_are_compared_on_fewer_images() -> None:
    assert compared((4,)) == 16  # torch and the graph, cold and warm
    assert compared((1, 2, 4)) == 2 * (4 + 1 + 2 + 4)
    assert [affordable(count) for count in (0.1, 2.5, 5.9, 1e6)] == [2, 2, 5, 8]
    assert affordable(0.1, least=1) == 1
