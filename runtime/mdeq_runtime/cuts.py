"""Notices that a picture shows another scene than the one before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.fitting import resize

__all__ = ["CutDetector"]

ROWS, COLUMNS = 24, 32  # coarse enough that what moves inside a scene changes little
SMALLEST = 0.08  # of full scale; less is no cut, however still the scene was before
SUDDEN = 2.5  # times what was usual: a pan or a passing lorry changes as much, but not at once
MEMORY = 0.7  # how much of the usual difference each further frame keeps


class CutDetector:
    """Compares each picture, coarsened, with the last one and with how much usually changes.

    A cut is a difference that is large and sudden: the mean absolute difference of two pictures of
    32 by 24 pixels exceeds 8% of full scale, and 2.5 times its running mean.
    """

    def __init__(self) -> None:
        self.last: NDArray[np.float32] | None = None
        self.usual = 0.0

    def __call__(self, image: NDArray[np.uint8]) -> float:
        """The difference to the last picture, in 0..1, if it is a cut; else 0.

        Args:
            image: (H, W, 3) uint8, of one size for all pictures.
        """
        coarse = np.asarray(resize(image, ROWS, COLUMNS, "area"), dtype=np.float32)
        last, self.last = self.last, coarse
        if last is None:
            return 0.0
        difference = float(np.abs(coarse - last).mean()) / 255
        cut = difference > max(SMALLEST, SUDDEN * self.usual)
        # what follows a cut has a usual difference of its own
        self.usual = 0.0 if cut else MEMORY * self.usual + (1 - MEMORY) * difference
        return difference if cut else 0.0

    def forget(self) -> None:
        """Start anew: the next picture has nothing to be compared with."""
        self.last, self.usual = None, 0.0
