"""Tells a service manager that frames are answered, and what they are like.

A camera that is away is a state of its source, which mends itself: the service is alive. A frame
that is never done, or a source that claims to be well and gives none, is a hang: then the watchdog
hears nothing more, and the manager starts the service again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mdeq_runtime.metrics import Metrics
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.service.notify import Notifier
from mdeq_runtime.sources.status import Picture, State

__all__ = ["Heartbeat"]

STATUS_S = 1.0  # between two lines of status, at least
JOIN_S = 0.5


class Heartbeat:
    """A thread beside the pipeline. It starts with ``begin`` and ends with ``close``.

    Args:
        notifier: whom to tell.
        metrics: of the run; knows its source.
        clock: seconds that only grow.

    Attributes:
        busy: whether a frame is being answered; else one is waited for.
        since: when that began.
    """

    def __init__(
        self,
        notifier: Notifier,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.notifier, self.metrics, self.clock = notifier, metrics, clock
        self.busy, self.since = False, clock()
        self.residual: float | None = None
        self.told = (self.since, 0)  # when status was told, and the frames until then
        self.stopped, self.ending = False, threading.Event()
        self.thread = threading.Thread(target=self.run, name="heartbeat", daemon=True)

    def begin(self) -> None:
        """All is open: the service is ready, though its camera may be away."""
        if self.notifier:
            self.notifier.ready()
            self.since = self.clock()
            self.thread.start()

    def taken(self, frame: Frame) -> None:
        """A frame is about to be answered."""
        self.since, self.busy = self.clock(), True

    def answered(self, result: Result) -> None:
        """The outputs have the answer as well; the next frame is waited for."""
        self.residual = result.residual
        self.since, self.busy = self.clock(), False

    def alive(self) -> bool:
        """Whether frames are answered, or there is a good reason why there are none."""
        allowed = (self.notifier.watchdog_s or 0.0) / 2
        if self.clock() - self.since <= allowed:
            return True
        source = self.metrics.source
        return not self.busy and source is not None and source.status.state is not State.OK

    def status(self) -> str:
        """Frames per second since it was last told, the residual, and the source's state."""
        (then, before), now, frames = self.told, self.clock(), self.metrics.frames
        self.told = now, frames
        said = f"{(frames - before) / max(now - then, 1e-9):.1f} frames/s"
        if self.residual is not None:
            said += f", residual {self.residual:.3g}"
        if self.metrics.source is not None:
            status = self.metrics.source.status
            said += f", source {status.state.value}"
            if status.picture is not Picture.OK:
                said += f" ({status.picture.value} pictures)"
            if status.detail:
                said += f": {status.detail}"
        return said

    def run(self) -> None:
        """Twice as often as the watchdog asks for, as it is advised; status once a second."""
        limit = self.notifier.watchdog_s
        period = STATUS_S if limit is None else min(STATUS_S, limit / 2)
        due = beat = self.clock()
        while not self.stopped:
            now = self.clock()
            if limit is not None and now >= beat and self.alive():
                self.notifier.alive()
                beat = now + limit / 2 - period
            if now >= due:
                self.notifier.status(self.status())
                due = now + STATUS_S
            self.ending.wait(period)

    def stop(self) -> None:
        """The run is about to end, and from now on there is nothing to tell.

        Takes no lock, so that a signal handler may call it whatever it has interrupted.
        """
        if self.thread.ident is not None and not self.stopped:
            self.stopped = True
            self.notifier.stopping()

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self.stop()
        self.ending.set()
        if self.thread.ident is not None:
            self.thread.join(JOIN_S)

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
