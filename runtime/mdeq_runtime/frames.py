"""The check that every frame passes before a model sees it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import FrameError

__all__ = ["check_frame"]

WANTED = "(height, width, 3) uint8 BGR, as OpenCV delivers colour images"


def check_frame(image: object, where: str) -> NDArray[np.uint8]:
    """Return ``image`` if a model can take it: (h, w, 3) uint8, BGR, at least one pixel.

    Nothing is converted: a grey or 16-bit picture needs a decision that only its owner can make.

    Args:
        image: what a source or a caller delivered.
        where: names the frame in messages ("frame 3 of clip.mp4").

    Raises:
        FrameError: anything else; the message has the shape, the dtype and what to do.
    """
    if not isinstance(image, np.ndarray):
        kind = "None" if image is None else f"a {type(image).__name__}"
        raise FrameError(f"{where} is {kind}, not a numpy array: pass {WANTED}")
    advice = _advice(image)
    if advice:
        raise FrameError(
            f"{where} has shape {image.shape} and dtype {image.dtype}, the model takes {WANTED}: "
            f"{advice}"
        )
    return cast("NDArray[np.uint8]", image)


def _advice(image: NDArray[Any]) -> str:
    """What to do about ``image``; empty when it is fine."""
    if image.size == 0:
        return "it has no pixels; look for a failed read or an empty crop before it"
    if image.dtype == np.uint16:
        return "it is a 16-bit image; scale it to 8 bits, as in (image // 256).astype('uint8')"
    if np.issubdtype(image.dtype, np.inexact) and np.isnan(image).any():
        return "it holds NaN; look at what computed it, then convert with .astype('uint8')"
    if image.dtype != np.uint8:
        return "scale its values to 0...255 and convert with .astype('uint8')"
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        return "it is grey; convert with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
    if image.ndim == 3 and image.shape[2] == 4:
        return "it has an alpha channel; convert with cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)"
    if image.ndim == 4:
        return "it is a batch; pass one frame at a time"
    if image.ndim != 3 or image.shape[2] != 3:
        return "pass one image with its three colour channels last"
    return ""
