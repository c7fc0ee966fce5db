"""Turning and mirroring frames, under the names of GStreamer's flip methods."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["FLIPS", "orienting", "turns"]

Image = NDArray[np.uint8]

FLIPS = (  # the place in this row is the number of nvvidconv's flip-method
    "none",
    "counterclockwise",
    "rotate-180",
    "clockwise",
    "horizontal",
    "upper-right-diagonal",
    "vertical",
    "upper-left-diagonal",
)


def orienting(flip: str | None) -> Callable[[Image], Image]:
    """A function that turns an image (h, w, 3) by ``flip``, into memory of its own.

    "horizontal" mirrors left and right; the diagonals mirror along the line through that corner.
    """
    if flip in (None, "none"):
        return lambda image: image
    ways: dict[str, Callable[[Image], Image]] = {
        "counterclockwise": lambda image: np.rot90(image, 1),
        "rotate-180": lambda image: image[::-1, ::-1],
        "clockwise": lambda image: np.rot90(image, 3),
        "horizontal": lambda image: image[:, ::-1],
        "vertical": lambda image: image[::-1],
        "upper-left-diagonal": lambda image: image.swapaxes(0, 1),
        "upper-right-diagonal": lambda image: image[::-1, ::-1].swapaxes(0, 1),
    }
    turn = ways[str(flip)]
    return lambda image: np.ascontiguousarray(turn(image))


def turns(flip: str | None) -> bool:
    """Whether width and height change places."""
    return flip in ("counterclockwise", "clockwise", "upper-right-diagonal", "upper-left-diagonal")
