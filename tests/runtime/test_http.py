"""Streams and files from a web server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import ConfigError, SourceError
from mdeq_runtime.sources import Live, SourceOptions, State, network, open_source

pytestmark = pytest.mark.clock

STATUS = {"/denied": 403, "/gone": 404, "/broken": 500}


class Handler(BaseHTTPRequestHandler):
    """MJPEG at /stream (30 pictures, then it closes), /clip.mp4, and errors."""

    clip: Path

    def do_GET(self) -> None:
        if self.path in STATUS:
            self.send_error(STATUS[self.path])
        elif self.path == "/clip.avi":
            data = self.clip.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        elif self.path == "/words":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"no video " * 1000)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            for index in range(30):
                image = np.full((48, 64, 3), 8 * index, np.uint8)
                body = cv2.imencode(".jpg", image)[1].tobytes()
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                self.wfile.write(head.encode() + body + b"\r\n")
                time.sleep(0.02)

    def log_message(self, *args: object) -> None: ...

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # who watched has left
            self.close_connection = True


@contextmanager
def web(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
    for index in range(7):
        writer.write(np.full((48, 64, 3), 30 * index, np.uint8))
    writer.release()
    Handler.clip = path
    with web(Handler) as address:
        yield address


def test_a_stream_that_closes_is_opened_again(where: str) -> None:
    with open_source(f"http://joe:hunter2@{where}/stream") as source:
        assert isinstance(source, Live)
        epochs, deadline = set(), time.monotonic() + 15
        while len(epochs) < 2:
            assert time.monotonic() < deadline
            frame = source.read()
            assert frame is not None
            assert frame.image.shape == (48, 64, 3)
            epochs.add(frame.epoch)
    assert State.EOS in [status.state for status in source.past]
    assert "hunter2" not in repr([*source.past, source.description])


def test_a_file_over_http_has_an_end_and_loses_nothing(where: str) -> None:
    with open_source(f"http://{where}/clip.avi") as source:
        assert not source.live
        levels = [round(float(frame.image.mean()) / 30) for frame in iter(source.read, None)]
    assert levels == list(range(7))
    with pytest.raises(ConfigError, match="latency means nothing"):
        open_source(f"http://{where}/clip.avi", SourceOptions(latency=5))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/denied", r"is denied at .* \(403\)"),
        ("/gone", r"is not at .* \(404\); check the path"),
        ("/broken", r"\(status 500\)"),
        ("/words", "gives no video that this OpenCV reads"),
        ("/gone.mp4", "is not at"),
    ],
)
def test_what_the_server_says_is_told(where: str, path: str, message: str) -> None:
    if path == "/gone.mp4":
        STATUS[path] = 404
    with pytest.raises(SourceError, match=message):
        open_source(f"http://{where}{path}")


def test_a_file_s_server_that_hangs_is_not_waited_for_long(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "OPEN_S", 1.0)
    monkeypatch.setattr(network, "FILE_SILENT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        started = time.monotonic()
        with pytest.raises(SourceError, match="gets no answer"):
            open_source(f"http://127.0.0.1:{silent.getsockname()[1]}/clip.mp4")
    assert time.monotonic() - started < 10.0, "OpenCV's own limit is half a minute"
