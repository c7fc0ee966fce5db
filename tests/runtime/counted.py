"""Results to count."""

from __future__ import annotations

import numpy as np

from mdeq_runtime import Frame, Result
from mdeq_runtime.reasons import ColdKind

MASK = np.zeros((2, 2), np.uint8)
FRAME = Frame(np.zeros((2, 2, 3), np.uint8), 0, 0.0)


def result(
    solve: float = 3.0, iterations: int = 2, residual: float = 0.1, cold: ColdKind | None = None
) -> Result:
    times = {"read": 40.0, "fit": 1.0, "solve": solve}
    reason = f"reset: {cold}" if cold else ""
    return Result(
        MASK, None, iterations, residual, True, cold is None, reason, times, cold=cold
    )  # fmt: skip
