from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import FrameError, SinkError, SourceError
from mdeq_runtime.memory import peak_resident_bytes, resident_bytes
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.base import Sink
from mdeq_runtime.sinks.video import VideoSink
from mdeq_runtime.sources import open_source
from mdeq_runtime.sources.base import Source

pytestmark = pytest.mark.clock


def session(frame: Frame) -> Result:
    """Stands in for a model: bright pixels are class 1."""
    mask = (frame.image[..., 0] > 100).astype(np.uint8)
    warm = frame.index > 0
    residual = 0.5 / (1 + frame.index)
    times = {"solve": 3.0}
    return Result(mask, None, 2, residual, True, warm, "", times, frame.index, frame.timestamp)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (320, 240))
    for index in range(8):
        writer.write(np.full((240, 320, 3), 30 * index, np.uint8))
    writer.release()
    return path


class Recorder(Sink):
    """Remembers what it was given; may ask to stop, or fail."""

    def __init__(self, stop_after: int | None = None, fail: str = "") -> None:
        self.results: list[Result] = []
        self.stop_after = stop_after
        self.fail = fail
        self.closed = 0

    def write(self, frame: Frame, result: Result) -> bool:
        if self.fail == "write":
            raise SinkError("cannot write")
        self.results.append(result)
        return len(self.results) != self.stop_after

    def close(self) -> None:
        self.closed += 1
        if self.fail == "close":
            raise SinkError("cannot close")


class Camera(Source):
    """A live source at 200 frames per second that ends, fails or blocks after ``count``."""

    live = True
    fps = 200.0
    size = (24, 32)
    description = "test camera"

    def __init__(self, count: int = 10**9, end: str = "none") -> None:
        self.count = count
        self.end = end
        self.index = 0
        self.closed = threading.Event()

    def read(self) -> Frame | None:
        if self.index >= self.count:
            if self.end == "error":
                raise SourceError("test camera stopped delivering")
            self.closed.wait(30)
            return None
        time.sleep(0.005)
        self.index += 1
        return Frame(np.zeros((24, 32, 3), np.uint8), self.index - 1, time.monotonic())

    def close(self) -> None:
        self.closed.set()


def count_frames(path: Path) -> int:
    video = cv2.VideoCapture(str(path))
    count = 0
    while video.read()[0]:
        count += 1
    return count


def test_a_file_from_end_to_end(clip: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    seen: list[Result] = []
    targets = ["out.mp4", "out.jsonl", "masks/"]
    sinks = [open_sink(f"{tmp_path}/{name}", fps=10.0, labels=("a", "b")) for name in targets]
    summary = run(session, open_source(clip), [recorder, *sinks], on_result=seen.append)
    assert summary.frames == 8
    assert summary.dropped == 0
    assert not summary.interrupted
    assert summary.fps > 0
    assert summary.mean_iterations == 2
    assert summary.warm_share == pytest.approx(7 / 8)
    assert summary.residual_max == pytest.approx(0.5)
    assert summary.residual_mean == pytest.approx(sum(0.5 / (1 + i) for i in range(8)) / 8)
    assert set(summary.stages) == {"read", "solve", "write"}
    assert summary.stages["solve"].p50 == summary.stages["solve"].p99 == 3.0
    assert summary.stages["read"].p50 <= summary.stages["read"].p90 <= summary.stages["read"].p99
    assert [result.index for result in seen] == list(range(8))
    assert all("read" in result.times for result in recorder.results)
    assert count_frames(tmp_path / "out.mp4") == 8
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8
    assert len(list((tmp_path / "masks").iterdir())) == 8
    assert recorder.closed == 1


def test_max_frames_and_a_sink_that_has_had_enough(clip: Path) -> None:
    assert run(session, open_source(clip), [], max_frames=3).frames == 3
    other = Recorder()
    assert run(session, open_source(clip), [Recorder(stop_after=2), other]).frames == 2
    assert len(other.results) == 2
    assert other.closed == 1


def test_a_slow_session_drops_frames_of_a_camera() -> None:
    recorder = Recorder()

    def slow(frame: Frame) -> Result:
        time.sleep(0.03)
        return session(frame)

    summary = run(slow, Camera(), [recorder], max_frames=6)
    indices = [result.index for result in recorder.results]
    assert indices == sorted(set(indices))
    assert summary.dropped >= 5
    assert indices[-1] >= summary.frames  # it kept up with the camera, not with the queue


def test_stop_ends_a_run_on_a_camera_that_hangs() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    summary = run(session, Camera(1, "block"), [], stop=stop)
    assert time.monotonic() - started < 3.0
    assert summary.frames == 1
    assert not summary.interrupted


def test_a_camera_that_fails_closes_the_sinks_and_raises() -> None:
    recorder = Recorder()
    with pytest.raises(SourceError, match="stopped delivering"):
        run(session, Camera(3, "error"), [recorder])
    assert recorder.closed == 1


def test_ctrl_c_leaves_a_video_that_plays(clip: Path, tmp_path: Path) -> None:
    def interrupted(frame: Frame) -> Result:
        if frame.index == 5:
            raise KeyboardInterrupt
        return session(frame)

    out = tmp_path / "out.mp4"
    summary = run(interrupted, open_source(clip), [open_sink(out, fps=10.0)])
    assert summary.interrupted
    assert summary.frames == 5
    assert count_frames(out) == 5
    assert not list(tmp_path.glob(".*part*"))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_second_ctrl_c_does_not_lose_the_video(clip: Path, tmp_path: Path, suffix: str) -> None:
    class Impatient(VideoSink):
        """Somebody presses it again while the video is being finished."""

        def close(self) -> None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.2)
            super().close()

    def interrupted(frame: Frame) -> Result:
        if frame.index == 5:
            raise KeyboardInterrupt
        return session(frame)

    out = tmp_path / f"out{suffix}"
    summary = run(interrupted, open_source(clip), [Impatient(out, 10.0, (), ())])
    assert summary.interrupted
    assert count_frames(out) == 5
    assert not list(tmp_path.glob(".*part*"))


# Outputs that would destroy something


def test_the_source_is_never_written_over(clip: Path, tmp_path: Path) -> None:
    before = clip.read_bytes()
    (tmp_path / "link.avi").symlink_to(clip)
    for source, output in ((clip, clip), (tmp_path / "link.avi", clip), (clip, "link.avi")):
        sinks = [open_sink(tmp_path / output)]
        with pytest.raises(SinkError, match="is the source itself"):
            run(session, open_source(source), sinks)
    assert clip.read_bytes() == before


def test_masks_do_not_go_among_the_pictures_they_are_made_of(tmp_path: Path) -> None:
    for name in ("000000.png", "000001.png"):
        cv2.imwrite(str(tmp_path / name), np.full((24, 32, 3), 50, np.uint8))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SinkError, match="holds the source's images"):
        run(session, open_source(tmp_path), [open_sink(f"{tmp_path}/")])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    inner = open_sink(f"{tmp_path}/masks/")
    assert run(session, open_source(tmp_path), [inner]).frames == 2


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl", "masks/"])
def test_an_output_is_given_once(clip: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    sinks = [open_sink(f"{tmp_path}/{name}"), open_sink(f"{tmp_path}/folder/../{name}")]
    with pytest.raises(SinkError, match="is given twice"):
        run(session, open_source(clip), sinks)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != clip]


LIVE_RUN = """
import sys, time
import numpy as np
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sources.base import Source

class Camera(Source):
    live, fps, size, description, index = True, 50.0, (24, 32), "camera", 0
    def read(self):
        if self.index == 20:
            print("blocked", flush=True)
            time.sleep(60)
        time.sleep(0.02)
        self.index += 1
        return Frame(np.zeros((24, 32, 3), np.uint8), self.index - 1, time.monotonic())
    def close(self):
        pass

def session(frame):
    return Result(np.zeros((24, 32), np.uint8), None, 1, 0.1, True, True, "", index=frame.index)

summary = run(session, Camera(), [open_sink(path, fps=50.0) for path in sys.argv[1:]])
print(summary.interrupted, summary.frames > 0)
"""


def test_sigint_while_the_camera_hangs(tmp_path: Path) -> None:
    video, lines = tmp_path / "out.avi", tmp_path / "out.jsonl"
    command = [sys.executable, "-c", LIVE_RUN, str(video), str(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "blocked\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        try:
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()
        assert time.monotonic() - started < 3.0
    assert process.returncode == 0
    assert rest == "True True\n"
    last = json.loads(lines.read_text().splitlines()[-1])["index"]
    assert last + 1 <= count_frames(video) <= 2 * last  # a gap in time is filled with copies


def test_an_error_of_the_session_closes_everything_and_stays_the_error(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(frame: Frame) -> Result:
        if frame.index == 3:
            raise RuntimeError("out of memory")
        return session(frame)

    out = tmp_path / "out.mp4"
    sinks = [Recorder(fail="close"), open_sink(out, fps=10.0)]
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="out of memory"):
        run(failing, open_source(clip), sinks)
    assert count_frames(out) == 3
    assert "cannot close" in caplog.text


@pytest.mark.parametrize("fail", ["write", "close"])
def test_a_failing_sink_raises_and_the_others_are_closed(clip: Path, fail: str) -> None:
    other = Recorder()
    with pytest.raises(SinkError, match=f"cannot {fail}"):
        run(session, open_source(clip), [Recorder(fail=fail), other])
    assert other.closed == 1


@pytest.mark.parametrize(
    ("image", "advice"),
    [(np.zeros((24, 32), np.uint8), "grey"), (np.zeros((24, 32, 3), np.uint16), "16-bit")],
)
def test_a_frame_of_a_wrong_kind_never_reaches_the_session(
    tmp_path: Path, image: Any, advice: str
) -> None:
    cv2.imwrite(str(tmp_path / "odd.png"), image)
    with pytest.raises(FrameError, match=rf"frame 0 of image .*odd\.png.*{advice}"):
        run(session, open_source(tmp_path / "odd.png"), [])


def test_a_run_without_frames_has_no_means() -> None:
    stop = threading.Event()
    stop.set()
    summary = run(session, Camera(), [], stop=stop)
    assert summary.frames == 0
    assert summary.stages == {}
    assert summary.mean_iterations is summary.warm_share is summary.residual_mean is None


def test_a_residual_that_is_not_finite_shows_in_the_summary(clip: Path) -> None:
    def diverging(frame: Frame) -> Result:
        residual = float("nan") if frame.index == 1 else 0.1
        return Result(np.zeros((240, 320), np.uint8), None, 2, residual, False, False, "")

    summary = run(diverging, open_source(clip), [])
    assert summary.residual_max == float("inf")
    assert summary.residual_mean == pytest.approx(0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_measured_in_bytes() -> None:
    before = resident_bytes()
    block = np.ones(50_000_000, np.uint8)
    after, peak = resident_bytes(), peak_resident_bytes()
    assert before is not None
    assert after is not None
    assert peak is not None
    assert after - before > 0.8 * block.nbytes
    assert peak >= after


def test_memory_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mdeq_runtime.memory.PROC", tmp_path / "none")
    assert resident_bytes() is None
    assert peak_resident_bytes() is None
