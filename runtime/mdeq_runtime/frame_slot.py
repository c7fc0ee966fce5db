"""A slot for one frame, between the thread that captures and the one that answers."""

from __future__ import annotations

import threading
from enum import Enum

from mdeq_runtime.results import Frame

__all__ = ["FrameSlot", "SlotPolicy"]


class SlotPolicy(str, Enum):
    """What happens to a new frame while the last one was not taken yet.

    ``DROP_OLDEST``: it takes its place, so that the newest is answered. ``DROP_LATEST``: it is
    dropped. ``WAIT``: the source waits; nothing is dropped here, and a camera's frames grow old.
    """

    DROP_OLDEST = "drop-oldest"
    DROP_LATEST = "drop-latest"
    WAIT = "wait"


class FrameSlot:
    """A thread-safe slot for one frame.

    Args:
        policy: what happens to a frame when there is one already.
        changed: notified of every frame; several slots may share one, for a reader of them all.
    """

    def __init__(
        self,
        policy: SlotPolicy = SlotPolicy.DROP_OLDEST,
        changed: threading.Condition | None = None,
    ) -> None:
        self._policy = policy
        self._changed = threading.Condition() if changed is None else changed
        self._frame: Frame | None = None
        self._error: Exception | None = None
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """How many frames nobody took."""
        with self._changed:
            return self._dropped

    def put(self, frame: Frame) -> None:
        """Offer a frame. Ignored once closed, which also ends a wait."""
        with self._changed:
            if self._policy is SlotPolicy.WAIT:
                self._changed.wait_for(lambda: self._closed or self._frame is None)
            if self._closed:
                return
            if self._frame is not None:
                self._dropped += 1
                if self._policy is SlotPolicy.DROP_LATEST:
                    return
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
            if self._policy is SlotPolicy.WAIT:
                self._changed.notify_all()
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
