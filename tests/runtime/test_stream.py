"""Annotated frames over the network, received by others: FFmpeg, and an RTSP server."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink, stream

pytestmark = pytest.mark.clock

SIZE = (144, 192)
FPS = 20.0


def has(*elements: str) -> bool:
    return all(
        shutil.which("gst-launch-1.0")
        and subprocess.run(["gst-inspect-1.0", "--exists", element], check=False).returncode == 0
        for element in elements
    )


needs_gstreamer = pytest.mark.skipif(
    not has("x264enc", "mpegtsmux", "rawvideoparse"),
    reason="needs gstreamer1.0-tools and gstreamer1.0-plugins-{good,bad,ugly}",
)


def picture(index: int) -> Any:
    """Eight bars, black or white: the bits of its number."""
    bars = np.array([255 * (index >> bit & 1) for bit in range(8)], np.uint8)
    return np.broadcast_to(np.repeat(bars, SIZE[1] // 8)[None, :, None], (*SIZE, 3)).copy()


def number(image: Any) -> int:
    middle = image[SIZE[0] // 3 : SIZE[0] // 2]  # between what is written on it
    bars = middle.reshape(middle.shape[0], 8, -1).mean(axis=(0, 2)) > 127
    return sum(1 << bit for bit in range(8) if bars[bit])


def send(sink: Any, enough: Callable[[], bool], first: int = 0, limit_s: float = 30.0) -> int:
    """Frames at their pace until ``enough``; the number of the next one."""
    unseen, until, index = np.full(SIZE, 255, np.uint8), time.monotonic() + limit_s, first
    while not enough() and time.monotonic() < until:
        answer = Result(unseen, None, 1, 0.1, True, True, "", index=index)
        assert sink.write(Frame(picture(index % 256), index, index / FPS), answer)
        index += 1
        time.sleep(1 / FPS)
    return index


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@needs_gstreamer
def test_an_mpeg_stream_arrives_over_udp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "timeout;20000000|fflags;nobuffer")
    target = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    received: list[int] = []

    def receive() -> None:
        video = cv2.VideoCapture(target, cv2.CAP_FFMPEG)
        while len(received) < 25:
            done, image = video.read()
            if not done:
                return
            received.append(number(image))

    receiver = threading.Thread(target=receive)
    receiver.start()
    with open_sink(target, fps=FPS) as sink:
        sent = send(sink, lambda: not receiver.is_alive())
    receiver.join(20)
    assert len(received) == 25
    steps = np.diff(received) % 256
    assert np.median(steps) == 1
    assert 0 <= (sent - received[-1]) % 256 < 2 * FPS, "it is not late"


SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
tail = "video/x-h264,stream-format=byte-stream ! filesink buffer-mode=2 location=" + sys.argv[2]
factory.set_launch("( rtph264depay name=depay0 ! h264parse ! " + tail + " )")
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
server.get_mount_points().add_factory("/gate", factory)
assert server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


def has_server() -> bool:
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    done = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, check=False)
    return done.returncode == 0 and has("rtspclientsink", "x264enc", "rtph264depay")


@contextmanager
def server(port: int, file: Path) -> Iterator[None]:
    command = ["/usr/bin/python3", "-c", SERVER, str(port), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.kill()


def numbers_in(file: Path) -> list[int]:
    video, found = cv2.VideoCapture(str(file)), []
    while True:
        done, image = video.read()
        if not done:
            return found
        found.append(number(image))


@pytest.mark.skipif(
    not Path("/usr/bin/python3").exists() or not has_server(),
    reason="needs gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-rtsp",
)
def test_an_rtsp_server_gets_the_stream_and_again_after_it_was_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAUSES_S", (0.3,))
    port = free_port(socket.SOCK_STREAM)
    first, second = tmp_path / "first.h264", tmp_path / "second.h264"

    def grown(file: Path) -> Callable[[], bool]:
        return lambda: file.exists() and file.stat().st_size > 60_000

    target = f"rtsp://joe:secret@127.0.0.1:{port}/gate"
    with caplog.at_level(logging.WARNING), open_sink(target, fps=FPS) as sink:
        sent = send(sink, lambda: bool(caplog.records), limit_s=20)
        assert "cannot send to rtsp://***@127.0.0.1" in caplog.text
        with server(port, first):
            sent = send(sink, grown(first), sent)
        before = sent
        sent = send(sink, lambda: len(caplog.records) >= 3, sent, limit_s=20)
        with server(port, second):
            sent = send(sink, grown(second), sent)
    assert "secret" not in caplog.text
    said = [record.message.split(" ")[0] for record in caplog.records]
    assert said == ["cannot", "sending", "cannot", "sending"], caplog.text
    for file, start in ((first, 0), (second, before)):
        found = numbers_in(file)
        assert len(found) > 10
        assert np.median(np.diff(found) % 256) == 1
        assert (found[0] - start) % 256 < 128


HANGING = """#!/bin/sh
exec sleep 60
"""


@needs_gstreamer
def test_a_network_that_hangs_is_given_up_and_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gst-launch-1.0").write_text(HANGING)
    (tmp_path / "gst-launch-1.0").chmod(0o755)
    sink = open_sink("udp://127.0.0.1:9", fps=FPS)
    monkeypatch.setattr(stream, "LAUNCH", str(tmp_path / "gst-launch-1.0"))
    monkeypatch.setattr(stream, "HANG_S", 0.3)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        send(sink, lambda: bool(caplog.records), limit_s=10)
    assert "cannot send to udp://127.0.0.1:9 (it takes nothing for 0.3 s)" in caplog.text
    sink.close()
    assert time.monotonic() - started < 8


@needs_gstreamer
def test_a_process_that_does_not_start_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_sink("udp://127.0.0.1:9", fps=FPS)
    monkeypatch.setattr(stream, "LAUNCH", "/nowhere/gst-launch-1.0")
    with caplog.at_level(logging.WARNING):
        send(sink, lambda: bool(caplog.records), limit_s=10)
    assert "gst-launch-1.0 does not start: No such file" in caplog.text
    sink.close()


@needs_gstreamer
def test_pauses_begin_anew_after_a_time_that_went_well() -> None:
    sink: Any = open_sink("udp://127.0.0.1:9", fps=FPS)

    def pause(ran_for_s: float) -> float:
        now = time.monotonic()
        sink._started = now - ran_for_s
        sink._give_up("the server is away")
        return float(sink._again - now)

    assert [round(pause(0.1)) for _ in range(6)] == [1, 2, 5, 10, 30, 30]
    assert [round(pause(seconds)) for seconds in (3600.0, 0.1)] == [1, 2]


KILLED = """
import os, signal, sys
import numpy as np
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
sink = open_sink("udp://127.0.0.1:9", fps=20.0)
unseen = np.full((144, 192), 255, np.uint8)
for index in range(3):
    image = np.zeros((144, 192, 3), np.uint8)
    sink.write(Frame(image, index, 0.0), Result(unseen, None, 1, 0.1, True, True, "", index=index))
print(sink._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_gstreamer
def test_nothing_is_left_of_a_killed_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    other = Path(f"/proc/{int(done.stdout)}/stat")
    until = time.monotonic() + 10
    while other.exists() and " Z " not in other.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not other.exists() or " Z " in other.read_text()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("udp://127.0.0.1", "has no host or no port; write such as udp://"),
        ("rtsp://", r"has no host or no port; write such as rtsp://server:8554/name"),
        ("rtsp://gate:99999/x", "makes no sense"),
        ("rtsp://joe:secret@gate/a b", r"rtsp://\*\*\*@gate/a b has ' ' in it; write it as %20"),
        ("rstp://gate:8554/x", "did you mean 'rtsp'"),
    ],
)
def test_targets_that_make_no_sense(target: str, message: str) -> None:
    with pytest.raises(SinkError, match=message) as raised:
        open_sink(target)
    assert "secret" not in str(raised.value)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_exists", lambda element: element != "x264enc")
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    assert stream._find_encoder("udp://a:1") == "openh264enc"
    for missing, advice in (
        ("mpegtsmux", "gstreamer1.0-plugins-bad"),
        ("h264enc", "gstreamer1.0-plugins-ugly, which has x264enc"),
    ):
        monkeypatch.setattr(stream, "_exists", lambda element, m=missing: m not in element
                            and element != "x264enc")  # fmt: skip
        with pytest.raises(SinkError, match=rf"output udp://a:1 needs .*install {advice}"):
            open_sink("udp://a:1")
    monkeypatch.setattr("shutil.which", lambda tool: None)
    with pytest.raises(SinkError, match=r"needs GStreamer's gst-launch-1\.0; install"):
        open_sink("rtsp://joe:secret@gate/x")
