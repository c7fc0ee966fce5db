"""An annotated video file: fragments in .mp4, which survive a power cut, or a plain .avi."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edge_mdeq.errors import SinkError, require
from edge_mdeq.fitting import fit_image, plan_fit
from mdeq_runtime.overlay import Palette, draw
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks.base import Sink, check_file, check_folder
from mdeq_runtime.sinks.fragments import FRAGMENT_S, FragmentedVideo, remove_leftovers
from mdeq_runtime.sinks.plain_video import PlainVideo
from mdeq_runtime.sources.base import pixels

__all__ = ["CODECS", "VideoSink", "sound_fps"]

CODECS = {".avi": "MJPG", ".mp4": "mp4v"}
ENCODER, LOOKAHEAD = 12_000_000, 13  # bytes of code, frames
CODED = 0.06  # bytes a pixel and frame, of a lively video
DEFAULT_FPS = 25.0
MAX_FPS = 240.0
MAX_GAP_S = 10.0  # a longer one, as of a camera that was away, is shortened


class VideoSink(Sink):
    """Writes annotated frames as .mp4 (mp4v) or .avi (MJPG).

    The first frame sets the size, later ones of another size are letterboxed. Where a live source
    dropped frames the last one is shown longer, so that the video plays at the speed of life.
    """

    queue = 4

    def __init__(
        self, path: Path, fps: float | None, labels: Sequence[str], palette: Palette
    ) -> None:
        """Check that ``path`` can be written; the writer opens with the first frame.

        Raises:
            SinkError: a folder is in its place, or its parent cannot be made or written.
        """
        self._cv2: Any = require("cv2", "camera", "writing video files")
        self._path = self.place = path
        self._fps = sound_fps(fps)
        self._labels, self._palette = tuple(labels), tuple(palette)
        self._video: FragmentedVideo | PlainVideo | None = None
        self._size = (0, 0)
        self._time = 0.0  # of the last frame in the video, seconds
        self._last: Frame | None = None  # without its picture
        check_file(path)
        check_folder(path.parent)  # the temporary sibling needs it, whatever is there

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool]:
        """To be written later; a confidence map is not shown, so it is not kept either."""
        return partial(self.write, frame, replace(result, confidence=None))

    def write(self, frame: Frame, result: Result) -> bool:
        """Draw the result on its frame and append it.

        Raises:
            SinkError: no writer for this codec, or the disk is full.
        """
        image = draw(frame.image, result, self._labels, self._palette)
        if self._video is None:
            self._size = (image.shape[0], image.shape[1])
            self._video = self._open()
        if image.shape[:2] != self._size:
            fit = plan_fit((image.shape[0], image.shape[1]), self._size, "letterbox")
            image = fit_image(image, fit)
        if self._last is not None:
            self._time += self._since(self._last, frame)
        self._last = replace(frame, image=frame.image[:0])
        try:
            self._video.append(image, self._time)
        except OSError as error:
            raise self._failure(error.strerror) from error
        return True

    def holding(self, size: tuple[int, int] | None) -> int:
        """What waits and is at work, two annotated frames, what the encoder holds, a fragment.

        The encoder's frames are in YUV with half the chroma. Measured at 1920 x 1080.
        """
        frames = 2 * 3 + 1.5 * LOOKAHEAD + (self.queue + 1) * (3 + 1)
        fragment = 2 * FRAGMENT_S * self._fps * CODED
        return ENCODER + int((frames + fragment) * pixels(size))

    def close(self) -> None:
        """Finish the video; nothing is left if no frame came.

        Raises:
            SinkError: what is on the disk is not the video that was written.
        """
        if self._video is None:
            return
        try:
            self._video.close()
        except OSError as error:
            raise self._failure(error.strerror) from error
        self._video = None

    def _open(self) -> FragmentedVideo | PlainVideo:
        suffix = self._path.suffix.lower()
        codec = CODECS[suffix]
        kind = FragmentedVideo if suffix == ".mp4" else PlainVideo
        try:
            remove_leftovers(self._path)
            return kind(self._cv2, self._path, self._fps, self._size, codec)
        except OSError as error:
            raise self._failure(error.strerror) from error
        except ValueError as error:
            height, width = self._size
            other = next(other for other in CODECS if other != suffix)
            raise self._failure(
                f"OpenCV has no writer for codec {codec} at {width}x{height} here; try {other}"
            ) from error

    def _since(self, last: Frame, frame: Frame) -> float:
        """Seconds from one frame to the next: as they say, or by their numbers."""
        said, counted = frame.timestamp - last.timestamp, (frame.index - last.index) / self._fps
        for seconds in (said, counted):
            if seconds > 0.5 / MAX_FPS:
                return min(seconds, MAX_GAP_S)
        return 1.0 / self._fps

    def _failure(self, what: str | None) -> SinkError:
        return SinkError(f"cannot write video {self._path}: {what}; free space or write elsewhere")


def sound_fps(fps: float | None) -> float:
    """A rate that codecs accept; some cameras and files claim 0 or 90000."""
    if fps is None or not math.isfinite(fps) or not 0.05 <= fps <= MAX_FPS:
        return DEFAULT_FPS
    return fps
