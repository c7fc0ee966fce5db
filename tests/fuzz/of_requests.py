"""Damaged HTTP requests to the live page, over a real socket."""

from __future__ import annotations

import logging
import random
import socket
import threading
from contextlib import suppress
from typing import Any

from mutate import mutate_bytes
from target import Target

__all__ = ["Requests"]

REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: a=b\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET /snapshot.jpg?x=%41 HTTP/1.1\r\nHost: 127.0.0.1\r\nRange: bytes=0-9\r\n\r\n",
    b"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 7\r\n\r\n",
    b"GET /stream.mjpg HTTP/1.0\r\nHost: localhost\r\n\r\n",
    b"GET /page.js HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: x\r\nConnection: close\r\n\r\n",
    b"POST /policy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 35\r\n\r\n{"policy": "fixed", "iterations": 2}',
    b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
)
ENDLESS = (b"text/event-stream", b"multipart/")
PATIENCE_S = 5.0


class Errors(logging.Handler):
    """Keeps what the server logs of errors of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.records.append(f"{record.getMessage()}: {error!r}")


class Requests(Target):
    """Each gets an answer or is hung up on; the page is there afterwards."""

    def prepare(self) -> None:
        import numpy as np

        from mdeq_runtime import FixedIterations, Frame, Result, SessionSettings
        from mdeq_runtime.metrics import Metrics
        from mdeq_runtime.web import LivePage, guard

        class Session:
            limit = None
            settings = SessionSettings(FixedIterations())

            def use(self, policy: Any) -> None:
                self.settings = SessionSettings(policy)

            def reset(self, reason: str = "requested") -> None:
                return

        guard.Buckets.take = lambda self, address: True  # who asks too often is tried elsewhere
        self.errors = Errors()
        logging.getLogger().addHandler(self.errors)
        for name in ("uvicorn", "uvicorn.error", "mdeq_runtime", "asyncio"):
            logging.getLogger(name).addHandler(self.errors)
        threading.excepthook = lambda found: self.errors.records.append(repr(found))
        self.page = LivePage("http://127.0.0.1:0", ("sky", "road"), ())
        self.page.begin(Session(), Metrics())
        mask, picture = np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.uint8)
        for index in range(2):
            result = Result(mask, None, 2, 0.1, True, True, "", index=index)
            self.page.write(Frame(picture, index, float(index)), result)
        assert self.ask(REQUESTS[0]).startswith(b"HTTP/1.1 200")

    def case(self, rng: random.Random) -> None:
        data = mutate_bytes(rng, rng.choice(REQUESTS), rng.choice(REQUESTS))
        if rng.random() < 0.1:
            data = b"".join(mutate_bytes(rng, rng.choice(REQUESTS)) for _ in range(3))
        answer = self.ask(data)
        assert not answer or answer.startswith(b"HTTP/1."), answer[:200]
        assert b"Internal Server Error" not in answer
        assert not self.errors.records, self.errors.records
        assert self.ask(REQUESTS[5]).startswith((b"HTTP/1.1 200", b"HTTP/1.1 304"))

    def ask(self, data: bytes) -> bytes:
        """What comes back until the other side is done, or begins a stream that has no end."""
        found = b""
        address = ("127.0.0.1", self.page.port)
        with (
            socket.create_connection(address, timeout=PATIENCE_S) as connection,
            suppress(ConnectionError),
        ):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                found += more
                if any(kind in found[:1000] for kind in ENDLESS):
                    break
        return found

    def finish(self) -> None:
        self.page.close()
        super().finish()
