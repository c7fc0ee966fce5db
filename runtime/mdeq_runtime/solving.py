"""How one frame is solved under a policy: in one graph, or rung by rung until it is enough.

A solve is warm if it starts at the state that the last one left, and cold if it starts at zero. A
warm one that goes wrong is done again from zero, and the answer says why.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Parts, Profile, Rung
from edge_mdeq.errors import SessionError
from mdeq_runtime.backends import Answer, Backend
from mdeq_runtime.ladder import cold_plan, default_counts, plan
from mdeq_runtime.policies import FixedIterations, Policy, UntilDeadline, UntilTolerance
from mdeq_runtime.reasons import Cold

__all__ = ["Solved", "Solver", "make_solver"]

NON_FINITE = Cold("non_finite", "reset: non-finite state")


@dataclass(frozen=True, eq=False)
class Solved:
    """A frame's answer, how it was found, and how long that took.

    Attributes:
        answer: with the residual of the last evaluation.
        iterations: evaluations of f, those of a start that was given up included.
        cold: why the answer is from a cold start; None if it is from a warm one.
        times: milliseconds by stage.
    """

    answer: Answer
    iterations: int
    cold: Cold | None
    times: dict[str, float]


class Solver(Protocol):
    """Solves frame after frame on the graphs of one backend.

    Attributes:
        counts: the numbers of evaluations that it can make, ascending.
    """

    @property
    def counts(self) -> tuple[int, ...]: ...

    def solve(
        self,
        image: NDArray[np.uint8],
        state: Any,
        cold: Cold | None,
        spent: float = 0.0,
        most: int | None = None,
    ) -> Solved:
        """Answer one image.

        Args:
            image: (H, W, 3) uint8 RGB of the model's size.
            state: the stream's; it moves on in place.
            cold: why this solve must start from zero; None if it may start from ``state``.
            spent: seconds of the frame's time that are over.
            most: evaluations at most, whatever the policy says; None: as it says. The smallest of
                ``counts`` is made in any case, and a start that is given up comes on top.
        """

    def note_rest(self, seconds: float) -> None:
        """How long what comes after a solve took; deadlines leave room for it."""

    def shed(self) -> str | None:
        """Go on with less memory; what was given up, or None if that is all it can do with."""


def make_solver(
    backend: Backend,
    profile: Profile,
    policy: Policy,
    carry: bool,
    restart_above: float,
    in_parts: bool = False,
) -> Solver:
    """The solver for a policy, its graphs loaded.

    Args:
        backend: runs the graphs of ``profile``.
        profile: the bundle's, for that backend.
        policy: when to stop.
        carry: whether any solve may start from the last one's state.
        restart_above: residual above which a warm start is given up: after the solve with a fixed
            number of evaluations, after the first evaluation with any other policy.
        in_parts: whether a fixed number of evaluations is made by repeating one as well.

    Raises:
        SessionError: counts that cannot be made of the bundle's rungs, or a policy that needs a
            solve in parts, which the bundle lacks.
    """
    if isinstance(policy, FixedIterations) and not in_parts:
        return Fixed(backend, profile.rungs, policy, carry, restart_above)
    if not profile.parts:
        raise SessionError(
            f"{type(policy).__name__} needs the solve in parts (inject, advance, readout), which "
            "this bundle lacks; use FixedIterations, or export it again"
        )
    if isinstance(policy, FixedIterations):
        from mdeq_runtime.fixed_parts import FixedParts

        warm, cold = fixed_counts(profile.rungs, policy)
        return FixedParts(backend, profile.parts[0], warm if carry else cold, cold, restart_above)
    return Stepped(backend, profile.parts[0], policy, restart_above)


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
        iterations, answer = 0, None
        if cold is None:
            answer, iterations = self.run(within(self.warm_plan, most), image, state)
            if not math.isfinite(answer.residual):
                cold = NON_FINITE
            elif answer.residual > self.restart_above:
                text = f"reset: residual {answer.residual:.2f} after a warm start"
                cold = Cold("residual", text)
        if answer is None or cold:
            state.reset()
            answer, more = self.run(within(self.cold_plan, most), image, state)
            iterations += more
        times = {"solve": 1e3 * (time.perf_counter() - started)}
        return Solved(answer, iterations, cold, times)

    def run(
        self, rungs: Sequence[Rung], image: NDArray[np.uint8], state: Any
    ) -> tuple[Answer, int]:
        """Run a chain of rungs; the answer of the last one, and the evaluations of all."""
        for rung in rungs:
            answer = self.backend.run(rung, image, state)
        return answer, sum(rung.evaluations for rung in rungs)

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
        while not enough:
            residual = self.backend.advance(self.rung, state)
            iterations += self.rung.evaluations
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
        return Solved(answer, iterations, cold, times)

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
