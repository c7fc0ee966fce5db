"""Which graphs to run for N evaluations: the rungs of a ladder, chained."""

from __future__ import annotations

from collections.abc import Sequence

from edge_mdeq.bundle import Rung
from edge_mdeq.errors import SessionError

__all__ = ["cold_plan", "default_counts", "plan"]


def plan(rungs: Sequence[Rung], evaluations: int) -> tuple[Rung, ...]:
    """The fewest rungs whose evaluations add up to ``evaluations``, largest first.

    Each starts from the state of the one before, so a chain goes on where a single graph would
    (a solver with a history starts that history anew).

    Raises:
        SessionError: no sum of rungs gives that count.
    """
    best: dict[int, tuple[int, Rung | None]] = {0: (0, None)}  # how many rungs, and the first
    ordered = sorted(rungs, key=lambda rung: -rung.evaluations)
    for total in range(1, evaluations + 1):
        chains = [
            (best[total - rung.evaluations][0] + 1, rung)
            for rung in ordered
            if total - rung.evaluations in best
        ]
        if chains:
            best[total] = min(chains, key=lambda chain: chain[0])
    if evaluations < 1 or evaluations not in best:
        counts = ", ".join(str(n) for n in sorted(rung.evaluations for rung in rungs))
        raise SessionError(
            f"{evaluations} iterations cannot be made of the bundle's rungs ({counts}); choose a "
            f"sum of these, or export again with --iterations {max(evaluations, 1)}"
        )
    chain, total = [], evaluations
    while (rung := best[total][1]) is not None:
        chain.append(rung)
        total -= rung.evaluations
    return tuple(chain)


def cold_plan(rungs: Sequence[Rung], evaluations: int, warm: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """A chain for a cold start that uses the warm start's graph again where it can.

    Cold frames are rare on a stream. Repeating the warm rung costs them a few more readouts, but
    saves the memory of a second graph, which every frame would pay for.
    """
    if len(warm) == 1 and evaluations % warm[0].evaluations == 0:
        return warm * (evaluations // warm[0].evaluations)
    return plan(rungs, evaluations)


def default_counts(rungs: Sequence[Rung]) -> tuple[int, int]:
    """(cold, warm) when the user does not say: the largest rung, and two if the ladder has it."""
    counts = sorted(rung.evaluations for rung in rungs)
    return counts[-1], 2 if 2 in counts else counts[0]
