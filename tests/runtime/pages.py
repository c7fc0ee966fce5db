"""Live pages of runs that last, and clients that speak to them over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mdeq_runtime import FixedIterations, Frame, Result, SessionSettings
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.policies import Policy
from mdeq_runtime.sensors import Sensors
from mdeq_runtime.sources.base import Source
from mdeq_runtime.web import LivePage

LABELS, PALETTE = ("sky", "<b>road</b>"), ((70, 130, 180), (128, 64, 128))
WAIT_S = 20.0


class Camera(Source):
    """A bright bar that moves by eight pixels a frame; ``pause`` holds it."""

    live = True
    description = "test camera"

    def __init__(self, fps: float = 30.0, size: tuple[int, int] = (120, 160)) -> None:
        self.fps, self.size = fps, size
        self.count = 0
        self.going, self.closed = threading.Event(), threading.Event()
        self.going.set()

    def read(self) -> Frame | None:
        self.going.wait()
        if self.closed.wait(1 / self.fps):
            return None
        self.count += 1
        assert self.size is not None
        image = np.full((*self.size, 3), 40, np.uint8)
        at = 8 * self.count % self.size[1]
        image[:, at : at + 16] = 220
        return Frame(image, self.count - 1, time.monotonic())

    def close(self) -> None:
        self.closed.set()
        self.going.set()


@dataclass
class StandIn:
    """Answers as a session does, without a model: bright pixels are class 1."""

    ms: float = 0.0
    settings: SessionSettings = field(default_factory=SessionSettings)
    limit: int | None = None
    resets: list[str] = field(default_factory=list)

    def __call__(self, frame: Frame) -> Result:
        time.sleep(self.ms / 1e3)
        mask = (frame.image[..., 0] > 100).astype(np.uint8)
        policy = self.settings.policy
        iterations = policy.n if isinstance(policy, FixedIterations) and policy.n else 2
        times = {"solve": self.ms}
        return Result(
            mask, None, iterations, 0.5**iterations, True, frame.index > 0, "", times, frame.index
        )

    def use(self, policy: Policy) -> None:
        self.settings = SessionSettings(policy)

    def reset(self, reason: str = "requested") -> None:
        self.resets.append(reason)


@contextmanager
def running_page(
    uri: str = "http://127.0.0.1:0",
    session: Any = None,
    camera: Source | None = None,
    sensors: Sensors | None = None,
) -> Iterator[LivePage]:
    """A page of a run that goes on meanwhile; it must end within a second when it is told to."""
    page = LivePage(uri, LABELS, PALETTE, sensors)
    stop, metrics = threading.Event(), Metrics()
    session, camera = session or StandIn(), camera or Camera()
    thread = threading.Thread(
        target=run, args=(session, camera, [page]), kwargs={"stop": stop, "metrics": metrics}
    )
    thread.start()
    try:
        wait_for(lambda: page.publisher.newest is not None, "a frame")
        yield page
    finally:
        stop.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def wait_for(what: Callable[[], object], name: str, seconds: float = WAIT_S) -> Any:
    """What it gives once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError(f"no {name} within {seconds:g} s")


def ask(
    page: LivePage,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=WAIT_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()
    finally:
        connection.close()


def post(page: LivePage, path: str, what: object, **headers: str) -> tuple[int, Any]:
    """Status and decoded answer of a request with JSON."""
    given = {"Content-Type": "application/json", **headers}
    status, _, body = ask(page, path, "POST", json.dumps(what).encode(), given)
    return status, json.loads(body)


class Viewer:
    """Reads one of the page's streams."""

    def __init__(self, page: LivePage, path: str = "/stream.mjpg") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=WAIT_S)
        self.connection.request("GET", path)
        self.answer = self.connection.getresponse()
        self.status = self.answer.status

    def picture(self) -> bytes:
        """The next frame's JPEG."""
        length = 0
        while line := self.answer.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        if not length:  # the blank line was the end of the last part
            return self.picture()
        return self.answer.read(length)

    def event(self) -> dict[str, Any]:
        """The next event."""
        while not (line := self.answer.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        found: dict[str, Any] = json.loads(line[6:])
        return found

    def close(self) -> None:
        self.answer.close()
        self.connection.close()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


READ = """
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for _ in range(int(sys.argv[2])):
    each = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    each.sendall(b"GET /stream.mjpg HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    chosen.register(each, selectors.EVENT_READ)
while True:
    for key, _ in chosen.select():
        if not key.fileobj.recv(1 << 20):
            sys.exit()
"""


@contextmanager
def crowd(page: LivePage, count: int) -> Iterator[None]:
    """So many viewers in a process of their own, who only read."""
    with subprocess.Popen([sys.executable, "-c", READ, str(page.port), str(count)]) as process:
        try:
            wait_for(lambda: page.publisher.frames.followers == count, f"{count} viewers")
            yield
        finally:
            process.kill()


def raw(page: LivePage, data: bytes, seconds: float = WAIT_S) -> bytes:
    """What comes back for these bytes, until the other side closes."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=seconds) as connection:
        found = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
            while data := connection.recv(65536):
                found += data
        return found
