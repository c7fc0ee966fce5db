"""The thread between the pipeline and the viewers: it encodes, and gathers figures."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mdeq_runtime.results import Frame, Result
from mdeq_runtime.web.broadcast import Broadcast
from mdeq_runtime.web.figures import EVERY_S, Figures
from mdeq_runtime.web.ring import Ring

__all__ = ["BOUNDARY", "Publisher"]

log = logging.getLogger(__name__)

BOUNDARY = b"frame"
HISTORY = 240  # events, two minutes of them, for whoever opens the page
EVENT_BYTES = 1536  # of a busy one; the average has 860


class Publisher:
    """Encodes the newest frame, at most so often, and only while somebody watches.

    Args:
        encode: an annotated frame as JPEG.
        figures: what the charts are drawn from.
        rate: frames per second at most.

    Attributes:
        frames: parts of a multipart stream, each with the boundary that ends it.
        events: server-sent events.
    """

    def __init__(
        self, encode: Callable[[Frame, Result], bytes], figures: Figures, rate: float
    ) -> None:
        self.encode, self.figures, self.period = encode, figures, 1.0 / rate
        self.frames = Broadcast(deque(maxlen=1), on_first=self.refresh)
        self.events = Broadcast(Ring(HISTORY, HISTORY * EVENT_BYTES))
        self.changed = threading.Condition()
        self.newest: tuple[Frame, Result] | None = None
        self.fresh = False  # nobody has seen the newest
        self.hungry = False  # whether the thread waits for a frame
        self.closing = self.failing = False
        self.thread = threading.Thread(target=self.run, name="live page", daemon=True)
        self.thread.start()

    def offer(self, frame: Frame, result: Result) -> None:
        """Take the newest frame; from the pipeline's thread, which this never holds up."""
        self.figures.add(result)
        with self.changed:
            self.newest, self.fresh = (frame, result), True
            if self.hungry:
                self.changed.notify_all()

    def refresh(self) -> None:
        """Somebody watches after nobody did: what was encoded last is old."""
        self.frames.forget()
        with self.changed:
            self.fresh = self.newest is not None
            self.changed.notify_all()

    def close(self) -> None:
        """End the thread and all streams."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.thread.join(0.3)
        self.frames.close()
        self.events.close()

    def run(self) -> None:
        """Encode when a frame is there and it is time to, and tell figures every so often."""
        due = told = time.monotonic()
        while not self.closing:
            now = time.monotonic()
            if now >= told:
                self.tell()
                told = max(told + EVERY_S, now)
            with self.changed:
                watched = self.frames.followers > 0
                job = self.newest if watched and self.fresh and now >= due else None
                if job is None:
                    self.hungry = watched and not self.fresh
                    until = due if watched and self.fresh else told
                    if not self.closing:
                        self.changed.wait(max(0.0, min(until, told) - now))
                    self.hungry = False
                    continue
                self.fresh = False
            due = max(due + self.period, now)
            self.show(*job)

    def show(self, frame: Frame, result: Result) -> None:
        """Publish a frame; a failure is said once, and the page goes on with its figures."""
        try:
            data = self.encode(frame, result)
        except Exception as error:
            if not self.failing:
                log.warning("the live page cannot show frame %d: %s", frame.index, error)
            self.failing = True
            return
        head = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
        # browsers show a part when they see its end
        self.frames.publish(head + data + b"\r\n--" + BOUNDARY + b"\r\n")

    def tell(self) -> None:
        newest = self.newest
        try:
            self.events.publish(
                self.figures.event(newest[1] if newest else None, self.frames.followers)
            )
        except Exception as error:
            if not self.failing:
                log.warning("the live page cannot tell how the run is doing: %s", error)
            self.failing = True
