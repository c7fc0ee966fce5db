"""Between a source and its consumer: the newest frame for live sources, every frame for files.

A camera does not wait. While a frame is being worked on, a capture thread keeps reading and keeps
only the newest frame; what was never looked at is counted as dropped. Files wait, so they are read
directly in the consumer's thread and nothing is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from edge_mdeq.errors import SourceError
from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source

__all__ = ["Capture", "LatestFrame", "capture"]

POLL_S = 0.1  # how soon a waiting reader notices that it should stop
JOIN_S = 0.5  # how long leaving waits for a capture thread that may be stuck in a driver
STALL_S = 20.0  # longer than OpenCV's own 10 s timeout for V4L2


class LatestFrame:
    """A thread-safe slot for one frame, in which the newest wins.

    Args:
        changed: notified of every frame; several slots may share one, for a reader of them all.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self._changed = threading.Condition() if changed is None else changed
        self._frame: Frame | None = None
        self._error: Exception | None = None
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many frames were replaced before anybody took them."""
        with self._changed:
            return self._dropped

    def put(self, frame: Frame) -> None:
        """Offer a frame; it replaces one that nobody took. Ignored once closed."""
        with self._changed:
            if self._closed:
                return
            self._dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Frame | None:
        """Wait for a frame and take it; None when the slot is closed and empty.

        Raises:
            TimeoutError: nothing came within ``timeout`` seconds.
            Exception: the error that the slot was closed with, once the last frame was taken.
        """
        with self._changed:
            if not self._changed.wait_for(self.ready, timeout):
                raise TimeoutError(f"no frame within {timeout} s")
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def close(self, error: Exception | None = None) -> None:
        """Let no more frames in; ``error`` is raised in the consumer. The first call counts."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
                self._changed.notify_all()

    def ready(self) -> bool:
        """Whether ``get`` would not wait."""
        with self._changed:
            return self._frame is not None or self._closed


class Capture(Protocol):
    """Frames of a source as a consumer takes them."""

    @property
    def dropped(self) -> int:
        """How many frames were captured but never read."""
        ...

    def ready(self) -> bool:
        """Whether ``read`` would not wait."""
        ...

    def read(self, stop: threading.Event | None = None) -> Frame | None:
        """The next frame; None at the end, or soon after ``stop`` was set."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """Every frame that ``read`` gives."""
        while (frame := self.read()) is not None:
            yield frame


@contextmanager
def capture(
    source: Source, *, stall_s: float = STALL_S, changed: threading.Condition | None = None
) -> Iterator[Capture]:
    """Read ``source`` by the policy that fits it; leaves ``source`` open.

    Leaving takes at most ``JOIN_S`` even when the source blocks: its daemon thread is left behind.

    Args:
        source: an opened source.
        stall_s: seconds without a frame after which a live source counts as broken.
        changed: notified of every frame of a live source, and of its end.

    Raises (from ``read``):
        SourceError: the source failed, or a live one delivered nothing for ``stall_s``.
    """
    if not source.live:
        yield _Direct(source)
        return
    slot = LatestFrame(changed)
    stopping = threading.Event()
    name = f"capture {source.description}"
    thread = threading.Thread(target=_fill, args=(slot, source, stopping), name=name, daemon=True)
    thread.start()
    try:
        yield _Live(slot, source.description, stall_s)
    finally:
        stopping.set()
        slot.close()
        thread.join(JOIN_S)


def _fill(slot: LatestFrame, source: Source, stopping: threading.Event) -> None:
    """The capture thread: any error goes to the consumer."""
    try:
        while not stopping.is_set():
            frame = source.read()
            if frame is None:
                break
            slot.put(frame)
        slot.close()
    except Exception as error:
        slot.close(error)


class _Direct(Capture):
    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def dropped(self) -> int:
        return 0

    def ready(self) -> bool:
        return True

    def read(self, stop: threading.Event | None = None) -> Frame | None:
        if stop is not None and stop.is_set():
            return None
        return self._source.read()


class _Live(Capture):
    def __init__(self, slot: LatestFrame, description: str, stall_s: float) -> None:
        self._slot = slot
        self._description = description
        self._stall_s = stall_s
        self._since = time.monotonic()  # the last frame was taken

    @property
    def dropped(self) -> int:
        return self._slot.dropped

    def ready(self) -> bool:
        return self._slot.ready() or self._stalled()

    def _stalled(self) -> bool:
        return time.monotonic() >= self._since + self._stall_s

    def read(self, stop: threading.Event | None = None) -> Frame | None:
        while stop is None or not stop.is_set():
            try:
                frame = self._slot.get(timeout=POLL_S)
                self._since = time.monotonic()
                return frame
            except TimeoutError:
                if self._stalled():
                    raise SourceError(
                        f"{self._description} delivered no frame for {self._stall_s:g} s; "
                        "check its cable and that no other program uses it, then start again"
                    ) from None
        return None
