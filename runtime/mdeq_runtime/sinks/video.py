"""An annotated video file.

Frames go to a temporary sibling that is renamed when it is closed, however the run ended: the final
name always holds a video that plays. OpenCV's writer reports few failures of its own, so the disk
is watched while writing and the file is read back when it is closed.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_mdeq.errors import SinkError, require
from edge_mdeq.fitting import fit_image, plan_fit
from mdeq_runtime.overlay import Image, Palette, draw
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_file, check_folder
from mdeq_runtime.sources.base import pixels

__all__ = ["CODECS", "VideoSink"]

CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
ENCODER, LOOKAHEAD = 9_000_000, 13  # bytes of code, frames
DEFAULT_FPS = 25.0
MAX_FPS = 240.0
MAX_REPEATS = 300  # frames; a longer gap is shortened
COUNT_SLACK = 2  # frames; some backends work the count out from the duration
RESERVE_BYTES = 8 * 2**20  # left free, so that the video's index can still be written


class VideoSink(Sink):
    """Writes annotated frames as .mp4 (mp4v) or .avi (MJPG).

    The first frame sets the size, later ones of another size are letterboxed. Where a live source
    dropped frames the last one is repeated, so that the video plays at the speed of life.
    """

    def __init__(
        self, path: Path, fps: float | None, labels: Sequence[str], palette: Palette
    ) -> None:
        """Check that ``path`` can be written; the writer opens with the first frame.

        Raises:
            SinkError: a folder is in its place, or its parent cannot be made or written.
        """
        self._cv2: Any = require("cv2", "camera", "writing video files")
        self._path = self.place = path
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._fps = _sound_fps(fps)
        self._labels, self._palette = tuple(labels), tuple(palette)
        self._writer: Any = None
        self._size = (0, 0)
        self._frames = 0
        self._failed = False  # said once, not again when closing
        self._last: tuple[int, Image] | None = None
        check_file(path)
        check_folder(path.parent)  # the temporary sibling needs it, whatever is there

    def write(self, frame: Frame, result: Result) -> bool:
        """Draw the result on its frame and append it.

        Raises:
            SinkError: no writer for this codec, or the disk is full.
        """
        image = draw(frame.image, result, self._labels, self._palette)
        if self._writer is None:
            self._size = (image.shape[0], image.shape[1])
            self._writer = self._open()
        if image.shape[:2] != self._size:
            fit = plan_fit((image.shape[0], image.shape[1]), self._size, "letterbox")
            image = fit_image(image, fit)
        if self._last is not None:
            index, previous = self._last
            for _ in range(min(frame.index - index - 1, MAX_REPEATS)):
                self._append(previous)
        self._append(image)
        self._last = (frame.index, image)
        return True

    def holding(self, size: tuple[int, int] | None) -> int:
        """Two annotated frames, and the encoder's own in YUV with half the chroma.

        Measured: 46 MB at 1920 x 1080, and 8 MB of code.
        """
        return ENCODER + int((2 * 3 + 1.5 * LOOKAHEAD) * pixels(size))

    def close(self) -> None:
        """Finish the video and give it its name; nothing is left if no frame came.

        Raises:
            SinkError: what is on the disk is not the video that was written.
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
            else:
                self._temporary.unlink()
        except OSError as error:
            self._writer = None
            self._temporary.unlink(missing_ok=True)
            raise self._failure(f"{error.strerror}") from error
        self._writer = None
        if arrived + COUNT_SLACK < self._frames and not self._failed:
            raise self._failure(f"{arrived} of {self._frames} frames arrived, the disk may be full")

    def _open(self) -> Any:
        codec = CODECS[self._path.suffix.lower()]
        code = self._cv2.VideoWriter.fourcc(*codec)
        height, width = self._size
        writer = self._cv2.VideoWriter(str(self._temporary), code, self._fps, (width, height))
        if not writer.isOpened():
            self._temporary.unlink(missing_ok=True)
            other = next(suffix for suffix in CODECS if suffix != self._path.suffix.lower())
            raise self._failure(
                f"OpenCV has no writer for codec {codec} at {width}x{height} here; try {other}"
            )
        return writer

    def _append(self, image: Image) -> None:
        if shutil.disk_usage(self._path.parent).free < RESERVE_BYTES:
            raise self._failure("the disk is full")
        if self._writer.write(image) is False:  # OpenCV 5; OpenCV 4 gives None always
            raise self._failure("a frame could not be written, the disk may be full")
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

    def _failure(self, what: str) -> SinkError:
        self._failed = True
        return SinkError(f"cannot write video {self._path}: {what}; free space or write elsewhere")


def _sound_fps(fps: float | None) -> float:
    """A rate that codecs accept; some cameras and files claim 0 or 90000."""
    if fps is None or not math.isfinite(fps) or not 0.05 <= fps <= MAX_FPS:
        return DEFAULT_FPS
    return fps
