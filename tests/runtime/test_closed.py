"""Models and sessions that are closed, and states of another model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from failing import NEVER, POLICIES, Failing, by_policy, on, states
from streams import CALM, blobs

from edge_mdeq.errors import SessionError
from mdeq_runtime import Model, Result, UntilTolerance
from mdeq_runtime.policies import Policy


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


@by_policy
def test_a_session_of_a_closed_model_says_so_and_can_be_closed(
    segmenter_bundle: Path, policy: Policy
) -> None:
    opened = Model(segmenter_bundle, replace(CALM, policy=policy), threads=1)
    session, fresh = opened.session(), opened.session()
    session(blobs(0))
    opened.close()
    for one in (session, fresh, session):
        with pytest.raises(SessionError, match="model is closed"):
            one(blobs(0))
    with pytest.raises(SessionError, match="model is closed"):
        opened.session()
    session.close()
    with pytest.raises(SessionError, match="session is closed"):
        session(blobs(0))


@pytest.mark.parametrize("method", ["inject", "advance", "readout"])
def test_a_model_closed_in_the_middle_of_a_frame(segmenter_bundle: Path, method: str) -> None:
    class Closing(Failing):
        def __getattr__(self, name: str) -> Any:
            found = getattr(self.real, name)
            if name == method and self.left:
                self.left = 0
                self.real.close()
            return found

    opened = Model(segmenter_bundle, CALM, threads=1)
    backend = Closing(opened.backend)
    session = on(backend, opened, POLICIES[1])
    session(blobs(0))
    backend.left = 1
    for _ in range(2):
        with pytest.raises(SessionError, match="model is closed"):
            session(blobs(1))


def test_everything_of_a_closed_session_says_so(model: Model) -> None:
    session = model.session()
    session(blobs(0))
    session.close()
    session.close()
    for use in (lambda: session(blobs(0)), session.reset):
        with pytest.raises(SessionError, match="session is closed; open a new one"):
            use()


def test_a_session_closed_by_another_thread_ends_its_frame_first(model: Model) -> None:
    """The call that is under way is answered, the next one is told."""
    started = threading.Event()

    class Telling(Failing):
        def __getattr__(self, name: str) -> Any:
            if name == "advance":
                started.set()
            return getattr(self.real, name)

    session = on(Telling(model.backend), model, UntilTolerance(NEVER, max_iterations=20))
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(session(blobs(0))))
    thread.start()
    assert started.wait(10)
    session.close()
    thread.join(30)
    assert [result.iterations for result in results] == [20]
    with pytest.raises(SessionError, match="closed"):
        session(blobs(0))


def test_a_stream_that_was_closed_gives_nothing_more(model: Model) -> None:
    stream = model.stream([blobs(0), blobs(1), blobs(2)])
    assert next(stream).index == 0
    stream.close()  # type: ignore[attr-defined]
    assert list(stream) == []


# States of another model


@pytest.mark.parametrize("whose", ["same bundle", "other bundle", "closed"])
def test_only_a_backends_own_states_are_taken(
    model: Model, segmenter_bundle: Path, classifier_bundle: Path, whose: str
) -> None:
    """One of the same bundle opened again, too: it is bound to that one's graphs."""
    other = Model(classifier_bundle if whose == "other bundle" else segmenter_bundle, CALM)
    theirs = other.session()
    theirs(blobs(5, other.manifest.input.size))
    if whose == "closed":
        other.close()
    state = theirs.state
    before = state.image.tobytes(), states(theirs)
    profile = model.bundle.profile("ort-cpu")
    parts, rung = profile.parts[0], profile.rungs[0]
    image = blobs(0)[..., ::-1]
    backend: Any = model.backend
    calls: list[Callable[[], Any]] = [
        lambda: backend.run(rung, image, state),
        lambda: backend.inject(parts, image, state),
        lambda: backend.advance(parts.advance[0], state),
        lambda: backend.readout(parts, state),
    ]
    for call in calls:
        with pytest.raises(SessionError, match=r"no state of this model; make one with new_state"):
            call()
    assert (state.image.tobytes(), states(theirs)) == before
    other.close()


@by_policy
def test_a_session_that_was_given_another_models_state_says_so(
    model: Model, segmenter_bundle: Path, policy: Policy
) -> None:
    with Model(segmenter_bundle, CALM) as other:
        session = on(model.backend, model, policy)
        session(blobs(0))
        own = session.state
        for state in (other.session().state, None, object()):
            session.state = state
            with pytest.raises(SessionError, match=r"no state of this model|could not be answered"):
                session(blobs(1))
        session.state = own
        assert session(blobs(1)).cold == "failed"
