"""Several sinks at once: what one does never holds up another."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import SinkError
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import lane, open_sink
from mdeq_runtime.sinks.base import Sink
from mdeq_runtime.sinks.none import NullSink
from mdeq_runtime.sources import open_source
from mdeq_runtime.sources.base import Source

pytestmark = pytest.mark.clock


def session(frame: Frame) -> Result:
    mask = np.zeros(frame.image.shape[:2], np.uint8)
    return Result(mask, None, 2, 0.1, True, True, "", index=frame.index)


class Camera(Source):
    """A live source at 100 frames per second."""

    live, fps, size, description = True, 100.0, (24, 32), "test camera"

    def __init__(self) -> None:
        self.index = -1

    def read(self) -> Frame:
        time.sleep(0.01)
        self.index += 1
        return Frame(np.zeros((24, 32, 3), np.uint8), self.index, time.monotonic())

    def close(self) -> None:
        pass


class Recorder(Sink):
    """Remembers what it was given; takes its time, hangs or fails at a frame."""

    queue = 3

    def __init__(self, seconds: float = 0.0, hang_at: int = -1, fail_at: int = -1) -> None:
        self.seconds, self.hang_at, self.fail_at = seconds, hang_at, fail_at
        self.indices: list[int] = []
        self.closed = 0
        self.threads: set[str] = set()
        self.release = threading.Event()
        self.place = None

    def write(self, frame: Frame, result: Result) -> bool:
        self.threads.add(threading.current_thread().name)
        if 0 <= self.fail_at <= result.index:
            raise SinkError("cannot write this: the disk is full; free space")
        if 0 <= self.hang_at <= result.index:
            self.release.wait(30)
        time.sleep(self.seconds)
        self.indices.append(result.index)
        return True

    def close(self) -> None:
        self.closed += 1


def patient_recorder() -> Recorder:
    """One for which all results may wait: a busy machine may hold up its thread for a moment."""
    recorder = Recorder()
    recorder.queue = 100
    return recorder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 24))
    for _ in range(20):
        writer.write(np.zeros((24, 32, 3), np.uint8))
    writer.release()
    return path


def test_a_slow_sink_slows_neither_the_run_nor_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow, quick = Recorder(0.2), patient_recorder()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        summary = run(session, Camera(), [slow, quick], max_frames=60)
    assert time.monotonic() - started < 60 * 0.2 / 2
    assert len(quick.indices) == 60
    assert summary.stages["write"].p90 < 50
    assert 3 < len(slow.indices) < 30
    assert slow.indices == sorted(slow.indices)
    assert slow.indices[-1] == quick.indices[-1], "it is the newest results that it gets"
    assert f"{60 - len(slow.indices)} of 60 results were left out" in caplog.text
    assert caplog.text.count("does not keep up") == 1, "said once, not for every frame"


def test_a_file_waits_so_that_nothing_is_left_out(clip: Path) -> None:
    slow, quick = Recorder(0.02), Recorder()
    run(session, open_source(clip), [slow, quick])
    assert slow.indices == quick.indices == list(range(20))


def test_a_sink_has_a_thread_of_its_own_and_is_closed_in_it(clip: Path) -> None:
    first, second, direct = Recorder(), Recorder(), Recorder()
    direct.queue = 0
    run(session, open_source(clip), [first, second, direct])
    assert first.threads == second.threads == {"sink Recorder"}
    assert direct.threads == {threading.current_thread().name}
    assert [sink.closed for sink in (first, second, direct)] == [1, 1, 1]
    assert not [thread for thread in threading.enumerate() if thread.name == "sink Recorder"]


def test_a_sink_that_hangs_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "CLOSE_S", 0.5)
    hanging, quick = Recorder(hang_at=5), patient_recorder()
    started = time.monotonic()
    with pytest.raises(SinkError, match=r"Recorder has not finished for 0\.5 s; its disk"):
        run(session, Camera(), [hanging, quick], max_frames=50)
    assert time.monotonic() - started < 5
    assert len(quick.indices) == 50
    assert quick.closed == 1
    assert hanging.closed == 0, "nobody closes what another thread is writing to"
    hanging.release.set()


def test_a_pipe_that_nobody_reads_is_such_a_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "CLOSE_S", 0.5)
    pipe, lines = tmp_path / "pipe.jsonl", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    started = time.monotonic()
    with pytest.raises(SinkError, match=r"pipe\.jsonl has not finished for 0\.5 s"):
        run(session, Camera(), [open_sink(pipe), open_sink(lines)], max_frames=50)
    assert time.monotonic() - started < 5
    assert len(lines.read_text().splitlines()) == 50
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets its thread end


def test_sinks_that_hang_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "CLOSE_S", 1.0)
    hanging = [Recorder(hang_at=0) for _ in range(4)]
    ended: list[float] = []
    with pytest.raises(SinkError, match="has not finished for 1 s"):
        run(
            session, Camera(), hanging, max_frames=5,
            on_result=lambda result: ended.append(time.monotonic()),
        )  # fmt: skip
    assert time.monotonic() - ended[-1] < 1.9, "one after the other takes at least 2.5 s"
    for sink in hanging:
        sink.release.set()


def test_a_file_does_not_wait_for_ever(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "STALL_S", 0.5)
    hanging, other = Recorder(hang_at=5), Recorder()
    with pytest.raises(SinkError, match=r"has taken no result for 0\.5 s"):
        run(session, open_source(clip), [hanging, other])
    hanging.release.set()
    assert other.closed == 1


def test_a_sink_that_fails_is_finished_at_once_and_a_camera_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing, quick = Recorder(fail_at=5), patient_recorder()
    seen: list[int] = []

    def on_result(result: Result) -> None:
        seen.append(result.index)
        if len(seen) == 30:
            assert failing.closed == 1
            assert "the disk is full; free space. The other outputs go on" in caplog.text

    with caplog.at_level(logging.WARNING), pytest.raises(SinkError, match="the disk is full"):
        run(session, Camera(), [failing, quick], max_frames=60, on_result=on_result)
    assert len(quick.indices) == len(seen) == 60
    assert failing.indices == list(range(5))


@pytest.mark.parametrize("live", [True, False])
def test_a_run_ends_when_nothing_is_left_to_run_for(clip: Path, live: bool) -> None:
    failing, source = Recorder(fail_at=5), Camera() if live else open_source(clip)
    others = [NullSink()] if live else [Recorder()]
    with pytest.raises(SinkError, match="the disk is full"):
        run(session, source, [failing, *others])
    assert failing.closed == 1


def test_what_a_sink_waits_with_is_let_go() -> None:
    """A bounded queue: a hung sink costs as many frames as it says, however long it hangs."""
    import gc
    import weakref

    alive: list[weakref.ref[Frame]] = []
    hanging = Recorder(hang_at=0)
    outlet = lane.Lane(hanging, wait=False)
    for index in range(50):
        frame = Frame(np.zeros((24, 32, 3), np.uint8), index, 0.0)
        alive.append(weakref.ref(frame))
        outlet.write(frame, session(frame))
    del frame
    gc.collect()
    held = [reference for reference in alive if reference() is not None]
    assert len(held) <= hanging.queue + 1
    assert outlet.dropped >= 50 - hanging.queue - 1
    hanging.release.set()
    outlet.close()


HOLDS = """
import sys
import cv2
import numpy as np
from mdeq_runtime.memory import peak_resident_bytes
from mdeq_runtime.overlay import draw
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.lane import Lane

height, width = 720, 1280
small = np.random.default_rng(0).integers(0, 256, (27, 48, 3), np.uint8)
wide = cv2.resize(small, (width, height))
mask = np.zeros((height, width), np.uint8)
draw(small, Result(mask[:27, :48], None, 1, 0.1, True, True, ""), ("a",))
before = peak_resident_bytes()
sink = open_sink(sys.argv[1], fps=25.0, labels=("a",))
lane = Lane(sink, wait=True)
for index in range(60):
    answer = Result(mask.copy(), None, 1, 0.1, True, True, "", index=index)
    lane.write(Frame(np.roll(wide, 8 * index, axis=1), index, index / 25), answer)
lane.close()
print(peak_resident_bytes() - before, sink.holding((height, width)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out.jsonl", "masks/", "%d.jpg"])
def test_a_memory_limit_is_told_what_waits_for_a_sink(tmp_path: Path, name: str) -> None:
    """Beside the frame and the mask that the run itself holds, which are counted elsewhere."""
    command = [sys.executable, "-c", HOLDS, f"{tmp_path}/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, said = (int(part) for part in done.stdout.split())
    own = 2 * (3 + 1) * 720 * 1280  # and the next ones, while they are made
    code = 3_000_000  # which the kernel maps in larger or smaller pieces
    assert measured <= said + own + code
    assert measured >= 0.5 * said, "nor is far too much refused"
