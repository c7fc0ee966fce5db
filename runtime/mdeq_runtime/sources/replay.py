"""Files that start again when they end, and files that are played as if they were cameras."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edge_mdeq.errors import ConfigError
from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.orient import orienting, turns

__all__ = ["Looped", "Realtime", "Turned"]

CLOSE_WAIT_S = 0.3  # for a read that is under way


class Around(Source):
    """A source that does something to another one's frames."""

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.live, self.fps, self.size = inner.live, inner.fps, inner.size
        self.description = inner.description
        self.files: Sequence[Path] = inner.files

    def holding(self) -> int:
        """As the other one."""
        return self._inner.holding()

    def close(self) -> None:
        """Close the other one."""
        self._inner.close()


class Turned(Around):
    """Frames turned by ``flip``."""

    def __init__(self, inner: Source, flip: str) -> None:
        super().__init__(inner)
        self._orient = orienting(flip)
        if self.size is not None and turns(flip):
            self.size = self.size[::-1]

    def read(self) -> Frame | None:
        """The next frame."""
        frame = self._inner.read()
        return None if frame is None else replace(frame, image=self._orient(frame.image))


class Looped(Around):
    """A file, and then again from its beginning; numbers and positions go on.

    Args:
        open_file: opens it, from the beginning.
        times: how often it is repeated, -1: for ever.
    """

    def __init__(self, open_file: Callable[[], Source], times: int) -> None:
        super().__init__(open_file())
        self._open, self._left = open_file, times
        self._epoch = self._index = self._inner_index = 0
        self._at = self._before = self._step = 0.0  # seconds: last frame, earlier rounds, a frame
        self._closed = False

    def read(self) -> Frame | None:
        """The next frame; each round is an epoch: no warm start leads from its end to the next."""
        frame = self._inner.read()
        while frame is None:
            empty = self._inner_index == 0
            if self._closed or self._left == 0 or empty:
                return None
            self._left -= self._left > 0
            self._inner.close()
            self._inner = self._open()
            self._inner_index = 0
            self._before = self._at + self._step
            self._epoch += 1
            frame = self._inner.read()
        self._inner_index = frame.index + 1
        at = self._before + frame.timestamp
        self._step, self._at = max(at - self._at, 0.0) or self._step, at
        self._index += 1
        return replace(frame, index=self._index - 1, timestamp=at, epoch=self._epoch)

    def close(self) -> None:
        """Close it; no further round."""
        self._closed = True
        super().close()


class Realtime(Around):
    """A file as a camera: each frame comes at its time, and is dropped if nobody takes it.

    Args:
        inner: the file.
        rate: frames per second; None: as the file says.

    Raises:
        ConfigError: neither is known.
    """

    def __init__(self, inner: Source, rate: float | None) -> None:
        super().__init__(inner)
        self.live, self.fps = True, rate or inner.fps
        if self.fps is None:
            raise ConfigError(
                f"{inner.description} has no rate to be played at; add --input-rate 10"
            )
        self._closed = threading.Event()
        self._reading = threading.Lock()  # a file must not be closed while it is read
        self._started: float | None = None

    def read(self) -> Frame | None:
        """The next frame, when its time has come."""
        with self._reading:
            frame = None if self._closed.is_set() else self._inner.read()
        if frame is None or self.fps is None:
            return None
        if self._started is None:
            self._started = time.monotonic() - frame.index / self.fps
        due = self._started + frame.index / self.fps
        if self._closed.wait(max(0.0, due - time.monotonic())):
            return None
        return replace(frame, captured=time.monotonic())

    def close(self) -> None:
        """Let a waiting ``read`` return None."""
        self._closed.set()
        if self._reading.acquire(timeout=CLOSE_WAIT_S):  # else a network or a disk holds it
            try:
                super().close()
            finally:
                self._reading.release()
