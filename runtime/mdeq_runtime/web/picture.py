"""A result as a viewer sees it: drawn, scaled to a width at most, and JPEG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge_mdeq.errors import SinkError, require
from mdeq_runtime.overlay import Palette, draw
from mdeq_runtime.results import Frame, Result

__all__ = ["encode"]


def encode(
    frame: Frame,
    result: Result,
    labels: Sequence[str],
    palette: Palette,
    *,
    quality: int,
    width: int | None = None,
    numbers: bool = True,
) -> bytes:
    """The annotated frame as JPEG.

    It is scaled before it is annotated, so that letters stay sharp and drawing costs less.

    Args:
        frame, result: what was answered, and how.
        labels, palette: a name and an RGB colour per class.
        quality: 1...100.
        width: pixels at most; None: as wide as the frame is.
        numbers: whether the legend and how the solve went are written over the picture.

    Raises:
        SinkError: OpenCV cannot encode it.
    """
    cv2: Any = require("cv2", "camera", "encoding frames for the live page")
    image = frame.image
    if width is not None and image.shape[1] > width:
        size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        if result.output.ndim == 2:
            mask = cv2.resize(result.output, size, interpolation=cv2.INTER_NEAREST)
            result = replace(result, output=mask, confidence=None)
    drawn = draw(image, result, labels, palette, numbers=numbers)
    done, data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise SinkError("OpenCV cannot encode JPEG; reinstall opencv-python")
    return bytes(data)
