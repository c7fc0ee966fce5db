"""``test://``: a moving pattern whose classes are known, for trying everything without a camera."""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source
from mdeq_runtime.sources.options import SourceOptions
from mdeq_runtime.sources.orient import orienting

__all__ = ["BAR", "DISC", "GROUND", "Pattern"]

GROUND, DISC, BAR = 0, 1, 2  # the classes of ``truth``
DISC_BGR, BAR_BGR = (40, 90, 230), (220, 170, 40)
PERIOD = 240  # frames in which all returns to where it was


class Pattern(Source):
    """A disc that circles and a bar that passes over a still ground, at a camera's pace.

    Frame i is the same picture in every run: its truth is ``truth(i)``.
    """

    live = True
    description = "test pattern"

    def __init__(self, options: SourceOptions | None = None) -> None:
        """By default 1280 x 720 at 30 frames per second."""
        options = options or SourceOptions()
        self.fps: float | None = options.rate or 30.0
        self._height, self._width = options.size or (720, 1280)
        self._orient = orienting(options.flip)
        self._closed = threading.Event()
        self._index, self._started = 0, 0.0
        rows, columns = np.ogrid[: self._height, : self._width]
        squares = ((rows // 16 + columns // 16) % 2).astype(np.uint8)
        shade = (96 + 64 * columns // self._width).astype(np.uint8)
        self._ground = np.repeat((shade + 24 * squares)[..., None], 3, axis=2)
        first = self._orient(self._ground)
        self.size: tuple[int, int] | None = (first.shape[0], first.shape[1])

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Frame ``index``: (h, w, 3) uint8 BGR, not turned."""
        image = self._ground.copy()
        image[self._bar(index)] = BAR_BGR
        box, inside = self._disc(index)
        image[box][inside] = DISC_BGR
        return image

    def truth(self, index: int) -> NDArray[np.uint8]:
        """The class of each pixel of frame ``index``: (h, w) uint8, turned as the frames are."""
        mask = np.full((self._height, self._width), GROUND, np.uint8)
        mask[self._bar(index)] = BAR
        box, inside = self._disc(index)
        mask[box][inside] = DISC
        return self._orient(mask)

    def read(self) -> Frame | None:
        """The next frame, when its time has come; those whose time is over are left out."""
        now = time.monotonic()
        assert self.fps is not None
        if not self._started:
            self._started = now
        self._index = max(self._index, int((now - self._started) * self.fps))
        due = self._started + self._index / self.fps
        if self._closed.wait(max(0.0, due - now)):
            return None
        image = self._orient(self.picture(self._index))
        captured = time.monotonic()
        self._index += 1
        return Frame(image, self._index - 1, captured, captured)

    def close(self) -> None:
        """Let a waiting ``read`` return None."""
        self._closed.set()

    def _bar(self, index: int) -> tuple[slice, slice]:
        breadth = max(2, self._width // 16)
        left = (index % PERIOD) * (self._width - breadth) // PERIOD
        return slice(None), slice(left, left + breadth)

    def _disc(self, index: int) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
        """Its box, and where within the box it is."""
        radius = max(1, min(self._height, self._width) // 8)
        angle = 2 * np.pi * (index % PERIOD) / PERIOD
        row = round(self._height / 2 + (self._height / 2 - radius - 1) * np.sin(angle))
        column = round(self._width / 2 + (self._width / 2 - radius - 1) * np.cos(angle))
        top, left = max(0, row - radius), max(0, column - radius)
        box = slice(top, row + radius + 1), slice(left, column + radius + 1)
        rows, columns = np.ogrid[box[0], box[1]]
        inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        return box, inside[: self._height - top, : self._width - left]
