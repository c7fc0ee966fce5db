"""Frames for sessions, and settings under which nothing but the frames decides."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mdeq_runtime import Result, SessionSettings

Picture = NDArray[np.uint8]

SIZE = (64, 96)
# starts cold for neither its residual nor its picture
CALM = SessionSettings(restart_above=1e9, reset_on_cut=False)


def blobs(seed: int, size: tuple[int, int] = SIZE, blue: int = 1) -> Picture:
    """Smooth spots of all colours; ``blue`` divides the first channel."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    small[..., 0] //= blue
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR))


def assert_same(found: Result, expected: Result) -> None:
    """The same answer to rounding, however it was found."""
    assert (found.output == expected.output).mean() > 0.999
    assert found.residual == pytest.approx(expected.residual, rel=1e-3)
