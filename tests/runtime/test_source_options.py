"""What may be asked of sources, files as cameras, the test pattern, and what must not be told."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import ConfigError, SourceError
from mdeq_runtime.results import Frame
from mdeq_runtime.slot import capture
from mdeq_runtime.sources import SourceOptions, open_source
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.orient import FLIPS, orienting, turns
from mdeq_runtime.sources.pattern import BAR, BAR_BGR, DISC, DISC_BGR, GROUND, Pattern
from mdeq_runtime.sources.replay import Realtime
from mdeq_runtime.uris import redact

pytestmark = pytest.mark.clock


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames of 32 x 16 at 20 per second; frame i has the grey level 40 * i."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (32, 16))
    for index in range(5):
        writer.write(np.full((16, 32, 3), 40 * index, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"codec": "h266"}, r"codec is 'h266', did you mean 'h26[45]'"),
        ({"flip": "upside-down"}, "known: none, counterclockwise"),
        ({"width": 640}, "width and height together"),
        ({"width": 0, "height": 10}, "width is 0, must be at least 1"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"loop": -2}, "loop is -2"),
    ],
)
def test_values_that_make_no_sense(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("clip.avi", SourceOptions(latency=100), "latency means nothing for files and images"),
        ("rtsp://gate/1", SourceOptions(width=640, height=480), "width means nothing for rtsp://"),
        ("test://", SourceOptions(loop=1), "loop means nothing for test://"),
        ("csi://0", SourceOptions(sensor_mode=2, exposure=3), "exposure means nothing for csi://"),
        ("clip.avi", SourceOptions(rate=5), "--realtime"),
        (
            "rtsp://gate/1",
            SourceOptions(codec="h265", backend="ffmpeg"),
            "which FFmpeg reads here .* --input-backend gstreamer",
        ),
    ],
)
def test_what_would_be_without_effect_is_refused(
    clip: Path, uri: str, options: SourceOptions, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(clip if uri == "clip.avi" else uri, options)


def test_spellings_of_codecs() -> None:
    assert SourceOptions(codec="MJPG").codec == "mjpeg"
    assert SourceOptions(codec="hevc").codec == "h265"


# Turning


def test_flips_are_what_their_names_say() -> None:
    corners = np.array([[[1], [2]], [[3], [4]]], np.uint8)
    found = {flip: orienting(flip)(corners).ravel().tolist() for flip in FLIPS}
    assert found == {
        "none": [1, 2, 3, 4],
        "counterclockwise": [2, 4, 1, 3],
        "rotate-180": [4, 3, 2, 1],
        "clockwise": [3, 1, 4, 2],
        "horizontal": [2, 1, 4, 3],
        "vertical": [3, 4, 1, 2],
        "upper-left-diagonal": [1, 3, 2, 4],
        "upper-right-diagonal": [4, 2, 3, 1],
    }
    wide = np.zeros((2, 5, 3), np.uint8)
    for flip in FLIPS:
        turned = orienting(flip)(wide)
        assert (turned.shape[0] == 5) == turns(flip)
        assert turned.flags["C_CONTIGUOUS"]


def test_a_turned_file_knows_its_size(clip: Path) -> None:
    with open_source(clip, SourceOptions(flip="clockwise")) as source:
        frame = source.read()
        assert frame is not None
        assert frame.image.shape[:2] == source.size == (32, 16)


# Files again and again, and files as cameras


def test_a_loop_goes_on_counting_and_tells_its_rounds_apart(clip: Path) -> None:
    with open_source(clip, SourceOptions(loop=2)) as source:
        frames = list(iter(source.read, None))
    assert [frame.index for frame in frames] == list(range(15))
    assert [frame.epoch for frame in frames] == [0] * 5 + [1] * 5 + [2] * 5
    assert [round(frame.image.mean() / 40) for frame in frames] == list(range(5)) * 3
    assert np.diff([frame.timestamp for frame in frames]) == pytest.approx(0.05, abs=0.001)
    with open_source(clip, SourceOptions(loop=-1)) as source:
        assert len(list(itertools.islice(iter(source.read, None), 23))) == 23


def test_a_realtime_file_drops_what_nobody_takes_and_any_other_nothing(clip: Path) -> None:
    for options, slow in ((SourceOptions(realtime=True), True), (SourceOptions(), False)):
        started = time.monotonic()
        with open_source(clip, options) as source, capture(source) as frames:
            seen = []
            for frame in frames:
                seen.append(frame.index)
                time.sleep(0.11)
            dropped = frames.dropped
        assert len(seen) + dropped == 5
        assert (dropped > 0) == slow
        assert (frame.captured is not None) == slow
        assert time.monotonic() - started > 0.2


def test_images_have_no_rate_of_their_own(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match="no rate to be played at; add --input-rate"):
        open_source(tmp_path, SourceOptions(realtime=True))
    with open_source(tmp_path, SourceOptions(realtime=True, rate=50)) as source:
        started = time.monotonic()
        assert len(list(iter(source.read, None))) == 3
        assert time.monotonic() - started >= 2 / 50


def test_a_slow_pace_is_no_silence(clip: Path) -> None:
    options = SourceOptions(realtime=True, rate=2)
    with open_source(clip, options) as source, capture(source, stall_s=0.1) as frames:
        assert [frames.read() is not None for _ in range(2)] == [True, True]
    slow = SourceOptions(width=32, height=16, rate=2)
    with open_source("test://", slow) as source, capture(source, stall_s=0.1) as frames:
        assert [frames.read() is not None for _ in range(2)] == [True, True]


def test_a_file_that_hangs_holds_up_no_shutdown() -> None:
    asked, answered = threading.Event(), threading.Event()

    class Hanging(Source):
        live, fps, size, description = False, 20.0, (16, 32), "a file far away"
        closed = False

        def read(self) -> Frame | None:
            asked.set()
            answered.wait(20)
            return None

        def close(self) -> None:
            self.closed = True

    inner = Hanging()
    with capture(source := Realtime(inner, None)):
        assert asked.wait(10)
        started = time.monotonic()
        source.close()
    assert time.monotonic() - started < 1.5
    assert not inner.closed, "nobody closes what another thread reads"
    answered.set()
    until = time.monotonic() + 10
    while not inner.closed and time.monotonic() < until:
        source.close()
    assert inner.closed


# The pattern


def test_the_pattern_is_what_its_truth_says_and_moves() -> None:
    with Pattern(SourceOptions(width=160, height=90, rate=100)) as source:
        frames = [source.read() for _ in range(5)]
        for frame in frames:
            assert frame is not None
            truth = source.truth(frame.index)
            assert truth.shape == frame.image.shape[:2] == source.size
            assert set(np.unique(truth)) == {GROUND, DISC, BAR}
            assert (frame.image[truth == DISC] == DISC_BGR).all()
            assert (frame.image[truth == BAR] == BAR_BGR).all()
            assert (np.ptp(frame.image[truth == GROUND], axis=1) == 0).all()
    assert frames[0] is not None
    assert frames[4] is not None
    assert (frames[0].image != frames[4].image).any()


def test_the_pattern_keeps_a_cameras_pace_and_turns_with_its_truth() -> None:
    with open_source(
        "test://", SourceOptions(width=64, height=48, rate=50, flip="clockwise")
    ) as source:
        assert isinstance(source, Pattern)
        started = time.monotonic()
        for _ in range(3):
            frame = source.read()
        time.sleep(0.2)
        late = source.read()
        assert frame is not None
        assert late is not None
        assert time.monotonic() - started >= 0.04
        assert late.index >= frame.index + 8  # a camera does not wait either
        assert (late.image[source.truth(late.index) == DISC] == DISC_BGR).all()
        assert source.size == (64, 48)
    assert source.read() is None


# Secrets


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("rtsp://joe:hunter2@gate/1", ["joe", "hunter2"]),
        ("rtsp://joe:hun/t@er2@gate/1", ["hun/t", "er2"]),
        ("rtsp://joe:hun ter2@gate/1", ["joe", "hun", "ter2"]),
        ("unknown scheme 'rstp' in source 'rstp://joe:hun ter2@gate/1'", ["hun", "ter2"]),
        (r'gst://rtspsrc user-pw="hun\"ter2" ! x', ["hun", "ter2"]),
        ("http://gate/mjpg?user=x&password=hunter2&size=3", ["hunter2"]),
        ("http://gate/mjpg?access_token=hunter2", ["hunter2"]),
        ('gst://rtspsrc location=rtsp://a:hunter2@b/ user-pw="hunter 2" ! x', ["hunter"]),
        ("one rtsp://a:hunter2@b and http://c:hunter3@d", ["hunter"]),
    ],
)
def test_secrets_are_hidden_wherever_they_stand(text: str, secrets: list[str]) -> None:
    shown = redact(text)
    assert "***" in shown
    assert not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize(
    "text",
    [
        "clip.mp4",
        "rtsp://gate:554/1?size=3",
        "v4l2:///dev/video0",
        "rtsp://gate:554/1 is away, write to joe@example.org",
        "gst://rtspsrc location=rtsp://gate/1 ! x name=a@b",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_no_error_of_a_source_tells_its_password() -> None:
    for scheme in ("rtsp", "rtsps", "http", "https", "rstp", "gst", "csi", "v4l2"):
        with pytest.raises(SourceError) as error:
            open_source(f"{scheme}://joe:hunter2@127.0.0.1:9/stream.mp4?password=hunter2")
        assert "hunter2" not in str(error.value), scheme
