"""Images as a sequence: one file, a folder, or a glob."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_mdeq.errors import SourceError, require
from mdeq_runtime.results import Frame
from mdeq_runtime.sources.base import Source

__all__ = ["IMAGE_SUFFIXES", "ImageFiles", "images_among"]

DECODERS = 6_000_000  # bytes of their code and their tables
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def images_among(paths: Sequence[Path]) -> list[Path]:
    """Those that are images by their suffix, with frame_2 before frame_10."""
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(images, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


class ImageFiles(Source):
    """Image files in order. They carry no clock, so a frame's timestamp is its index."""

    live = False
    fps: float | None = None
    size: tuple[int, int] | None = None

    def __init__(self, paths: Sequence[Path], description: str) -> None:
        self.description = description
        self._cv2: Any = require("cv2", "camera", "reading images")
        self.files = tuple(paths)
        self._paths = list(paths)
        self._index = 0

    def read(self) -> Frame | None:
        """The next image as it is stored: grey stays grey and 16 bits stay 16 bits.

        Raises:
            SourceError: the file cannot be decoded.
        """
        if self._index >= len(self._paths):
            return None
        path = self._paths[self._index]
        frame = Frame(self._decode(path), self._index, float(self._index))
        self._index += 1
        return frame

    def holding(self) -> int:
        """The decoders; how large the images are is not known before they are read."""
        return DECODERS

    def close(self) -> None:
        """Forget the images that are left."""
        self._paths = []

    def _decode(self, path: Path) -> Any:
        cv2 = self._cv2
        flags = cv2.IMREAD_UNCHANGED
        if path.suffix.lower() in (".jpg", ".jpeg"):
            # UNCHANGED ignores the EXIF orientation, and phones store JPEGs sideways. A JPEG has
            # neither alpha nor 16 bits to lose, and these flags keep grey as it is.
            flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        try:
            image = cv2.imread(str(path), flags)
        except cv2.error as error:
            raise SourceError(f"{path} cannot be decoded as an image: {error}") from error
        if image is None:
            raise SourceError(
                f"{path} cannot be decoded as an image: it is missing, unreadable or damaged; "
                "remove it from the input or replace it"
            )
        return image
