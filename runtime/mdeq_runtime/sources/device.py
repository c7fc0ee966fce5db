"""What a live source reads from while it is connected: one opened camera or stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import SourceError, require

__all__ = ["Device", "OpenCVDevice", "Opening", "RefusedError"]

Image = NDArray[np.uint8]


class RefusedError(SourceError):
    """Turned away, as by a wrong password: trying again soon does not help, and may lock."""


class Device(Protocol):
    """One connection. Its calls may block, and are made by one thread alone.

    Attributes:
        fps: frames per second, None where unknown.
        size: (height, width) in pixels, None where unknown.
    """

    fps: float | None
    size: tuple[int, int] | None

    def read(self) -> Image | None:
        """The next picture (h, w, 3) uint8 BGR; None when the stream has ended.

        Raises:
            SourceError: it failed.
        """
        ...

    def release(self) -> None:
        """Let go of it."""
        ...


Opening = Callable[[threading.Event], Device]  # raises SourceError; the event: nobody waits for it


class OpenCVDevice:
    """An opened ``cv2.VideoCapture``.

    Args:
        capture: it.
        failure: what it means when no picture comes, raised as an error; "" if that is an end.
    """

    def __init__(self, capture: Any, failure: str = "") -> None:
        cv2 = require("cv2", "camera", "reading cameras")
        self.capture, self._failure = capture, failure
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.fps: float | None = fps if 0 < fps < 1000 else None
        self.size: tuple[int, int] | None = (height, width) if min(height, width) > 0 else None

    def read(self) -> Image | None:
        """The next picture; None, or an error, when there is none."""
        done, image = self.capture.read()
        if done:
            return image  # type: ignore[no-any-return]
        if self._failure:
            raise SourceError(self._failure)
        return None

    def release(self) -> None:
        """Close it; OpenCV crashes if another thread is reading meanwhile."""
        self.capture.release()
