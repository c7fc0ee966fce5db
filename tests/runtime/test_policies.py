"""When a solve stops: every policy on real graphs, against a solve of a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams import CALM, SIZE, Picture, assert_same
from streams import blobs as picture

from edge_mdeq.errors import ConfigError, SessionError
from mdeq_runtime import (
    FixedIterations,
    Model,
    Result,
    Session,
    SessionSettings,
    UntilDeadline,
    UntilTolerance,
)
from mdeq_runtime.governor import Governor, GovernorSettings, governing
from mdeq_runtime.sensors import Sensors

ALONE = SessionSettings(carry=False)


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def classifier(classifier_bundle: Path) -> Iterator[Model]:
    """Its f contracts: every solve converges."""
    with Model(classifier_bundle, CALM, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module", params=[("anderson", 3), ("broyden", 2)], ids=lambda p: p[0])
def with_history(
    request: pytest.FixtureRequest,
    segmenter_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Model]:
    """The same weights under a solver that remembers earlier iterates."""
    from quick_exports import traced_once, two_images

    from mdeq_export import ExportSettings, export_bundle

    solver, m = request.param
    path = tmp_path_factory.mktemp("history") / f"{solver}.mdeq"
    with two_images(), traced_once():
        export_bundle(
            segmenter_weights, path, ExportSettings((1, 2, 4, 6), solver, solver_settings={"m": m})
        )
    with Model(path, CALM, threads=1) as opened:
        yield opened


def fixed(model: Model, count: int, frame: Picture) -> Result:
    """A cold solve of so many evaluations, in one graph if there is one."""
    return model.session(replace(ALONE, policy=FixedIterations(count)))(frame)


# Until a tolerance


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_solve_in_parts_is_the_solve_in_one_graph(model: Model, count: int) -> None:
    session = model.session(replace(ALONE, policy=UntilTolerance(1e-9, max_iterations=count)))
    for seed in (0, 1):
        found = session(picture(seed))
        assert (found.iterations, found.converged) == (count, False)
        assert_same(found, fixed(model, count, picture(seed)))


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_so_it_is_with_a_history(with_history: Model, count: int) -> None:
    policy = UntilTolerance(1e-9, max_iterations=count)
    session = with_history.session(replace(ALONE, policy=policy))
    for seed in (0, 1):  # and the second frame knows nothing of the first one's history
        assert_same(session(picture(seed)), fixed(with_history, count, picture(seed)))


@pytest.mark.parametrize("tol", [0.3, 0.1, 0.03])
def test_it_stops_at_the_first_residual_within_tolerance(classifier: Model, tol: float) -> None:
    frame = picture(2, (32, 32))
    found = classifier.session(replace(ALONE, policy=UntilTolerance(tol)))(frame)
    assert found.converged
    assert found.residual <= tol
    assert found.iterations > 1
    assert fixed(classifier, found.iterations - 1, frame).residual > tol


def test_a_still_picture_needs_one_evaluation_once_it_has_converged(classifier: Model) -> None:
    session = classifier.session(replace(CALM, policy=UntilTolerance(0.03)))
    results = [session(picture(3, (32, 32))) for _ in range(3)]
    assert results[0].iterations > 1
    assert [result.iterations for result in results[1:]] == [1, 1]
    assert [result.warm for result in results] == [False, True, True]


def test_a_moving_picture_needs_fewer_evaluations_than_a_new_one(classifier: Model) -> None:
    """The point of carrying the equilibrium."""
    wide = picture(4, (32, 90))
    frames = [np.ascontiguousarray(wide[:, shift : shift + 32]) for shift in range(20)]
    warm = classifier.session(replace(CALM, policy=UntilTolerance(0.02)))
    cold = classifier.session(replace(ALONE, policy=UntilTolerance(0.02)))
    counts = [(warm(frame).iterations, cold(frame).iterations) for frame in frames]
    assert sum(w for w, _ in counts[1:]) < 0.8 * sum(c for _, c in counts[1:])


def test_a_warm_start_that_is_far_off_is_given_up_for_a_cold_one(model: Model) -> None:
    session = model.session(replace(CALM, policy=UntilTolerance(0.05), restart_above=1e-3))
    session(picture(5))
    found = session(picture(6))
    assert not found.warm
    assert found.reason.startswith("reset: residual 0.")
    cold = model.session(replace(ALONE, policy=UntilTolerance(0.05)))(picture(6))
    assert found.iterations == cold.iterations + 1, "the evaluation that showed it counts"
    assert_same(found, cold)


@pytest.mark.parametrize("policy", [UntilTolerance(0.05), UntilDeadline(1e4, tol=0.05)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_poisoned_state_never_reaches_an_answer(
    model: Model, policy: UntilTolerance | UntilDeadline, value: float
) -> None:
    session = model.session(replace(CALM, policy=policy))
    session(picture(7))
    session.state.states[session.state.turn][0][0, 0, 0, 0] = value
    found = session(picture(8))
    assert (found.warm, found.reason) == (False, "reset: non-finite state")
    assert_same(found, model.session(replace(ALONE, policy=policy))(picture(8)))


def test_another_scene_starts_cold_before_anything_is_computed(model: Model) -> None:
    session = model.session(SessionSettings(UntilTolerance(0.05)))
    dark, light = np.full((*SIZE, 3), 20, np.uint8), np.full((*SIZE, 3), 220, np.uint8)
    results = [session(frame) for frame in (dark, dark, light, light)]
    assert [result.reason for result in results] == [
        "first frame", "", "reset: scene cut, 78% of full scale", "",
    ]  # fmt: skip
    assert (
        results[2].iterations
        == model.session(replace(ALONE, policy=UntilTolerance(0.05)))(light).iterations
    )


def test_parts_hold_one_graph_of_each_kind_however_many_evaluations(segmenter_bundle: Path) -> None:
    with Model(segmenter_bundle, CALM) as opened:
        opened.session(replace(CALM, policy=UntilTolerance(1e-9, max_iterations=20)))(picture(0))
        assert [Path(name).stem for name in opened.backend.sessions] == [
            "inject", "advance-k1", "readout",
        ]  # fmt: skip


def test_confidence_and_scores_come_from_the_readout(model: Model, classifier: Model) -> None:
    policy = UntilTolerance(1e-9, max_iterations=4)
    found = model.session(replace(ALONE, policy=policy, confidence=True))(picture(9))
    whole = model.session(replace(ALONE, policy=FixedIterations(4), confidence=True))(picture(9))
    assert found.confidence is not None
    assert whole.confidence is not None
    np.testing.assert_allclose(found.confidence, whole.confidence, atol=1e-4)
    scores = [
        classifier.session(replace(ALONE, policy=chosen))(picture(9)).output
        for chosen in (policy, FixedIterations(4))
    ]
    np.testing.assert_allclose(*scores, atol=1e-5)


# Until a deadline


class Slow:
    """Makes every evaluation of a session last ``seconds``, as a larger model's would."""

    def __init__(self, session: Session, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        backend: Any = session.solver.backend  # type: ignore[attr-defined]
        advance: Callable[..., float] = backend.advance

        def slow(*args: Any) -> float:
            time.sleep(seconds)
            return advance(*args)

        monkeypatch.setattr(backend, "advance", slow)


@pytest.mark.clock
@pytest.mark.parametrize(("ms", "fewest", "most"), [(170, 1, 3), (330, 3, 6)])
def test_a_solve_uses_the_time_it_has_and_no_more(
    model: Model, monkeypatch: pytest.MonkeyPatch, ms: float, fewest: int, most: int
) -> None:
    """With evaluations of 50 ms, on frames that never converge."""
    session = model.session(replace(ALONE, policy=UntilDeadline(ms, tol=1e-9)))
    Slow(session, 0.05, monkeypatch)
    for seed in range(3):
        started = time.perf_counter()
        found = session(picture(seed))
        taken = 1e3 * (time.perf_counter() - started)
        assert fewest <= found.iterations <= most
        assert taken < ms + 50


def test_a_frame_has_one_evaluation_however_short_its_time(model: Model) -> None:
    found = model.session(replace(ALONE, policy=UntilDeadline(1e-3)))(picture(0))
    assert found.iterations == 1
    assert_same(found, fixed(model, 1, picture(0)))


def test_with_time_to_spare_it_stops_at_its_tolerance_or_its_limit(model: Model) -> None:
    in_time = model.session(replace(ALONE, policy=UntilDeadline(6e4, tol=0.05)))(picture(1))
    until = model.session(replace(ALONE, policy=UntilTolerance(0.05)))(picture(1))
    assert in_time.iterations == until.iterations
    endless = UntilDeadline(6e4, tol=1e-9, max_iterations=5)
    assert model.session(replace(ALONE, policy=endless))(picture(1)).iterations == 5


def test_a_given_up_start_is_never_answered_even_when_time_is_up(model: Model) -> None:
    session = model.session(replace(CALM, policy=UntilDeadline(1e-3), restart_above=1e-3))
    session(picture(5))
    found = session(picture(6))
    assert (found.warm, found.iterations) == (False, 2)
    assert_same(found, fixed(model, 1, picture(6)))


# Under a limit


@pytest.mark.parametrize(
    ("policy", "counts"),
    [
        (UntilTolerance(1e-9, max_iterations=5), (1, 2, 3, 4, 5)),
        (UntilDeadline(6e4, tol=1e-9, max_iterations=3), (1, 2, 3)),
        (FixedIterations(2, cold=4), (2, 4)),
        (FixedIterations(1, cold=0), (1, 2, 3, 4)),
    ],
)
def test_a_limit_goes_before_the_policy(
    model: Model, policy: UntilTolerance | UntilDeadline | FixedIterations, counts: tuple[int, ...]
) -> None:
    session = model.session(replace(CALM, policy=policy))
    assert session.counts == counts
    for limit in (None, *reversed(counts), 1):
        session.reset()
        session.limit = limit
        found = session(picture(0))
        expected = counts[-1] if limit is None else max(limit, counts[0])
        assert found.iterations == expected
        assert_same(found, fixed(model, expected, picture(0)))


@pytest.mark.clock
def test_a_governed_stream_meets_its_target_and_takes_what_it_may(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations of 60 ms, a target of 230: three fit, also on a busy machine, and four never."""
    session = model.session(replace(ALONE, policy=UntilTolerance(1e-9, max_iterations=8)))
    Slow(session, 0.06, monkeypatch)
    governor = Governor(GovernorSettings(230), session.counts, Sensors(root=Path("/nowhere")))
    govern = governing(governor, session)
    results = []
    for _ in range(40):  # one try of four is among them
        results.append(session(picture(0)))
        govern(results[-1], 0.0)
    assert results[0].iterations == 8
    assert {result.iterations for result in results[-8:]} <= {2, 3}
    assert np.median([result.busy_ms for result in results[-8:]]) < 230


@pytest.mark.clock
def test_a_governor_follows_a_policy_that_was_changed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two evaluations it need not know how to lower eight."""
    session = model.session(replace(ALONE, policy=FixedIterations(2, cold=2)))
    governor = Governor(GovernorSettings(230), session.counts, Sensors(root=Path("/nowhere")))
    govern = governing(governor, session)
    govern(session(picture(0)), 0.0)
    session.use(UntilTolerance(1e-9, max_iterations=8))
    Slow(session, 0.06, monkeypatch)
    results = []
    for _ in range(20):
        results.append(session(picture(0)))
        govern(results[-1], 0.0)
    assert results[0].iterations == 8
    assert {result.iterations for result in results[-4:]} <= {2, 3}


# What is refused


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedIterations(0),
        lambda: FixedIterations(2, cold=-1),
        lambda: FixedIterations(tol=0.0),
        lambda: UntilTolerance(-1e-3),
        lambda: UntilTolerance(float("nan")),
        lambda: UntilTolerance(0.05, max_iterations=0),
        lambda: UntilDeadline(0),
        lambda: UntilDeadline(float("inf")),
        lambda: UntilDeadline(float("nan")),
        lambda: UntilDeadline(33, tol=0),
    ],
)
def test_senseless_policies_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"must be|need at least"):
        make()


def test_a_bundle_without_parts_names_what_does_work(model: Model) -> None:
    profile = replace(model.bundle.profile("ort-cpu"), parts=())
    settings = SessionSettings(UntilTolerance())
    with pytest.raises(SessionError, match="use FixedIterations"):
        Session(model.manifest, profile, model.backend, settings)
    assert Session(model.manifest, profile, model.backend)(picture(0)).output.shape == SIZE
