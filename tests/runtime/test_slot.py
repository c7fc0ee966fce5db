from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from edge_mdeq.errors import SourceError
from mdeq_runtime.results import Frame
from mdeq_runtime.slot import FrameSlot, SlotPolicy, capture
from mdeq_runtime.sources.base import Source

pytestmark = pytest.mark.clock

IMAGE = np.zeros((4, 4, 3), np.uint8)


def frame(index: int) -> Frame:
    return Frame(IMAGE, index, 0.0)


class Scripted(Source):
    """Delivers ``count`` frames at once, then ends, fails or blocks."""

    fps = None
    size = (4, 4)
    description = "scripted camera"

    def __init__(self, count: int, end: str = "none", live: bool = True) -> None:
        self.live = live
        self.count = count
        self.end = end
        self.index = 0
        self.exhausted = threading.Event()
        self.unblock = threading.Event()

    def read(self) -> Frame | None:
        if self.index < self.count:
            self.index += 1
            return frame(self.index - 1)
        self.exhausted.set()
        if self.end == "error":
            raise SourceError("the cable is out")
        if self.end == "block":
            self.unblock.wait(30)
        return None

    def close(self) -> None:
        self.unblock.set()


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    slot = FrameSlot()
    for index in range(5):
        slot.put(frame(index))
    got = slot.get()
    assert got is not None
    assert got.index == 4
    assert slot.dropped == 4
    with pytest.raises(TimeoutError):
        slot.get(timeout=0.01)


def test_the_oldest_may_win_instead() -> None:
    slot = FrameSlot(SlotPolicy.DROP_LATEST)
    for index in range(5):
        slot.put(frame(index))
    got = slot.get()
    assert got is not None
    assert (got.index, slot.dropped) == (0, 4)


def test_a_producer_may_be_made_to_wait_until_the_slot_is_closed() -> None:
    slot, put = FrameSlot(SlotPolicy.WAIT), []

    def produce() -> None:
        for index in range(3):
            slot.put(frame(index))
            put.append(index)

    producer = threading.Thread(target=produce)
    producer.start()
    deadline = time.monotonic() + 10
    while not put and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert put == [0]
    got = [slot.get(timeout=5), slot.get(timeout=5)]
    assert [each.index for each in got if each is not None] == [0, 1]
    time.sleep(0.05)
    # the third is in the slot now, and a fourth has to wait
    blocked = threading.Thread(target=slot.put, args=(frame(3),))
    blocked.start()
    slot.close()
    blocked.join(5)
    producer.join(5)
    assert not blocked.is_alive()
    assert slot.dropped == 0


def test_closing_wakes_a_waiting_reader() -> None:
    slot = FrameSlot()
    threading.Timer(0.05, slot.close).start()
    assert slot.get(timeout=5) is None
    slot.put(frame(0))
    assert slot.get(timeout=0) is None


def test_the_last_frame_comes_before_the_error() -> None:
    slot = FrameSlot()
    slot.put(frame(0))
    slot.close(SourceError("gone"))
    slot.close()
    assert slot.get() is not None
    with pytest.raises(SourceError, match="gone"):
        slot.get()


def test_a_live_source_drops_what_nobody_took() -> None:
    source = Scripted(100, "block")
    with capture(source) as frames:
        assert source.exhausted.wait(5)
        got = frames.read()
        assert got is not None
        assert got.index == 99
        assert frames.dropped == 99
    source.close()


def test_a_file_loses_nothing_and_is_read_in_the_callers_thread() -> None:
    source = Scripted(50, live=False)
    before = threading.active_count()
    with capture(source) as frames:
        indices = []
        for got in frames:
            indices.append(got.index)
            assert threading.active_count() == before
            assert source.index == len(indices)
        assert frames.dropped == 0
    assert indices == list(range(50))


def test_the_capture_threads_error_reaches_the_consumer() -> None:
    with capture(Scripted(0, "error")) as frames, pytest.raises(SourceError, match="cable"):
        frames.read()


def test_leaving_does_not_wait_for_a_blocked_producer() -> None:
    source = Scripted(1, "block")
    with capture(source) as frames:
        assert frames.read() is not None
        assert source.exhausted.wait(5)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0
    source.close()


def test_stop_ends_a_wait_within_a_second() -> None:
    source = Scripted(0, "block")
    stop = threading.Event()
    with capture(source) as frames:
        threading.Timer(0.05, stop.set).start()
        started = time.monotonic()
        assert frames.read(stop) is None
        assert time.monotonic() - started < 1.0
    source.close()


def test_a_live_source_that_goes_silent_is_an_error() -> None:
    source = Scripted(0, "block")
    with (
        capture(source, stall_s=0.2) as frames,
        pytest.raises(SourceError, match=r"scripted camera delivered no frame for 0\.2 s"),
    ):
        frames.read()
    source.close()
