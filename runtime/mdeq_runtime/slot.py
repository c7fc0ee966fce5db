"""Between a source and its consumer: the newest frame for live sources, every frame for files.

A camera does not wait. While a frame is being worked on, a capture thread keeps reading and keeps
only the newest frame, unless another policy is asked for; what was never looked at is counted as
dropped. Files wait, so they are read directly in the consumer's thread and nothing is dropped.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from edge_mdeq.errors import SourceError
from mdeq_runtime.frame_slot import FrameSlot, SlotPolicy
from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source

__all__ = ["Capture", "FrameSlot", "SlotPolicy", "capture"]

POLL_S = 0.1  # how soon a waiting reader notices that it should stop
JOIN_S = 0.5  # how long leaving waits for a capture thread that may be stuck in a driver
STALL_S = 20.0  # longer than OpenCV's own 10 s timeout for V4L2


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
    source: Source,
    *,
    policy: SlotPolicy = SlotPolicy.DROP_OLDEST,
    stall_s: float = STALL_S,
    changed: threading.Condition | None = None,
) -> Iterator[Capture]:
    """Read ``source`` by the policy that fits it; leaves ``source`` open.

    Leaving takes at most ``JOIN_S`` even when the source blocks: its daemon thread is left behind.

    Args:
        source: an opened source.
        policy: what happens to frames of a live source that nobody takes in time.
        stall_s: seconds without a frame after which a live source counts as broken, at least
            three of its own periods; unless it is one that mends itself (``Source.patient``).
        changed: notified of every frame of a live source, and of its end.

    Raises (from ``read``):
        SourceError: the source failed, or a live one delivered nothing for ``stall_s``.
    """
    if not source.live:
        yield _Direct(source)
        return
    slot = FrameSlot(policy, changed)
    limit = math.inf if source.patient else max(stall_s, 3.0 / (source.fps or math.inf))
    if source.feed(slot):
        try:
            yield _Live(slot, source.description, limit)
        finally:
            slot.close()
        return
    stopping = threading.Event()
    name = f"capture {source.description}"
    thread = threading.Thread(target=_fill, args=(slot, source, stopping), name=name, daemon=True)
    thread.start()
    try:
        yield _Live(slot, source.description, limit)
    finally:
        stopping.set()
        slot.close()
        thread.join(JOIN_S)


def _fill(slot: FrameSlot, source: Source, stopping: threading.Event) -> None:
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
    def __init__(self, slot: FrameSlot, description: str, stall_s: float) -> None:
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
