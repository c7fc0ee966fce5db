"""Frames for sessions, and settings under which nothing but the frames decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mdeq_runtime import FixedIterations, Result, SessionSettings

Picture = NDArray[np.uint8]

SIZE = (64, 96)
# starts cold for neither its residual nor its picture
CALM = SessionSettings(restart_above=1e9, reset_on_cut=False)


def blobs(seed: int, size: tuple[int, int] = SIZE, blue: int = 1) -> Picture:
    """Smooth spots of all colours; ``blue`` divides the first channel."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    small[..., 0] //= blue
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR))


def calm(warm: int | None = None, cold: int | None = None, **others: Any) -> SessionSettings:
    """``CALM`` with fixed counts; ``warm`` 0: every frame is cold."""
    policy = FixedIterations(warm or None, cold or 0)
    return replace(CALM, policy=policy, carry=warm != 0, **others)


def vivid(seed: int, size: tuple[int, int] = SIZE) -> Picture:
    """``blobs`` with channels far apart, so that RGB taken for BGR would show."""
    return blobs(seed, size, blue=4)


def assert_same(found: Result, expected: Result) -> None:
    """The same answer to rounding, however it was found."""
    assert (found.output == expected.output).mean() > 0.999
    assert found.residual == pytest.approx(expected.residual, rel=1e-3)
