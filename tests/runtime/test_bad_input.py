"""What a session is given that it cannot use, and backends that fail in the middle of a frame."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import NEVER, POLICIES, Failing, assert_equal, by_policy, on, states
from streams import CALM, SIZE, Picture, blobs

from edge_mdeq.errors import EdgeMdeqError, FrameError, SessionError
from mdeq_runtime import Frame, Model, Result, SessionSettings, UntilDeadline, UntilTolerance
from mdeq_runtime.policies import Policy


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


# A backend that fails in the middle of a frame

CALLS = [
    (POLICIES[0], "run", 1),
    (POLICIES[1], "inject", 1),
    (POLICIES[1], "advance", 1),
    (POLICIES[1], "advance", 3),
    (POLICIES[1], "readout", 1),
    (POLICIES[2], "advance", 2),
]


@pytest.mark.parametrize("after", [False, True], ids=["before its work", "after it"])
@pytest.mark.parametrize(("policy", "method", "call"), CALLS)
def test_after_a_failure_the_next_frame_is_cold_and_right(
    model: Model, policy: Policy, method: str, call: int, after: bool
) -> None:
    backend = Failing(model.backend)
    session = on(backend, model, policy)
    for seed in (0, 1):
        session(blobs(seed))
    backend.arm(method, call, RuntimeError("the device is gone"), after)
    with pytest.raises(SessionError, match=r"frame 7 .*RuntimeError: the device is gone; the next"):
        session(Frame(blobs(2), 7, 0.0))
    found = session(blobs(3))
    assert (found.cold, found.reason) == ("failed", "reset: frame 7 could not be answered")
    fresh = on(model.backend, model, policy)
    assert_equal(found, fresh(blobs(3)))
    assert_equal(session(blobs(4)), fresh(blobs(4)))
    assert states(session) == states(fresh)


@pytest.mark.parametrize("method", ["inject", "advance", "readout"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError("no room"), SessionError),
        (SessionError("its own words"), SessionError),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt),
    ],
)
def test_whatever_is_raised_the_state_is_not_served(
    model: Model, method: str, error: BaseException, raised: type[BaseException]
) -> None:
    backend = Failing(model.backend)
    session = on(backend, model, POLICIES[1])
    session(blobs(0))
    backend.arm(method, 1, error, after=True)
    with pytest.raises(raised, match=str(error)):
        session(blobs(1))
    assert session(blobs(2)).cold == "failed"


def test_a_failure_while_a_given_up_start_is_done_again(model: Model) -> None:
    """Its state is already at zero then, and neither the last frame's nor this one's."""
    backend = Failing(model.backend)
    session = on(backend, model, POLICIES[0], restart_above=1e-6)
    session(blobs(0))
    backend.arm("run", 2, RuntimeError("gone"), after=True)  # the first one is the warm start
    with pytest.raises(SessionError, match="gone"):
        session(blobs(1))
    found = session(blobs(2))
    assert (found.cold, found.iterations) == ("failed", 4)


@by_policy
def test_a_backend_that_fails_for_several_frames_or_at_the_first(
    model: Model, policy: Policy
) -> None:
    backend = Failing(model.backend)
    session = on(backend, model, policy)
    method = "run" if policy is POLICIES[0] else "advance"
    for index in range(3):
        backend.arm(method, 1, RuntimeError("gone"), after=index == 1)
        with pytest.raises(SessionError):
            session(Frame(blobs(0), index, 0.0))
    found = session(blobs(0))
    assert found.reason == "reset: frame 2 could not be answered"
    assert_equal(found, on(model.backend, model, policy)(blobs(0)))


def test_other_sessions_of_the_model_notice_nothing(model: Model) -> None:
    backend = Failing(model.backend)
    one, other = (on(backend, model, POLICIES[1]) for _ in range(2))
    one(blobs(0))
    other(blobs(0))
    backend.arm("advance", 2, RuntimeError("gone"), after=False)
    with pytest.raises(SessionError):
        one(blobs(1))
    found = other(blobs(1))
    assert found.warm
    alone = on(model.backend, model, POLICIES[1])
    alone(blobs(0))
    assert_equal(found, alone(blobs(1)))


def test_a_frame_that_opencv_cannot_resize_leaves_the_state_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session()
    session(blobs(0, (48, 80)))
    with monkeypatch.context() as patch:
        patch.setattr("edge_mdeq.fitting.resize", lambda *_: np.zeros(-1))
        with pytest.raises(SessionError, match="could not be answered: ValueError"):
            session(blobs(1, (48, 80)))
    assert session(blobs(1, (48, 80))).warm


# Frames of another type or layout

WRONG: list[Any] = [
    None,
    b"jpeg",
    [[[0, 0, 0]]],
    np.zeros(SIZE, np.uint8),
    np.zeros((*SIZE, 1), np.uint8),
    np.zeros((*SIZE, 4), np.uint8),
    np.zeros((3, *SIZE), np.uint8),
    np.zeros((1, *SIZE, 3), np.uint8),
    np.zeros((*SIZE, 3), np.int8),
    np.zeros((*SIZE, 3), np.uint16),
    np.zeros((*SIZE, 3), np.float32),
    np.full((*SIZE, 3), np.nan),
    np.full((*SIZE, 3), np.nan, np.float16),
    np.zeros((*SIZE, 3), bool),
    np.zeros((*SIZE, 3), object),
    np.zeros((0, 0, 3), np.uint8),
    np.zeros((64, 0, 3), np.uint8),
    np.uint8(3),
    np.zeros((), np.uint8),
]


@by_policy
def test_a_frame_that_is_none_leaves_the_stream_as_it_was(model: Model, policy: Policy) -> None:
    session, untouched = (on(model.backend, model, policy) for _ in range(2))
    session(blobs(0))
    untouched(blobs(0))
    for wrong in WRONG:
        for frame in (wrong, Frame(wrong, 3, 0.0)):
            with pytest.raises(FrameError, match=r"frame [03] (is|has)"):
                session(frame)
    assert_equal(session(blobs(1)), untouched(blobs(1)))


def layouts(image: Picture) -> Iterator[Picture]:
    """The same pixels, otherwise in memory."""
    frozen = image.copy()
    frozen.flags.writeable = False
    yield frozen
    yield np.asfortranarray(image)
    yield image[::-1, ::-1].copy()[::-1, ::-1]
    yield np.repeat(image, 2, axis=1)[:, ::2]
    yield np.pad(image, ((3, 1), (2, 5), (0, 1)))[3:-1, 2:-5, :3]  # a view into a larger BGRA one
    yield np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    yield np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [SIZE, (50, 61)], ids=["the model's size", "another size"])
def test_a_frame_may_lie_in_memory_as_it_likes(model: Model, size: tuple[int, int]) -> None:
    plain = model.session(replace(CALM, carry=False))
    expected = plain(blobs(3, size))
    for image in layouts(blobs(3, size)):
        before = image.tobytes()
        assert_equal(plain(image), expected)
        assert image.tobytes() == before


# Several threads


@by_policy
def test_calls_from_several_threads_are_one_stream(model: Model, policy: Policy) -> None:
    """In the order in which they were taken, each is answered as in one thread."""

    class Listening(Failing):
        """Notes the order of the images."""

        def __getattr__(self, name: str) -> Any:
            found = getattr(self.real, name)
            if name not in ("run", "inject"):
                return found

            def called(what: Any, image: Picture, state: Any) -> Any:
                order.append(image[..., ::-1].tobytes())
                return found(what, image, state)

            return called

    order: list[bytes] = []
    found: dict[bytes, Result] = {}
    session = on(Listening(model.backend), model, policy)
    if policy is POLICIES[0]:  # one run a frame, else an image is noted twice
        session.solver.cold_plan = session.solver.warm_plan  # type: ignore[attr-defined]

    def work(seeds: range) -> None:
        for seed in seeds:
            found[blobs(seed).tobytes()] = session(blobs(seed))

    threads = [threading.Thread(target=work, args=(range(k, k + 8),)) for k in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(order) == len(found) == 24
    alone = on(model.backend, model, policy)
    if policy is POLICIES[0]:
        alone.solver.cold_plan = alone.solver.warm_plan  # type: ignore[attr-defined]
    for pixels in order:
        image = np.frombuffer(pixels, np.uint8).reshape(*SIZE, 3)
        assert_equal(found[pixels], alone(image))


def test_resets_and_bad_frames_of_other_threads_do_no_harm(model: Model) -> None:
    session = model.session(replace(CALM, policy=POLICIES[1]))
    stop, errors = threading.Event(), []

    def disturb() -> None:
        while not stop.is_set():
            session.reset("from another thread")
            try:
                session(WRONG[3])
            except EdgeMdeqError as error:
                errors.append(error)

    cold = model.session(replace(CALM, policy=POLICIES[1], carry=False))
    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for seed in range(20):
            found, expected = session(blobs(seed)), cold(blobs(seed))
            assert found.warm or found.residual == expected.residual
    finally:
        stop.set()
        thread.join(30)
    assert errors
    assert {type(error) for error in errors} == {FrameError}


# A deadline that is shorter than one evaluation


def test_each_frame_has_one_evaluation_and_it_is_said_once(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    session = model.session(SessionSettings(UntilDeadline(1e-3), reset_on_cut=False))
    with caplog.at_level(logging.WARNING, "mdeq_runtime"):
        results = [session(blobs(1)) for _ in range(12)]
    assert {result.iterations for result in results} == {1}
    assert [result.warm for result in results] == [False] + [True] * 11
    assert results[-1].residual < results[0].residual, "the stream converges all the same"
    (record,) = caplog.records
    assert "the deadline of 0.001 ms is shorter than a frame with 1 evaluation" in record.message


def test_nothing_is_said_of_a_deadline_that_is_kept(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [
        SessionSettings(UntilDeadline(6e4, tol=NEVER, max_iterations=1)),  # its own wish
        SessionSettings(UntilDeadline(6e4, tol=0.5)),
        SessionSettings(UntilTolerance(0.5)),
    ]
    for chosen in settings:
        session = model.session(chosen)
        for _ in range(8):
            session(blobs(1))
    assert not caplog.records
