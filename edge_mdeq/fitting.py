"""Fits frames of any size to a model's input size, and answers back to the frame's size.

Training's validation and the device use this one implementation, so that a model sees the same
pixels in both. Torch-free; needs OpenCV only when a size really changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import ConfigError, require

__all__ = ["FIT_MODES", "Fit", "FitMode", "Image", "fit_image", "plan_fit", "resize"]

Image: TypeAlias = NDArray[np.uint8]
FitMode = Literal["stretch", "letterbox", "crop"]
Method = Literal["area", "linear", "nearest"]

FIT_MODES: tuple[FitMode, ...] = ("stretch", "letterbox", "crop")
PAD_VALUE = 114  # mid grey, the convention of detectors' letterboxes


@dataclass(frozen=True)
class Fit:
    """Which part of the frame lands in which part of the model's input.

    Attributes:
        frame: (height, width) of the frame.
        size: (height, width) of the model's input.
        source: (top, left, height, width) of what is taken from the frame.
        target: (top, left, height, width) of where it goes in the input.
    """

    frame: tuple[int, int]
    size: tuple[int, int]
    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]

    def restore(self, answer: NDArray[np.generic], outside: int = 255) -> NDArray[np.generic]:
        """Bring a mask (H, W) of the model's input size back to the frame's size.

        Nearest neighbour for class indices (integers), bilinear for anything else. Pixels that the
        model never saw (``crop``) become ``outside`` in an index mask and 0 otherwise.
        """
        top, left, height, width = self.target
        indices = np.issubdtype(answer.dtype, np.integer)
        part = answer[top : top + height, left : left + width]
        f_top, f_left, f_height, f_width = self.source
        method: Method = "nearest" if indices else "linear"
        if (f_height, f_width) == self.frame:
            return resize(part, f_height, f_width, method)
        whole = np.full(self.frame, outside if indices else 0, dtype=answer.dtype)
        seen = whole[f_top : f_top + f_height, f_left : f_left + f_width]
        resize(part, f_height, f_width, method, out=seen)
        return whole


def plan_fit(frame: tuple[int, int], size: tuple[int, int], mode: FitMode = "stretch") -> Fit:
    """How a frame of ``frame`` (height, width) pixels meets an input of ``size``.

    ``stretch`` uses every pixel and ignores the aspect ratio, ``letterbox`` keeps it and pads with
    grey, ``crop`` keeps it and takes the centre.

    Raises:
        ConfigError: an unknown mode.
    """
    (fh, fw), (h, w) = frame, size
    if mode == "stretch":
        return Fit(frame, size, (0, 0, fh, fw), (0, 0, h, w))
    if mode == "letterbox":
        scale = min(h / fh, w / fw)
        th, tw = max(1, round(fh * scale)), max(1, round(fw * scale))
        return Fit(frame, size, (0, 0, fh, fw), ((h - th) // 2, (w - tw) // 2, th, tw))
    if mode == "crop":
        scale = max(h / fh, w / fw)
        sh, sw = min(fh, max(1, round(h / scale))), min(fw, max(1, round(w / scale)))
        return Fit(frame, size, ((fh - sh) // 2, (fw - sw) // 2, sh, sw), (0, 0, h, w))
    raise ConfigError(f"unknown fit {mode!r}, known: {', '.join(FIT_MODES)}")


def fit_image(image: Image, fit: Fit) -> Image:
    """The model's input (H, W, 3) for a frame (h, w, 3), both uint8."""
    top, left, height, width = fit.source
    part = image[top : top + height, left : left + width]
    t_top, t_left, t_height, t_width = fit.target
    part = cast(Image, resize(part, t_height, t_width, "area"))
    if (t_height, t_width) == fit.size:
        return part
    whole = np.full((*fit.size, image.shape[2]), PAD_VALUE, dtype=np.uint8)
    whole[t_top : t_top + t_height, t_left : t_left + t_width] = part
    return whole


def resize(
    image: NDArray[np.generic],
    height: int,
    width: int,
    method: Method,
    out: NDArray[np.generic] | None = None,
) -> NDArray[np.generic]:
    """Resize (h, w) or (h, w, C) to (height, width), of the same type.

    ``area`` averages to shrink and is linear to grow; ``nearest`` takes any type, and no OpenCV.
    ``out``, of that size and type, takes the result; it may be a part of a larger array.

    Raises:
        MissingExtraError: OpenCV is not installed, and needed.
    """
    if image.shape[:2] == (height, width):
        if out is None:
            return image
        out[...] = image
        return out
    if method == "nearest":
        wide = np.take(image, _nearest(image.shape[1], width), axis=1)
        rows = _nearest(image.shape[0], height)
        if out is None:
            return np.take(wide, rows, axis=0)
        for line, row in zip(out, rows, strict=True):  # take would make a whole copy first
            line[...] = wide[row]
        return out
    cv2 = require("cv2", "camera", "fitting frames to the model's size")
    grows = height > image.shape[0] or width > image.shape[1]
    code = cv2.INTER_AREA if method == "area" and not grows else cv2.INTER_LINEAR
    return cast(
        "NDArray[np.generic]",
        cv2.resize(np.ascontiguousarray(image), (width, height), out, interpolation=code),
    )


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    """Which of ``old`` pixels lies under the middle of each of ``new``; the later one on an edge.

    In integers, so that masks are the same everywhere: two versions of OpenCV differ in 0.7% of the
    pixels of a street scene at another size.
    """
    return (2 * np.arange(new) + 1) * old // (2 * new)
