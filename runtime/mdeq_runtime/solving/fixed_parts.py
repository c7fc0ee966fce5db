"""A fixed number of evaluations, one by one: the same answer as of one graph, in other memory."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Parts
from mdeq_runtime.backends import Backend
from mdeq_runtime.reasons import Cold
from mdeq_runtime.solving.base import NON_FINITE, Solved

__all__ = ["FixedParts"]


class FixedParts:
    """So many evaluations by repeating the smallest rung of the parts.

    Args:
        backend: runs the graphs.
        parts: which ones.
        warm, cold: evaluations of a frame that starts from the last equilibrium, and of any other.
        restart_above: residual after a warm solve above which it is given up.
    """

    def __init__(
        self, backend: Backend, parts: Parts, warm: int, cold: int, restart_above: float
    ) -> None:
        self.backend, self.parts, self.restart_above = backend, parts, restart_above
        self.warm, self.cold = warm, cold
        self.rung = min(parts.advance, key=lambda rung: rung.evaluations)
        self.counts = tuple(range(1, max(warm, cold) + 1))
        for graph in (parts.inject, self.rung.graph, parts.readout):
            backend.load(graph)

    def solve(
        self,
        image: NDArray[np.uint8],
        state: Any,
        cold: Cold | None,
        spent: float = 0.0,
        most: int | None = None,
    ) -> Solved:
        started = time.perf_counter()
        self.backend.inject(self.parts, image, state)
        injected = time.perf_counter()
        trace: list[tuple[int, float]] = []
        if cold is None:
            state.restart()
            residual = self.advance(self.warm, most, state, trace)
            if not math.isfinite(residual):
                cold = NON_FINITE
            elif residual > self.restart_above:
                cold = Cold("residual", f"reset: residual {residual:.2f} after a warm start")
        if cold is not None:
            state.reset()
            self.advance(self.cold, most, state, trace)
        advanced = time.perf_counter()
        answer = self.backend.readout(self.parts, state)
        times = {
            "inject": 1e3 * (injected - started),
            "advance": 1e3 * (advanced - injected),
            "readout": 1e3 * (time.perf_counter() - advanced),
        }
        return Solved(answer, len(trace), cold, times, tuple(trace))

    def advance(
        self, count: int, most: int | None, state: Any, trace: list[tuple[int, float]]
    ) -> float:
        """The residual of the last evaluation; each prolongs ``trace``."""
        count = count if most is None else max(1, min(count, most))
        for _ in range(count):
            residual = self.backend.advance(self.rung, state)
            trace.append((len(trace) + 1, residual))
        return residual

    def note_rest(self, seconds: float) -> None:
        """A fixed number of evaluations takes as long as it takes."""

    def shed(self) -> str | None:
        """Nothing: there is one evaluation, and no smaller one."""
        return None
