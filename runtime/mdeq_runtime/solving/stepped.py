"""One evaluation over and over, until the residual or the clock says that it is enough."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Parts
from mdeq_runtime.backends import Backend
from mdeq_runtime.policies import UntilDeadline, UntilTolerance
from mdeq_runtime.reasons import Cold
from mdeq_runtime.solving.base import NON_FINITE, Solved

__all__ = ["Stepped"]


class Pace:
    """How long a stage usually takes: a running mean, in seconds."""

    KEPT = 0.8  # of the mean, by each further measurement

    def __init__(self) -> None:
        self.seconds = 0.0

    def note(self, seconds: float) -> None:
        first = self.seconds == 0.0
        self.seconds = seconds if first else self.KEPT * self.seconds + (1 - self.KEPT) * seconds


class Stepped:
    """The smallest rung over and over, until the residual or the clock says that it is enough.

    Stem and readout run once a frame, however many evaluations lie between. Only one ``advance``
    graph is loaded, so memory does not depend on the number of evaluations.
    """

    def __init__(
        self,
        backend: Backend,
        parts: Parts,
        policy: UntilTolerance | UntilDeadline,
        restart_above: float,
    ) -> None:
        self.backend, self.parts, self.policy = backend, parts, policy
        self.restart_above = restart_above
        self.rung = min(parts.advance, key=lambda rung: rung.evaluations)
        self.allowed = policy.ms / 1e3 if isinstance(policy, UntilDeadline) else math.inf
        self.step, self.read, self.rest = Pace(), Pace(), Pace()
        size = self.rung.evaluations
        self.counts = tuple(range(size, max(policy.max_iterations, size) + 1, size))
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
        end = started - spent + self.allowed
        if cold:
            state.reset()
        else:
            state.restart()
        self.backend.inject(self.parts, image, state)
        injected = now = time.perf_counter()
        limit = self.policy.max_iterations
        limit = limit if most is None else min(limit, most)
        iterations, enough = 0, False
        trace: list[tuple[int, float]] = []
        while not enough:
            residual = self.backend.advance(self.rung, state)
            iterations += self.rung.evaluations
            trace.append((iterations, residual))
            before, now = now, time.perf_counter()
            self.step.note(now - before)
            given_up = None if cold else self.why_restart(residual, iterations)
            if given_up:
                cold = given_up
                state.reset()
            enough = not given_up and self.is_enough(iterations, residual, limit, end - now)
        answer = self.backend.readout(self.parts, state)
        done = time.perf_counter()
        self.read.note(done - now)
        times = {
            "inject": 1e3 * (injected - started),
            "advance": 1e3 * (now - injected),
            "readout": 1e3 * (done - now),
        }
        return Solved(answer, iterations, cold, times, tuple(trace))

    def why_restart(self, residual: float, iterations: int) -> Cold | None:
        """Why a warm solve must start again from zero; None if it goes well."""
        if not math.isfinite(residual):
            return NON_FINITE
        if iterations == self.rung.evaluations and residual > self.restart_above:
            return Cold("residual", f"reset: residual {residual:.2f} from a warm start")
        return None

    def is_enough(self, iterations: int, residual: float, limit: int, left: float) -> bool:
        """Whether to stop, with ``left`` seconds to the deadline."""
        if residual <= self.policy.tol or not math.isfinite(residual):
            return True
        if iterations + self.rung.evaluations > limit:
            return True
        return left < self.step.seconds + self.read.seconds + self.rest.seconds

    def note_rest(self, seconds: float) -> None:
        self.rest.note(seconds)

    def shed(self) -> str | None:
        """Nothing: there is one evaluation, and no smaller one."""
        return None
