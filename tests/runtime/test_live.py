"""Failure as a state: reconnecting, silence, stuck drivers, and pictures that only seem to be."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edge_mdeq.errors import SourceError
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.slot import SlotPolicy, capture
from mdeq_runtime.sources.backoff import Backoff, Pauses
from mdeq_runtime.sources.connection import Connection
from mdeq_runtime.sources.device import Device, RefusedError
from mdeq_runtime.sources.live import MAX_STUCK, Live, Patience
from mdeq_runtime.sources.pictures import PictureWatch
from mdeq_runtime.sources.status import Picture, State

pytestmark = pytest.mark.clock

QUICK = Patience(open_s=0.5, silent_s=0.3, backoff=Backoff(0.02, 1.5, 0.05, 0.1, 0.2))


class FakeCamera:
    """A device of scripted deeds: each connection plays the next list of them.

    A number is a picture of that grey level; "end", "fail" and "block" are what may follow, and
    "jam" fails also when it is let go of.
    """

    fps, size = 50.0, (4, 6)

    def __init__(self, deeds: list[Any], unblock: threading.Event) -> None:
        self.deeds, self.unblock = iter(deeds), unblock
        self.busy = self.released = self.released_while_reading = self.jammed = False
        self.pictures: list[weakref.ref[Any]] = []

    def read(self) -> Any:
        self.busy = True
        try:
            deed = next(self.deeds, "block")
            if deed == "end":
                return None
            if deed in ("fail", "jam"):
                self.jammed = deed == "jam"
                raise SourceError("the cable is out")
            if deed == "block":
                self.unblock.wait(20)
                return None
            if deed == "odd":
                raise ValueError("a driver's whim")
            if deed == "empty":
                return np.zeros((0, 0, 3), np.uint8)
            time.sleep(0.002)
            picture = np.full((4, 6, 3), deed, np.uint8)
            self.pictures.append(weakref.ref(picture))
            return picture
        finally:
            self.busy = False

    def release(self) -> None:
        self.released = True
        self.released_while_reading |= self.busy
        if self.jammed:
            raise ValueError("a driver's whim")


class Rig:
    """Opens fake cameras, one script after the other; an exception stands for no camera."""

    def __init__(self, *scripts: Any) -> None:
        self.scripts = list(scripts)
        self.cameras: list[FakeCamera] = []
        self.unblock = threading.Event()
        self.attempts = 0

    def __call__(self, cancelled: threading.Event) -> Device:
        self.attempts += 1
        script = self.scripts.pop(0) if self.scripts else ["block"]
        if isinstance(script, Exception):
            raise script
        if script == "hang":
            self.unblock.wait(20)
            raise SourceError("too late")
        self.cameras.append(FakeCamera(script, self.unblock))
        return self.cameras[-1]


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*scripts: Any) -> Rig:
        made.append(Rig(*scripts))
        return made[-1]

    yield make
    for rig in made:
        rig.unblock.set()


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def states(source: Live) -> list[State]:
    return [status.state for status in source.past]


@pytest.mark.parametrize(
    ("end", "state", "detail"),
    [
        ("end", State.EOS, "has ended"),
        ("fail", State.ERROR, "the cable is out"),
        ("jam", State.ERROR, "the cable is out"),
        ("odd", State.ERROR, "ValueError: a driver's whim"),
        ("empty", State.ERROR, "pictures without pixels"),
        ("block", State.TIMEOUT, r"delivered no frame for 0\.3 s"),
    ],
)
def test_whatever_ends_a_connection_is_a_state_and_the_next_one_follows(
    rigs: Callable[..., Rig], caplog: pytest.LogCaptureFixture, end: str, state: State, detail: str
) -> None:
    rig = rigs([10, 20, end], [30])
    with Live(rig, "front camera", patience=QUICK) as source:
        wait_for(lambda: states(source)[-1] is State.OK and len(rig.cameras) == 2)
        frame = source.read()
    assert frame is not None
    assert frame.image[0, 0, 0] == 30
    assert frame.epoch == 1
    expected = [State.RECONNECTING, State.OK, state, State.RECONNECTING, State.OK]
    assert states(source) == expected
    assert source.status.reconnects == 1
    assert source.status.detail == ""
    first, last = (record.getMessage() for record in caplog.records)
    assert re.search(detail, source.past[2].detail)
    assert "trying again until it is back" in first
    assert "front camera is back after" in last


@pytest.mark.parametrize("end", ["end", "fail", "jam", "odd", "empty"])
def test_a_lost_connection_leaves_nothing_to_the_garbage_collector(
    rigs: Callable[..., Rig], end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which comes by every few hours: until then each loss would hold its last picture."""
    made: list[weakref.ref[Connection]] = []

    class Noted(Connection):
        def __init__(self, *args: Any) -> None:
            made.append(weakref.ref(self))
            super().__init__(*args)

    monkeypatch.setattr("mdeq_runtime.sources.live.Connection", Noted)
    rig = rigs([10, 20, end], SourceError("nobody there"), [30])
    gc.collect()
    gc.disable()
    try:
        with Live(rig, "gate", patience=QUICK) as source:
            wait_for(lambda: source.status.reconnects == 1)
            assert source.read() is not None
            first = rig.cameras[0]
            assert len(first.pictures) == 2
            wait_for(lambda: all(picture() is None for picture in first.pictures))
            wait_for(lambda: [each() is None for each in made[:2]] == [True, True])
    finally:
        gc.enable()


def test_attempts_that_fail_alike_are_told_once_and_counted(
    rigs: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    rig = rigs([10, "end"], *[SourceError("nobody there")] * 6, [20])
    with caplog.at_level(logging.WARNING), Live(rig, "gate", patience=QUICK) as source:
        wait_for(lambda: source.status.reconnects == 1)
        assert states(source).count(State.ERROR) == 6
    assert [record.getMessage()[:8] for record in caplog.records] == [
        "gate has",
        "nobody t",
        "gate is ",
    ]


def test_the_first_attempt_raises_unless_the_camera_is_waited_for(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(SourceError("nobody there"))
    with pytest.raises(SourceError, match="nobody there"):
        Live(rig, "gate", patience=QUICK)
    time.sleep(0.2)
    assert rig.attempts == 1
    rig = rigs(SourceError("nobody there"), SourceError("nobody there"), [10])
    with Live(rig, "gate", wait=True, patience=QUICK) as source:
        frame = source.read()
        assert frame is not None
        assert rig.attempts == 3


def test_an_opening_that_hangs_is_given_up(rigs: Callable[..., Rig]) -> None:
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"gate did not answer within 0\.5 s"):
        Live(rigs("hang"), "gate", patience=QUICK)
    assert time.monotonic() - started < 1.5


def test_a_driver_that_holds_on_to_its_threads_gets_only_a_few(rigs: Callable[..., Rig]) -> None:
    rig = rigs([10, "block"], *["hang"] * 20)
    patience = Patience(0.3, 0.05, Backoff(0.01, 1.0, 0.01))
    with Live(rig, "gate", patience=patience) as source:
        wait_for(lambda: rig.attempts == MAX_STUCK)
        time.sleep(0.3)
        assert rig.attempts == MAX_STUCK
        rig.scripts.clear()
        rig.scripts.append([20])
        rig.unblock.set()
        wait_for(lambda: source.status.reconnects == 1)


def test_a_picture_that_comes_after_its_connection_was_given_up_is_not_taken(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(["block", 99], [20])
    with Live(rig, "gate", patience=QUICK) as source:
        frame = source.read()
        assert frame is not None
        assert frame.image[0, 0, 0] == 20
        rig.unblock.set()
        wait_for(lambda: rig.cameras[0].released)
        assert not rig.cameras[0].released_while_reading
        assert frame.epoch == 1


def test_shutdown_within_a_second_while_the_driver_blocks(rigs: Callable[..., Rig]) -> None:
    rig = rigs([10, "block"])
    source = Live(rig, "gate")
    stop, stopped = threading.Event(), []

    def end() -> None:
        stopped.append(time.monotonic())
        stop.set()

    threading.Timer(0.3, end).start()
    summary = run(answer, source, [], stop=stop)
    assert time.monotonic() - stopped[0] < 1.0
    assert summary.frames == 1
    assert not rig.cameras[0].released
    started = time.monotonic()
    source.close()  # a second time
    assert time.monotonic() - started < 1.0
    rig.unblock.set()
    wait_for(lambda: rig.cameras[0].released)
    assert not rig.cameras[0].released_while_reading
    assert source.read() is None


def answer(frame: Frame) -> Result:
    return Result(np.zeros((4, 6), np.uint8), None, 1, 0.1, True, True, "", index=frame.index)


def test_a_run_goes_on_through_an_outage_and_knows_the_age_of_its_answers(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs([10, 20, "end"], SourceError("away"), [*range(100)])
    results: list[Result] = []
    source = Live(rig, "gate", patience=QUICK)
    summary = run(answer, source, [], on_result=results.append, max_frames=10)
    assert summary.frames == 10
    assert all(r.age_ms is not None and 0 <= r.age_ms < 500 for r in results)
    assert summary.age is not None
    assert summary.age.count == 10
    assert summary.source is not None
    assert summary.source.reconnects == 1


def test_a_policy_that_waits_drops_nothing_and_is_no_silence(rigs: Callable[..., Rig]) -> None:
    rig = rigs([*range(10)])
    source = Live(rig, "gate", patience=QUICK)
    levels: list[int] = []
    with source, capture(source, policy=SlotPolicy.WAIT) as frames:
        while not levels or levels[-1] < 7:
            got = frames.read()
            assert got is not None
            levels.append(int(got.image[0, 0, 0]))
            time.sleep(0.35)  # longer than silence is borne
        assert frames.dropped == 0
        assert states(source) == [State.RECONNECTING, State.OK]
    assert levels == list(range(levels[0], 8))  # before somebody asked, the newest one stayed


# Pauses


def test_pauses_grow_to_a_cap_and_chance_only_shortens_them() -> None:
    longest = Pauses(Backoff(), chance=lambda: 0.0)
    shortest = Pauses(Backoff(), chance=lambda: 1.0)
    firsts, lasts = [longest.next() for _ in range(30)], [shortest.next() for _ in range(30)]
    assert firsts == sorted(firsts)
    assert firsts[-1] == Backoff().cap_s < 2.0 - 0.7  # what is left to connect within 2 s
    assert all(0.5 * a < b < a for a, b in zip(firsts, lasts, strict=True))
    longest.reset()
    assert longest.next() == Backoff().first_s


def test_who_is_refused_comes_back_rarely(rigs: Callable[..., Rig]) -> None:
    pauses = Pauses(Backoff(), chance=lambda: 0.0)
    assert [pauses.next(refused=True) for _ in range(3)] == [5.0, 10.0, 20.0]
    assert max(pauses.next(refused=True) for _ in range(20)) == 120.0
    patience = Patience(0.5, 0.3, Backoff(0.01, 1.0, 0.01, refused_first_s=30.0))
    rig = rigs([10, "end"], RefusedError("wrong password"), [20])
    with Live(rig, "gate", patience=patience) as source:
        wait_for(lambda: source.status.state is State.ERROR)
        time.sleep(0.2)
        assert rig.attempts == 2


# Pictures


def noisy(seed: int) -> Any:
    return np.random.default_rng(seed).integers(60, 200, (48, 64, 3), dtype=np.uint8)


def test_frozen_pictures_are_noticed_after_a_while_and_their_end_at_once() -> None:
    watch = PictureWatch(patience_s=3.0)
    found = [watch(noisy(i), 0.1 * i) for i in range(50)]
    assert set(found) == {Picture.OK}
    frozen = [watch(noisy(7), 5 + 0.1 * i) for i in range(50)]
    assert frozen[:30] == [Picture.OK] * 30
    assert frozen[35:] == [Picture.FROZEN] * 15
    assert watch(noisy(8), 10.0) is Picture.OK


def test_one_byte_outside_the_sample_is_enough_to_be_alive() -> None:
    watch, image = PictureWatch(patience_s=1.0), noisy(1)
    for i in range(40):
        image[0, 0, 0] = i
        assert watch(image, 0.1 * i) is Picture.OK


def test_black_pictures_are_noticed_and_dark_ones_are_not() -> None:
    watch = PictureWatch(patience_s=1.0)
    noise = np.random.default_rng(0)
    for level, expected in ((18, Picture.BLACK), (40, Picture.OK)):
        watch.forget()
        for i in range(20):
            image = noise.integers(0, level, (48, 64, 3), dtype=np.uint8)
            image[8, 8] = level
            found = watch(image, 0.1 * i)
        assert found is expected


def test_a_frozen_camera_shows_in_its_status(
    rigs: Callable[..., Rig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdeq_runtime.sources.pictures.STEP", 2)
    source = Live(rigs([*range(60, 70), *[90] * 40, *range(60, 70)]), "gate", patience=QUICK)
    source._pictures.patience_s = 0.05
    with source:
        wait_for(lambda: source.past[-1].picture is Picture.OK and len(source.past) >= 4)
    assert Picture.FROZEN in [status.picture for status in source.past]
    assert "the same picture again and again" in caplog.text
    assert "good pictures again" in caplog.text
