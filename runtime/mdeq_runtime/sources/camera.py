"""Cameras through OpenCV: an index, or a V4L2 device on Linux.

A camera's ``read`` may block inside the driver, and releasing the device meanwhile from another
thread crashes OpenCV. ``close`` therefore waits only shortly for a read to end; if it does not, the
reading thread itself releases the device as soon as the driver gives it back.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge_mdeq.errors import SourceError, require
from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source, pixels

__all__ = ["Camera", "open_camera"]

CLOSE_WAIT_S = 0.3


def open_camera(device: str) -> Camera:
    """Open camera ``device``: an index ("0") or a path ("/dev/video0", "/dev/v4l/by-id/...").

    Raises:
        SourceError: no such camera, no permission, or it does not open.
    """
    index = _index_of(device)
    path = Path(f"/dev/video{index}")
    if sys.platform.startswith("linux"):
        _check_device(path)
        description = f"USB camera {path}"
    else:
        description = f"camera {index}"
    cv2 = require("cv2", "camera", "reading cameras")
    backend = cv2.CAP_V4L2 if sys.platform.startswith("linux") else cv2.CAP_ANY
    capture = cv2.VideoCapture(index, backend)
    if not capture.isOpened():
        raise SourceError(
            f"{description} cannot be opened: another program may be using it, or it is not a "
            f"capture device; try: v4l2-ctl --device {path} --all"
        )
    return Camera(capture, description)


def _index_of(device: str) -> int:
    name = os.path.realpath(device) if device.startswith("/") else device
    match = re.fullmatch(r"(?:/dev/video)?([0-9]+)", name)
    if match is None:
        raise SourceError(
            f"{device!r} is not a camera; write an index (0) or a device (v4l2:///dev/video0)"
        )
    return int(match[1])


def _check_device(path: Path) -> None:
    """Say what is wrong before OpenCV only says that it did not open."""
    if not path.exists():
        found = ", ".join(sorted(str(device) for device in Path("/dev").glob("video*")))
        raise SourceError(
            f"there is no camera {path} (found: {found or 'none'}); plug it in, or choose another"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(
            f"no permission to use camera {path}; add the user to its group, usually with: "
            "sudo usermod -aG video $USER"
        )


class Camera(Source):
    """An opened camera; timestamps are the monotonic clock when a frame arrived."""

    live = True

    def __init__(self, capture: Any, description: str) -> None:
        """Take over an opened ``cv2.VideoCapture``."""
        cv2 = require("cv2", "camera", "reading cameras")
        self.description = description
        self._capture = capture
        self._index = 0
        self._closed = False
        self._reading = threading.Lock()
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.fps: float | None = fps if fps > 0 else None
        self.size: tuple[int, int] | None = (height, width) if min(height, width) > 0 else None

    def read(self) -> Frame | None:
        """Wait for the next frame; None once closed.

        Raises:
            SourceError: the camera stopped delivering.
        """
        with self._reading:
            if self._closed:
                self._capture.release()
                return None
            done, image = self._capture.read()
            if self._closed:
                self._capture.release()
                return None
        if not done:
            raise SourceError(
                f"{self.description} stopped delivering after {self._index} frames; it may have "
                "been unplugged or lost power: check the cable, then start again"
            )
        frame = Frame(image, self._index, time.monotonic())
        self._index += 1
        return frame

    def holding(self) -> int:
        """Frames: one is captured while another waits, and the driver fills up to four."""
        return 6 * 3 * pixels(self.size)

    def close(self) -> None:
        """Release the device, now or as soon as a read that is under way comes back."""
        self._closed = True
        if self._reading.acquire(timeout=CLOSE_WAIT_S):
            try:
                self._capture.release()
            finally:
                self._reading.release()
