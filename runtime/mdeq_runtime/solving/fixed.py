"""A fixed number of evaluations, in as few graph runs as the ladder allows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Rung
from mdeq_runtime.backends import Answer, Backend
from mdeq_runtime.ladder import cold_plan, default_counts, plan
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.reasons import Cold
from mdeq_runtime.solving.base import NON_FINITE, Solved

__all__ = ["Fixed", "fixed_chains", "fixed_counts"]


class Fixed:
    """So many evaluations, in as few graph runs as the ladder allows."""

    def __init__(
        self,
        backend: Backend,
        rungs: Sequence[Rung],
        policy: FixedIterations,
        carry: bool,
        restart_above: float,
    ) -> None:
        self.backend, self.rungs, self.restart_above = backend, rungs, restart_above
        self.warm_plan, self.cold_plan = fixed_chains(rungs, policy, carry)
        for rung in {*self.cold_plan, *self.warm_plan}:  # and no others
            backend.load(rung.graph)

    @property
    def counts(self) -> tuple[int, ...]:
        plans = (self.warm_plan, self.cold_plan)
        return tuple(sorted({total for chain in plans for total in totals(chain)}))

    def solve(
        self,
        image: NDArray[np.uint8],
        state: Any,
        cold: Cold | None,
        spent: float = 0.0,
        most: int | None = None,
    ) -> Solved:
        started = time.perf_counter()
        answer: Answer | None = None
        trace: list[tuple[int, float]] = []
        if cold is None:
            answer = self.run(within(self.warm_plan, most), image, state, trace)
            if not math.isfinite(answer.residual):
                cold = NON_FINITE
            elif answer.residual > self.restart_above:
                text = f"reset: residual {answer.residual:.2f} after a warm start"
                cold = Cold("residual", text)
        if answer is None or cold:
            state.reset()
            answer = self.run(within(self.cold_plan, most), image, state, trace)
        times = {"solve": 1e3 * (time.perf_counter() - started)}
        return Solved(answer, trace[-1][0], cold, times, tuple(trace))

    def run(
        self,
        rungs: Sequence[Rung],
        image: NDArray[np.uint8],
        state: Any,
        trace: list[tuple[int, float]],
    ) -> Answer:
        """Run a chain of rungs, each of which prolongs ``trace``; the answer of the last one."""
        for rung in rungs:
            answer = self.backend.run(rung, image, state)
            before = trace[-1][0] if trace else 0
            trace.append((before + rung.evaluations, answer.residual))
        return answer

    def note_rest(self, seconds: float) -> None:
        """A fixed number of evaluations takes as long as it takes."""

    def shed(self) -> str | None:
        """Do without the largest rung: the next smaller one that divides its chains, repeated."""
        used = {rung.evaluations: rung for rung in (*self.warm_plan, *self.cold_plan)}
        largest = used[max(used)]
        lengths = [totals(chain)[-1] for chain in (self.warm_plan, self.cold_plan) if chain]
        smaller = [
            rung
            for rung in self.rungs
            if rung.evaluations < largest.evaluations
            and all(length % rung.evaluations == 0 for length in lengths)
        ]
        if not smaller:
            return None
        rung = max(smaller, key=lambda rung: rung.evaluations)
        for old in used.values():
            if old != rung:
                self.backend.unload(old.graph)
        self.backend.load(rung.graph)
        self.warm_plan, self.cold_plan = (
            (rung,) * (sum(r.evaluations for r in chain) // rung.evaluations)
            for chain in (self.warm_plan, self.cold_plan)
        )
        return f"the rung of {largest.evaluations} evaluations for that of {rung.evaluations}"


def fixed_chains(
    rungs: Sequence[Rung], policy: FixedIterations, carry: bool
) -> tuple[tuple[Rung, ...], tuple[Rung, ...]]:
    """The chains of a warm frame, none if no frame is, and of a cold one.

    Raises:
        SessionError: no sum of rungs gives a count.
    """
    warm, cold = fixed_counts(rungs, policy)
    warm_plan = plan(rungs, warm) if carry else ()
    return warm_plan, cold_plan(rungs, cold, warm_plan)


def fixed_counts(rungs: Sequence[Rung], policy: FixedIterations) -> tuple[int, int]:
    """Evaluations of a warm frame, and of a cold one."""
    largest, usual = default_counts(rungs)
    warm = policy.n or usual
    return warm, warm if policy.n and policy.cold is None else policy.cold or largest


def totals(rungs: Sequence[Rung]) -> list[int]:
    """The evaluations after each rung of a chain."""
    return list(accumulate(rung.evaluations for rung in rungs))


def within(rungs: Sequence[Rung], most: int | None) -> Sequence[Rung]:
    """The beginning of a chain with at most so many evaluations, but its first rung always."""
    if most is None:
        return rungs
    return rungs[: max(1, sum(total <= most for total in totals(rungs)))]
