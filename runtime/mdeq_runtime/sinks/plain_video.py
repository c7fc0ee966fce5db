"""A video file as OpenCV writes it, for formats that it has no fragments for.

Frames go to a temporary sibling that is renamed when it is closed, however the run ended. OpenCV's
writer reports few failures of its own, so the disk is watched while writing and the file is read
back when it is closed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from edge_mdeq.files import sync_folder
from mdeq_runtime.overlay import Image
from mdeq_runtime.sinks.fragments import part_of

__all__ = ["PlainVideo"]

MAX_REPEATS = 300  # frames; a longer gap is shortened
COUNT_SLACK = 2  # frames; some backends work the count out from the duration
RESERVE_BYTES = 8 * 2**20  # left free, so that the video's index can still be written


class PlainVideo:
    """A video at a constant rate: a frame is repeated until the next one's time.

    Args:
        cv2: OpenCV.
        path: of the video.
        fps: frames per second.
        size: (height, width).
        codec: four letters.

    Raises:
        ValueError: OpenCV has no writer for the codec.
    """

    def __init__(self, cv2: Any, path: Path, fps: float, size: tuple[int, int], codec: str) -> None:
        self._cv2, self._path, self._fps = cv2, path, fps
        self._temporary = part_of(path, "video")
        self._frames = 0
        self._failed = False  # said once, not again when closing
        self._last: tuple[float, Image] | None = None
        code = cv2.VideoWriter.fourcc(*codec)
        self._writer = cv2.VideoWriter(str(self._temporary), code, fps, size[::-1])
        if not self._writer.isOpened():
            self._temporary.unlink(missing_ok=True)
            raise ValueError("no writer")

    def append(self, image: Image, time: float) -> None:
        """Add one frame (h, w, 3) uint8 BGR, ``time`` seconds after the beginning.

        Raises:
            OSError: the disk is full.
        """
        if self._last is not None:
            before, previous = self._last
            for _ in range(min(round((time - before) * self._fps) - 1, MAX_REPEATS)):
                self._write(previous)
        self._write(image)
        self._last = (time, image)

    def close(self) -> None:
        """Finish the video and give it its name. May be called again.

        Raises:
            OSError: what is on the disk is not the video that was written.
        """
        if self._writer is None:
            return
        self._writer.release()  # a second time, after Ctrl-C in here, is harmless
        try:
            arrived = self._count()
            if arrived:
                with self._temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._temporary, self._path)
                sync_folder(self._path.parent)
            else:
                self._temporary.unlink()
        except OSError:
            self._writer = None
            self._temporary.unlink(missing_ok=True)
            raise
        self._writer = None
        if arrived + COUNT_SLACK < self._frames and not self._failed:
            raise OSError(None, f"{arrived} of {self._frames} frames arrived, the disk may be full")

    def _write(self, image: Image) -> None:
        full = shutil.disk_usage(self._path.parent).free < RESERVE_BYTES
        # OpenCV 5 says whether it could; OpenCV 4 gives None always
        if full or self._writer.write(image) is False:
            self._failed = True
            raise OSError(None, "the disk is full" if full else "a frame could not be written")
        self._frames += 1

    def _count(self) -> int:
        """How many frames the file holds; 0 if not even one can be read."""
        video = self._cv2.VideoCapture(str(self._temporary))
        try:
            count = int(video.get(self._cv2.CAP_PROP_FRAME_COUNT))
            if count > 0:
                return count  # from the index: decoding a frame would cost 5 MB more at the end
            count = 0
            while video.grab():
                count += 1
            return count
        finally:
            video.release()
