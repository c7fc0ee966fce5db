"""A service manager for tests: the real datagram socket that systemd would listen on."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Manager:
    """Receives what a service tells; ``address`` is what NOTIFY_SOCKET would be."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.heard: list[str] = []
        self.unread: list[str] = []  # of those, what ``hear`` has not looked at

    def listen(self, seconds: float = 0.0) -> list[str]:
        """Messages that came within ``seconds``; those that are there already count."""
        ends, new = time.monotonic() + seconds, []
        while True:
            self.socket.settimeout(max(0.001, ends - time.monotonic()))
            try:
                new.append(self.socket.recv(4096).decode())
            except TimeoutError:
                if time.monotonic() >= ends:
                    self.heard += new
                    self.unread += new
                    return new

    def hear(self, wanted: Callable[[str], bool] | str, seconds: float = 30.0) -> str:
        """The next message that begins so, or is wanted; fails after ``seconds``."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.listen(0.02)
            while self.unread:
                message = self.unread.pop(0)
                if message.startswith(wanted) if isinstance(wanted, str) else wanted(message):
                    return message
        raise AssertionError(f"not within {seconds:g} s: {wanted}; heard {self.heard}")


@contextmanager
def managing(folder: Path | None = None) -> Iterator[Manager]:
    """A manager at a path in ``folder``, or at an abstract name."""
    name = f"@edge-mdeq-{secrets.token_hex(8)}" if folder is None else str(folder / "notify")
    manager = Manager(name)
    try:
        yield manager
    finally:
        manager.socket.close()
