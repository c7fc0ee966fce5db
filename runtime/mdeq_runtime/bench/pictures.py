"""The frames that a benchmark answers: a source's, or the test pattern's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import SourceError
from mdeq_runtime.sources import SourceOptions, open_source
from mdeq_runtime.sources.pattern import Pattern

__all__ = ["load_frames", "there_and_back"]

MOST, HELD = 48, 2**27  # frames, and bytes of them; at least two all the same

Frames = list[NDArray[np.uint8]]


def load_frames(source: str | None, size: tuple[int, int]) -> tuple[Frames, str]:
    """The first frames of a source, BGR (h, w, 3) each, and what they are.

    They are held in memory, so that no decoder works while times are taken.

    Args:
        source: as ``mdeq_runtime.sources.open_source`` takes it; None: a moving pattern.
        size: (height, width) of the pattern.

    Raises:
        SourceError: it cannot be opened or read, or has no frame.
    """
    if source is None:
        height, width = size
        pattern = Pattern(SourceOptions(width=width, height=height))
        return [pattern.picture(k) for k in range(MOST)], f"a moving pattern of {height} x {width}"
    frames: Frames = []
    with open_source(source) as opened:
        while len(frames) < MOST and (frame := opened.read()) is not None:
            frames.append(frame.image)
            if len(frames) > 1 and sum(image.nbytes for image in frames) > HELD:
                break
    if not frames:
        raise SourceError(f"{opened.description} delivered no frame; choose another source")
    return frames, f"{len(frames)} frames of {opened.description}"


def there_and_back(step: int, count: int) -> int:
    """The frame of a step: 0, 1, .. count - 1, .. 1, 0, 1, ..; neighbours stay neighbours."""
    if count == 1:
        return 0
    period = 2 * (count - 1)
    step %= period
    return min(step, period - step)
