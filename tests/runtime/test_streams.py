"""Several streams of one model: whose turn it is, what they share, and what one's failure does."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from streams import CALM, SIZE, Picture, blobs

from edge_mdeq.errors import ConfigError, FrameError, SessionError, SourceError
from mdeq_runtime import Frame, Model, Result
from mdeq_runtime.memory import resident_bytes
from mdeq_runtime.sources.base import Source
from mdeq_runtime.streams import Turn, answer_streams, round_robin

pytestmark = pytest.mark.clock

SAMPLE = Path(__file__).parents[2] / "samples" / "bundles" / "camvid-nano.mdeq"
GREY = np.zeros(SIZE, np.uint8)


@pytest.fixture(scope="module")
def model(segmenter_bundle: Path) -> Iterator[Model]:
    with Model(segmenter_bundle, CALM, threads=1) as opened:
        yield opened


class Clip(Source):
    """A file: its frames, and then its end or an error."""

    live = False
    fps = None
    size = SIZE

    def __init__(self, images: Sequence[Any], error: Exception | None = None, name: str = "clip"):
        self.images, self.error, self.description = images, error, name
        self.index = 0

    def read(self) -> Frame | None:
        if self.index < len(self.images):
            self.index += 1
            return Frame(self.images[self.index - 1], self.index - 1, 0.0)
        if self.error is not None:
            raise self.error
        return None

    def close(self) -> None:
        self.images = []


class Camera(Source):
    """A live source that delivers what the test hands it, and knows when that has been taken in."""

    live = True
    fps = None
    size = SIZE

    def __init__(self, description: str) -> None:
        self.description = description
        self.given: queue.Queue[Frame | Exception | None] = queue.Queue()
        self.asked = threading.Semaphore(0)
        self.index = 0

    def deliver(self, what: Exception | None = None) -> None:
        """Another frame, or an error; returns when the capture thread has put it into its slot."""
        self.given.put(what or Frame(blobs(self.index), self.index, time.monotonic()))
        self.index += 1
        if what is None:
            assert self.asked.acquire(timeout=10)

    def read(self) -> Frame | None:
        if self.index:
            self.asked.release()
        found = self.given.get(timeout=30)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        self.given.put(None)


class Endless(Source):
    """A camera that always has a new frame."""

    live = True
    fps = None
    size = SIZE

    def __init__(self, pause_s: float = 0.0005) -> None:
        self.description = f"a camera with a frame every {1e3 * pause_s:g} ms"
        self.pause_s = pause_s
        self.index = 0
        self.closed = False

    def read(self) -> Frame | None:
        time.sleep(self.pause_s)
        self.index += 1
        return None if self.closed else Frame(blobs(0), self.index - 1, time.monotonic())

    def close(self) -> None:
        self.closed = True


def answered(frame: Frame, pause_s: float = 0.0) -> Result:
    time.sleep(pause_s)
    return Result(frame.image, None, 1, 0.1, True, True, "", index=frame.index)


def answerer(pause_s: float = 0.0) -> Any:
    """In the place of a session where only the turns matter."""
    return lambda frame: answered(frame, pause_s)


def turns_of(streams: Sequence[tuple[Any, Source]], **options: Any) -> list[Turn]:
    return list(round_robin(streams, **options))


# What is answered


def test_answers_are_those_of_models_of_their_own(segmenter_bundle: Path, model: Model) -> None:
    """Bit for bit: outputs, residuals, counts, and what was warm."""
    clips: list[list[Picture]] = [[blobs(10 * k + i) for i in range(4 + k)] for k in range(3)]
    found: dict[int, list[Result]] = {k: [] for k in range(3)}
    for turn in round_robin([(model.session(), Clip(clip)) for clip in clips]):
        if turn.result is not None:
            found[turn.stream].append(turn.result)
    for k, clip in enumerate(clips):
        with Model(segmenter_bundle, CALM, threads=1) as alone:
            expected = list(alone.stream(clip))
        assert len(found[k]) == len(expected) == 4 + k
        for a, b in zip(found[k], expected, strict=True):
            assert np.array_equal(a.output, b.output)
            assert (a.residual, a.iterations, a.warm) == (b.residual, b.iterations, b.warm)


@pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only")
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample bundle is not in this copy")
@pytest.mark.parametrize("policy", ["FixedIterations(2)", "UntilTolerance(0.03, 2)"])
def test_a_further_session_takes_its_states_and_no_more(policy: str) -> None:
    """Resident memory of 16 sessions that have answered, against the sizes in the manifest."""
    program = f"""
import json, sys
import numpy as np
from mdeq_runtime import *
from mdeq_runtime.memory import resident_bytes
def nbytes(spec):
    return int(np.prod([abs(n) for n in spec.shape])) * np.dtype(spec.dtype).itemsize
with Model(sys.argv[1], SessionSettings({policy}), threads=1) as model:
    m = model.manifest
    image = np.random.default_rng(0).integers(0, 256, (*m.input.size, 3), dtype=np.uint8)
    def answer(count):
        sessions = [model.session() for _ in range(count)]
        for session in sessions:
            for _ in range(3):
                session(image)
        return sessions
    kept = answer(2)
    before = resident_bytes()
    kept += answer(16)
    twice = sum(map(nbytes, m.states)) + sum(map(nbytes, m.history))
    once = [m.input.tensor, m.output.tensor, *([m.confidence] if m.confidence else [])]
    if not {policy.startswith("Fixed")}:
        once.append(m.injection)
    print(json.dumps([(resident_bytes() - before) / 16, 2 * twice + sum(map(nbytes, once))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(SAMPLE)], capture_output=True, text=True, check=True
    )
    taken, states = json.loads(done.stdout)
    assert 0.8 * states < taken < 1.1 * states + 32e3


# Whose turn it is


def test_files_take_turns_until_each_has_ended() -> None:
    lengths = (2, 4, 0, 1)
    turns = turns_of([(answerer(), Clip([blobs(0)] * n)) for n in lengths])
    expected, left = [], dict(enumerate(lengths))
    while left:
        for stream in list(left):
            expected.append((stream, left[stream] == 0))
            left[stream] -= 1
            if left[stream] < 0:
                del left[stream]
    assert [(turn.stream, turn.over) for turn in turns] == expected
    for stream, length in enumerate(lengths):
        own = [turn for turn in turns if turn.stream == stream]
        assert [t.frame.index for t in own if t.frame is not None] == list(range(length))
        assert own[-1].error is None


def test_a_slow_camera_is_next_as_soon_as_it_has_a_frame() -> None:
    """However many frames the fast ones have; and it gets every one of its own."""
    slow = Camera("slow camera")
    fast = [Endless(), Endless()]
    streams = [(answerer(), source) for source in (*fast, slow)]
    turns = round_robin(streams)
    for _ in range(6):
        next(turns)
    for index in range(20):
        slow.deliver()
        upcoming = [next(turns) for _ in range(3)]
        (own,) = [turn for turn in upcoming if turn.stream == 2]
        assert own.frame is not None
        assert (own.frame.index, own.dropped) == (index, 0)
        assert {next(turns).stream for _ in range(4)} == {0, 1}
    turns.close()  # type: ignore[attr-defined]
    for source in (*fast, slow):
        source.close()


def test_under_load_each_has_as_many_turns_and_always_the_newest_frame() -> None:
    """Cameras of 500, 100 and 50 frames a second, answers of 10 ms: for one in six of them."""
    sources = [Endless(0.002), Endless(0.01), Endless(0.02)]
    counts: Counter[int] = Counter()
    ages: list[float] = []
    for turn in round_robin([(answerer(0.01), source) for source in sources]):
        assert turn.frame is not None
        counts[turn.stream] += 1
        ages.append(time.monotonic() - turn.frame.timestamp - 0.01)
        if sum(counts.values()) == 90:
            break
    assert max(counts.values()) - min(counts.values()) <= 10
    assert np.median(ages) < 0.05, "no queue builds up"
    for source in sources:
        source.close()


def test_a_camera_beside_a_file_waits_for_one_frame_of_the_file(model: Model) -> None:
    camera = Camera("camera")
    turns = round_robin([(model.session(), Clip([blobs(1)] * 50)), (model.session(), camera)])
    assert {next(turns).stream for _ in range(3)} == {0}
    for _ in range(5):
        camera.deliver()
        assert 1 in {next(turns).stream for _ in range(2)}
    turns.close()  # type: ignore[attr-defined]
    camera.close()


def test_waiting_for_cameras_takes_no_time_of_the_processor() -> None:
    camera = Camera("camera")
    threading.Timer(0.6, camera.deliver).start()
    used = time.process_time()
    turns = round_robin([(answerer(), camera)])
    assert next(turns).stream == 0
    assert time.process_time() - used < 0.2
    turns.close()  # type: ignore[attr-defined]
    camera.close()


# When one fails


@pytest.mark.parametrize("error", [SourceError("the cable is out"), OSError("the cable is out")])
@pytest.mark.parametrize("live", [True, False])
def test_a_source_that_fails_leaves_the_others_going(
    model: Model, error: Exception, live: bool
) -> None:
    failing: Any
    if live:
        failing = Camera("north")
        threading.Thread(target=lambda: (failing.deliver(), failing.deliver(error))).start()
    else:
        failing = Clip([blobs(0)], error, "north")
    turns = turns_of([(model.session(), failing), (model.session(), Clip([blobs(1)] * 300))])
    north = [turn for turn in turns if turn.stream == 0]
    assert [turn.over for turn in north] == [False, True]
    assert isinstance(north[-1].error, SourceError)
    assert "the cable is out" in str(north[-1].error)
    south = [turn for turn in turns if turn.stream == 1]
    assert len(south) == 301
    assert all(turn.result is not None and turn.error is None for turn in south[:-1])
    assert turns.index(north[-1]) < len(turns) - 1


def test_a_frame_without_an_answer_is_a_turn_and_the_stream_goes_on(model: Model) -> None:
    images = [blobs(0), GREY, blobs(0)]
    turns = turns_of([(model.session(), Clip(images)), (model.session(), Clip([blobs(1)] * 3))])
    first = [turn for turn in turns if turn.stream == 0]
    assert [type(turn.error) for turn in first] == [type(None), FrameError, type(None), type(None)]
    assert first[1].frame is not None
    assert (first[1].frame.index, first[1].result) == (1, None)
    assert first[2].result is not None
    assert first[2].result.warm
    assert all(turn.error is None for turn in turns if turn.stream == 1)


def test_a_closed_session_is_an_error_of_its_stream(model: Model) -> None:
    sessions = [model.session(), model.session()]
    sessions[0].close()
    turns = turns_of([(session, Clip([blobs(1)] * 2)) for session in sessions])
    assert [type(t.error) for t in turns if t.stream == 0][:2] == [SessionError] * 2
    assert [t.result is not None for t in turns if t.stream == 1] == [True, True, False]


def test_whatever_else_an_answering_function_raises_is_a_session_error() -> None:
    def broken(frame: Frame) -> Result:
        raise ZeroDivisionError("of its own")

    (turn, _) = turns_of([(broken, Clip([blobs(0)], name="north.mp4"))])
    assert isinstance(turn.error, SessionError)
    assert "north.mp4 failed: ZeroDivisionError: of its own" in str(turn.error)
    assert isinstance(turn.error.__cause__, ZeroDivisionError)


def test_a_camera_that_goes_silent_is_over_and_holds_nobody_up() -> None:
    silent, lively = Camera("silent camera"), Endless()
    turns = round_robin([(answerer(), silent), (answerer(), lively)], stall_s=1.0)
    started, longest, before = time.monotonic(), 0.0, time.monotonic()
    for turn in turns:
        now = time.monotonic()
        longest, before = max(longest, now - before), now
        if turn.stream == 0:
            break
    assert turn.over
    assert "silent camera delivered no frame for 1 s" in str(turn.error)
    assert 1.0 <= time.monotonic() - started < 5
    assert longest < 0.7
    assert next(turns).stream == 1
    turns.close()  # type: ignore[attr-defined]
    for source in (silent, lively):
        source.close()


# Beginning and end


def test_stop_ends_it_within_a_second_though_no_frame_comes() -> None:
    camera, stop = Camera("camera"), threading.Event()
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    assert turns_of([(answerer(), camera)], stop=stop) == []
    assert time.monotonic() - started < 1.5
    camera.close()


def test_closing_a_source_ends_its_stream_and_no_other() -> None:
    sources = [Clip([blobs(0)] * 9), Clip([blobs(0)] * 3)]
    seen = []
    for turn in round_robin([(answerer(), source) for source in sources]):
        seen.append((turn.stream, turn.over))
        if turn.stream == 0:
            sources[0].close()
    assert seen == [(0, False), (1, False), (0, True), (1, False), (1, False), (1, True)]


def test_a_session_or_a_source_stands_for_one_stream(model: Model) -> None:
    session, clip = model.session(), Clip([blobs(0)])
    with pytest.raises(ConfigError, match="two streams have one session"):
        round_robin([(session, clip), (session, Clip([blobs(0)]))])
    with pytest.raises(ConfigError, match="two streams have one source"):
        round_robin([(session, clip), (model.session(), clip)])
    assert turns_of([]) == []


def write_clip(path: Path, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE[::-1])
    for seed in range(count):
        writer.write(blobs(seed))
    writer.release()
    return path


def test_sources_are_opened_by_name_and_let_go_of_when_they_end(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_clip(tmp_path / f"{count}.avi", count) for count in (2, 4)]
    opened, made = model.session, []

    def session(settings: Any) -> Any:
        made.append(opened(settings))
        return made[-1]

    monkeypatch.setattr(model, "session", session)
    closed = []
    for turn in answer_streams(model, [str(paths[0]), paths[1]], CALM):
        closed.append((turn.stream, [one.closed for one in made]))
    assert closed[:4] == [(k % 2, [False, False]) for k in range(4)]
    assert closed[4:] == [(0, [True, False])] + [(1, [True, False])] * 2 + [(1, [True, True])]


def test_a_source_that_cannot_be_opened_is_said_before_any_is_read(
    model: Model, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "north.avi", 2)
    with pytest.raises(SourceError, match=r"south\.avi does not exist"):
        next(answer_streams(model, [path, tmp_path / "south.avi"]))


@pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only")
def test_streams_are_counted_against_a_memory_limit(segmenter_bundle: Path, tmp_path: Path) -> None:
    paths = [write_clip(tmp_path / f"{count}.avi", count) for count in (2, 3)]
    with Model(segmenter_bundle, CALM, threads=1, memory_limit="8GiB") as limited:
        assert limited.budget is not None
        turns = answer_streams(limited, paths)
        next(turns)
        assert len(limited.budget.buffers) == 2
        assert sum(turn.over for turn in turns) == 2
        assert not limited.budget.buffers
