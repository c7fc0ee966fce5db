"""Notices pictures that are black, or the same again and again: a camera that only seems to work.

Looked at is one pixel in each square of 16 x 16, which costs 20 us for 1280 x 720. Only while those
stay the same are all bytes of a frame compared, by their checksum.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from mdeq_runtime.sources.status import Picture

__all__ = ["PictureWatch"]

STEP = 16  # pixels
BLACK = 20  # of 255; video black is 16, and there is noise
PATIENCE_S = 3.0


class PictureWatch:
    """Tells what a stream's pictures look like by now.

    Args:
        patience_s: how long they must have been so before it is said. A stream with few frames per
            second may repeat some.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.forget()

    def forget(self) -> None:
        """Start anew, as after a reconnect."""
        self.sample: NDArray[np.uint8] | None = None
        self.checksum: int | None = None
        self.same_since: float | None = None
        self.black_since: float | None = None

    def __call__(self, image: NDArray[np.uint8], now: float) -> Picture:
        """What the pictures are, this one being the last.

        Args:
            image: (h, w, 3) uint8.
            now: seconds.
        """
        sample = image[STEP // 2 :: STEP, STEP // 2 :: STEP]
        black = sample.size > 0 and int(sample.max()) <= BLACK
        self.black_since = (self.black_since or now) if black else None
        same = self.same_bytes(image, sample)
        self.same_since = (self.same_since or now) if same else None
        if self.black_since is not None and now - self.black_since >= self.patience_s:
            return Picture.BLACK
        if self.same_since is not None and now - self.same_since >= self.patience_s:
            return Picture.FROZEN
        return Picture.OK

    def same_bytes(self, image: NDArray[np.uint8], sample: NDArray[np.uint8]) -> bool:
        last, before = self.sample, self.checksum
        if last is None or not np.array_equal(last, sample):
            self.sample, self.checksum = sample.copy(), None
            return False
        self.checksum = zlib.crc32(np.ascontiguousarray(image).data)
        return before == self.checksum
