"""What goes into a session and what comes out: frames and results. Plain data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frame", "Result"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture from a source.

    Attributes:
        image: (h, w, 3) uint8, BGR as OpenCV delivers it.
        index: number of the frame in its source, from 0; dropped frames count.
        timestamp: seconds; the position in a file, or the monotonic clock at capture.
    """

    image: NDArray[np.uint8]
    index: int
    timestamp: float


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one frame, and how it was found.

    Attributes:
        output: for segmentation a mask (h, w) uint8 of class indices at the frame's size (255 where
            the model saw nothing); for classification scores (classes,) float32 that sum to one.
        confidence: for segmentation, if asked for, the probability (h, w) float32 of each pixel's
            class; else None.
        iterations: evaluations of f that this frame cost.
        residual: relative residual of the last evaluated iterate.
        converged: whether the residual is at or below the session's tolerance.
        warm: whether the solve started from the previous frame's equilibrium.
        reason: why it was cold ("first frame", "reset: ...", ...), or "" when warm.
        times: milliseconds by stage ("fit", "solve", "restore"; the pipeline adds "read").
        index, timestamp: those of the frame.
    """

    output: NDArray[Any]
    confidence: NDArray[np.float32] | None
    iterations: int
    residual: float
    converged: bool
    warm: bool
    reason: str
    times: Mapping[str, float] = field(default_factory=dict)
    index: int = 0
    timestamp: float = 0.0
