"""A real RTSP server for tests, and a proxy in front of it that can spoil what passes."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PYTHON = "/usr/bin/python3"  # the system's, whose packages the bindings belong to
SCRIPT = Path(__file__).parent / "rtsp_server.py"
IMPORTS = """
import gi, numpy
gi.require_version("GstRtspServer", "1.0"); from gi.repository import Gst, GstRtspServer
Gst.init(None)
assert all(map(Gst.ElementFactory.find, ["x264enc", "rtph264pay", "jpegenc", "appsrc"]))
"""


def need_server() -> None:
    """Skip where the packages are missing."""
    done = shutil.which(PYTHON) and subprocess.run(
        [PYTHON, "-c", IMPORTS], capture_output=True, text=True, check=False
    )
    if not done or done.returncode:
        pytest.skip("needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi, python3-numpy and "
                    "gstreamer1.0-plugins-good and -ugly")  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """An RTSP server that is started and killed at will, always on one port."""

    def __init__(self, *options: str) -> None:
        self.port, self.options = free_port(), options
        self.uri = f"rtsp://127.0.0.1:{self.port}/stream"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> None:
        command = [PYTHON, str(SCRIPT), "--port", str(self.port), *self.options, *more]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, command: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server that runs, and is killed in the end."""
    server = Server(*options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Proxy:
    """Passes TCP on to ``port``; ``garble`` mixes noise into what the server says."""

    def __init__(self, port: int) -> None:
        self.target, self.noise, self.open = port, 0, True
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.random = random.Random(1)
        self.done: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def garble(self, times: int) -> None:
        """Before each of the next packets, noise of up to 4 kB."""
        self.noise = times

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self.pass_on, args=pair, daemon=True).start()

    def pass_on(self, source: socket.socket, sink: socket.socket, spoil: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if spoil and self.noise > 0:
                    self.noise -= 1
                    data = self.random.randbytes(self.random.randrange(4096)) + data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.done.append((source, sink))

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)  # ends the thread's accept
        self.listening.close()
        time.sleep(0.2)  # its threads notice
        for ends in self.done:
            for end in ends:
                end.close()


@contextmanager
def noise_server(port: int) -> Iterator[None]:
    """Something that listens on ``port`` and answers everything with garbage."""
    with socket.create_server(("127.0.0.1", port)) as listening:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client, suppress(OSError):
                        client.recv(4096)
                        client.sendall(random.Random(2).randbytes(20000))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def wait_for(condition: object, seconds: float, what: str) -> float:
    """Seconds until ``condition()``; fails after ``seconds``."""
    started = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - started
