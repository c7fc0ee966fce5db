"""An HTTP server in a thread of its own, which signals and the pipeline know nothing of."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Server"]

REQUEST_S = 10.0  # for the next request to come, from the connection's beginning or the last answer
START_S = 10.0
CLOSE_S = 0.9  # a run ends within a second, whatever viewers do
BESIDE = 32  # connections beside the two of every viewer: reloads, snapshots, scrapers
HEAD = 16 * 1024  # bytes of a request's head at most


class Patient(H11Protocol):
    """Closes a connection over which no request comes, and those beyond a number at once.

    What comes drop by drop is none: neither a head, nor the body of a request that was answered.
    """

    most = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(REQUEST_S, self.give_up, None)
        if len(self.connections) > self.most:
            transport.abort()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP, also where that shows in the body of a request being answered.

        What the app says to it then goes nowhere: a second answer would be an error of the server.
        """
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # it has been answered
            self.transport.close()

    def on_response_complete(self) -> None:
        answered = self.cycle
        super().on_response_complete()  # which may begin with the next request
        self.loop.call_later(REQUEST_S, self.give_up, answered)

    def give_up(self, last: object) -> None:
        """Close it, if nothing was asked since ``last``."""
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


class Server:
    """Serves ``app`` on a listening socket from now until ``close``.

    Args:
        app: an ASGI application.
        listening: the socket; the server closes it.
        viewers: streams of each kind at most.
    """

    def __init__(self, app: ASGIApp, listening: socket.socket, viewers: int) -> None:
        self.listening = listening
        protocol = type("Protocol", (Patient,), {"most": 2 * viewers + BESIDE})
        self.server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=HEAD,
                timeout_graceful_shutdown=1,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not of every port scanner
        self.thread = threading.Thread(target=self.run, name="live page server", daemon=True)
        self.thread.start()
        deadline = time.monotonic() + START_S
        while not self.server.started and self.thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)

    def run(self) -> None:
        asyncio.run(self.server.serve(sockets=[self.listening]))

    def close(self) -> None:
        """Stop serving, within a second; may be called twice."""
        self.server.should_exit = True
        self.thread.join(CLOSE_S)
        self.server.force_exit = True
        self.listening.close()
