"""A session's policy changed while it runs: the equilibrium stays, and so does what works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streams import CALM, assert_same
from streams import blobs as picture

from edge_mdeq.errors import ConfigError, MemoryLimitError, SessionError
from mdeq_runtime import (
    FixedIterations,
    Model,
    Result,
    Session,
    SessionSettings,
    UntilDeadline,
    UntilTolerance,
)


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


def fixed(model: Model, n: int) -> Session:
    return model.session(replace(CALM, policy=FixedIterations(n)))


def test_every_policy_goes_on_from_the_equilibrium_of_the_one_before(model: Model) -> None:
    """Two evaluations and one more are three, whichever graphs made them."""
    session, whole = fixed(model, 2), fixed(model, 3)
    session(picture(0))
    session.use(UntilTolerance(1e-9, max_iterations=1))
    third = session(picture(0))
    assert third.warm
    assert third.iterations == 1
    assert_same(third, whole(picture(0)))
    session.use(FixedIterations(4))
    seventh = session(picture(0))
    assert seventh.warm
    assert seventh.iterations == 4
    assert_same(seventh, fixed(model, 7)(picture(0)))


def test_the_tolerance_of_the_new_policy_says_what_is_converged(model: Model) -> None:
    session = fixed(model, 2)
    assert not session(picture(0)).residual < 1e-9
    session.use(FixedIterations(2, tol=1e-9))
    assert not session(picture(0)).converged
    session.use(FixedIterations(2, tol=1e9))
    assert session(picture(0)).converged


def test_what_cannot_be_run_leaves_the_policy_as_it_was(model: Model) -> None:
    profile = replace(model.bundle.profile("ort-cpu"), parts=())
    session = Session(model.manifest, profile, model.backend, CALM)
    before = session(picture(0))
    with pytest.raises(SessionError, match="use FixedIterations"):
        session.use(UntilDeadline(10))
    with pytest.raises(ConfigError, match="policy is 7"):
        session.use(7)  # type: ignore[arg-type]
    assert session.settings.policy == CALM.policy
    assert session(picture(0)).warm
    assert before.iterations == session.counts[-1]
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.use(FixedIterations(1))


def test_frames_go_on_while_graphs_are_loaded(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that hangs delays the change, and no frame."""
    session, loading, loaded = fixed(model, 2), threading.Event(), threading.Event()
    load = model.backend.load

    def hang(graph: str) -> Any:
        loading.set()
        assert loaded.wait(30)
        return load(graph)

    monkeypatch.setattr(model.backend, "load", hang)
    change = threading.Thread(target=session.use, args=(FixedIterations(4),))
    change.start()
    assert loading.wait(30)
    monkeypatch.setattr(model.backend, "load", load)
    assert [session(picture(0)).iterations for _ in range(3)] == [2, 2, 2]
    loaded.set()
    change.join(30)
    assert session(picture(0)).iterations == 4


def test_changes_from_one_thread_and_frames_from_another(model: Model) -> None:
    """Every frame is of one policy as a whole, and none is lost."""
    session = fixed(model, 1)
    results: list[Result] = []
    thread = threading.Thread(
        target=lambda: results.extend(session(picture(seed % 3)) for seed in range(60))
    )
    thread.start()
    counts = (1, 2, 4)
    for turn in range(30):
        session.use(FixedIterations(counts[turn % 3]))
    thread.join(60)
    assert len(results) == 60
    assert {result.iterations for result in results} <= set(counts)
    assert sum(not result.warm for result in results) == 1


def test_a_policy_that_exceeds_the_memory_limit_is_refused(segmenter_bundle: Path) -> None:
    settings = SessionSettings(FixedIterations(1))
    with Model(segmenter_bundle, settings, threads=1, memory_limit="8GiB") as opened:
        session = opened.session()
        session(picture(0))
        budget = session.budget
        assert budget is not None
        session.use(FixedIterations(4))
        assert session(picture(0)).iterations == 4
        assert len(budget.buffers) == 1, "it is still one stream"
        budget.limit = 2**20
        with pytest.raises(MemoryLimitError, match="does not fit"):
            session.use(FixedIterations(2))
        budget.limit = 2**33
        assert session(picture(0)).iterations == 4
