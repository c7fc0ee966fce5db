"""The live page as an output of a run."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from functools import partial

from edge_mdeq.errors import SinkError, require
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.overlay import Palette
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sensors import Sensors
from mdeq_runtime.sinks.base import Sink
from mdeq_runtime.sources.base import pixels
from mdeq_runtime.web.address import is_loopback, listen, parse_address, reachable_host
from mdeq_runtime.web.figures import Figures
from mdeq_runtime.web.picture import encode
from mdeq_runtime.web.publisher import Publisher

__all__ = ["TOKEN_VARIABLE", "LivePage"]

TOKEN_VARIABLE = "EDGE_MDEQ_TOKEN"
SHORTEST = 16  # characters of a token that is given
CODE = 25_000_000  # bytes: Starlette, uvicorn, prometheus-client and two threads
SNAPSHOT_QUALITY = 95


class LivePage(Sink):
    """Shows a run in any browser that is let in, at ``http://HOST:PORT``.

    ``write`` only leaves the newest result to another thread, so viewers cannot slow a run, and
    without viewers nothing is drawn or encoded.

    Attributes:
        url: what to open; it holds the token if that was made here.
        token: what viewers must know; None where only this machine can reach the page.
    """

    def __init__(
        self,
        uri: str,
        labels: Sequence[str],
        palette: Palette,
        sensors: Sensors | None = None,
    ) -> None:
        """Serve the page from now on.

        Args:
            uri: ``http://HOST:PORT?NAME=VALUE``; see ``address.PageAddress``.
            labels, palette: a name and an RGB colour per class.
            sensors: temperatures and power; None: this machine's.

        Raises:
            SinkError: the address makes no sense, or cannot be listened on; or the token in
                EDGE_MDEQ_TOKEN is too short.
            MissingExtraError: Starlette or uvicorn is not installed.
        """
        self.address = address = parse_address(uri)
        for module in ("starlette", "uvicorn", "h11", "prometheus_client"):
            require(module, "web", "the live page")
        from mdeq_runtime.web.app import make_app
        from mdeq_runtime.web.guard import Guard
        from mdeq_runtime.web.server import Server

        local = is_loopback(address.host)
        given = find_token()
        self.token = given or (None if local else secrets.token_urlsafe(24))
        listening = listen(address)
        self.port = int(listening.getsockname()[1])
        self.url = f"http://{reachable_host(address.host)}:{self.port}/"
        if self.token and not given:
            self.url += f"?token={self.token}"
        encoding = partial(encode, labels=tuple(labels), palette=tuple(palette))
        self.full = partial(encoding, quality=SNAPSHOT_QUALITY)
        # the page has them beside the picture
        small = partial(encoding, quality=address.quality, width=address.width, numbers=False)
        self.figures = Figures(labels, palette, sensors)
        self.publisher = Publisher(small, self.figures, address.rate)
        app = make_app(self.publisher, self.snapshot, address.viewers, address.controls)
        names = {"localhost", *address.names}
        if not local:
            host = socket.gethostname()
            names |= {host, host.partition(".")[0], f"{host.partition('.')[0]}.local"}
            names.add(address.host)
        guarded = Guard(app, self.token, names, not local, self.port)
        self.server = Server(guarded, listening, address.viewers)

    def begin(self, session: object, metrics: Metrics) -> None:
        """Show and control this session, and count by these metrics."""
        self.figures.session, self.figures.metrics = session, metrics

    def write(self, frame: Frame, result: Result) -> bool:
        """Leave a result to the viewers; always asks to go on."""
        self.publisher.offer(frame, result)
        return True

    def snapshot(self) -> bytes | None:
        """The newest annotated frame as JPEG, in its own size; None before the first."""
        newest = self.publisher.newest
        return None if newest is None else self.full(*newest)

    def holding(self, size: tuple[int, int] | None) -> int:
        """The code, the newest frame and its mask, it drawn twice, and its JPEGs."""
        return CODE + (4 + 2 * 3 + 2) * pixels(size)

    def close(self) -> None:
        """End all streams and stop serving."""
        self.publisher.close()
        self.server.close()


def find_token() -> str | None:
    """The token that the environment gives, if it does.

    Raises:
        SinkError: it is too short to be one.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if token and len(token) < SHORTEST:
        raise SinkError(
            f"the token in {TOKEN_VARIABLE} has {len(token)} characters, needs {SHORTEST} or more; "
            "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token or None
