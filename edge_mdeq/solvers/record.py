"""What a solve remembers: which iterate to return for each sample, and how its solve ended."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from edge_mdeq.solvers.residual import residuals, select

__all__ = ["Point", "Record", "Status", "improves"]

State = tuple[Tensor, ...]

# The guards of the published code.
DIVERGED_ABSOLUTE = 1e6  # times the first absolute residual
DIVERGED_RELATIVE = 1e3  # times the first relative residual
STALL_WINDOW = 30  # evaluations
STALL_RATIO = 1.3  # largest to smallest residual within the window
STALL_TOL = 3.0  # times the tolerance: only a sample this close counts as stalled


class Status(Enum):
    """How the solve of a sample ended, from good to bad."""

    CONVERGED = "converged"  # its residual is at or below the tolerance
    MAX_EVALUATIONS = "max_evaluations"  # the evaluations ran out first, or no tolerance was given
    STALLED = "stalled"  # close to the tolerance, and no longer getting closer
    DIVERGED = "diverged"  # its residual grew far beyond the first one
    NON_FINITE = "non_finite"  # its residual became NaN or infinite

    @property
    def code(self) -> int:
        """Its place in the order above."""
        return list(Status).index(self)


class Point(NamedTuple):
    """One evaluation: an iterate, f there, and its residuals (B,)."""

    iterate: State
    value: State
    absolute: Tensor
    relative: Tensor

    @staticmethod
    def measure(z: State, fz: State) -> Point:
        """The residuals of ``z``; they carry no gradient."""
        with torch.no_grad():
            return Point(z, fz, *residuals(z, fz))

    def replaced(self, where: Tensor, other: Point) -> Point:
        """Per sample, ``other`` where ``where`` (B,) is true."""
        return Point(
            select(where, other.iterate, self.iterate),
            select(where, other.value, self.value),
            torch.where(where, other.absolute, self.absolute),
            torch.where(where, other.relative, self.relative),
        )


def improves(residual: Tensor, lowest: Tensor) -> Tensor:
    """Whether an evaluation is the best so far: any is better than one that is not finite, (B,)."""
    return (residual < lowest) | lowest.isnan()


class Record:
    """Follows a solve, one evaluation at a time, by tensor selects alone.

    Without a tolerance every sample runs to the end and no guard looks at it. With one, a sample
    that met it, or that a guard ended, is held as it is while others go on.

    Args:
        first: the first evaluation.
        tol: of the residual that ``absolute`` names; 0 for none.
        best: keep the lowest residual instead of the last.
        absolute: judge by the absolute residual instead of the relative one.
    """

    def __init__(self, first: Point, tol: float, best: bool, absolute: bool) -> None:
        self.tol, self.best, self.absolute = tol, best, absolute
        self.first = self.latest = self.lowest = first
        self.trace = [first.relative]
        self.goals = [self.goal(first)]
        ones = torch.ones_like(first.relative, dtype=torch.int64)
        self.evaluations = ones
        self.codes = Status.MAX_EVALUATIONS.code * ones
        if tol > 0:
            self.codes = self.judge(first)

    def goal(self, point: Point) -> Tensor:
        """The residual that counts, (B,)."""
        return point.absolute if self.absolute else point.relative

    @property
    def running(self) -> Tensor:
        """Which samples have not ended yet, (B,)."""
        return self.codes == Status.MAX_EVALUATIONS.code

    def add(self, now: Point) -> None:
        """Take in another evaluation."""
        goal, running = self.goal(now), self.running
        self.trace.append(now.relative)
        self.goals.append(goal)
        self.evaluations = self.evaluations + running.long()
        if self.best or self.tol > 0:
            better = improves(goal, self.goal(self.lowest))
            self.lowest = self.lowest.replaced(running & better, now)
        if self.tol == 0:
            self.latest = now
            return
        if not self.best:
            self.latest = self.latest.replaced(running, now)
        self.codes = torch.where(running, self.judge(now), self.codes)

    def judge(self, now: Point) -> Tensor:
        """The code of every sample if it were running, (B,)."""
        goal = self.goal(now)
        diverged = now.absolute > DIVERGED_ABSOLUTE * self.first.absolute
        diverged = diverged | (now.relative > DIVERGED_RELATIVE * self.first.relative)
        codes = torch.full_like(self.evaluations, Status.MAX_EVALUATIONS.code)
        if len(self.goals) > STALL_WINDOW:
            window = torch.stack(self.goals[-STALL_WINDOW:])
            flat = window.amax(dim=0) < STALL_RATIO * window.amin(dim=0)
            codes = codes.masked_fill(flat & (goal < STALL_TOL * self.tol), Status.STALLED.code)
        codes = codes.masked_fill(diverged, Status.DIVERGED.code)
        codes = codes.masked_fill(goal <= self.tol, Status.CONVERGED.code)
        return codes.masked_fill(~goal.isfinite(), Status.NON_FINITE.code)

    def chosen(self) -> Point:
        """What to return for each sample."""
        if self.best:
            return self.lowest
        if self.tol == 0:
            return self.latest
        return self.latest.replaced(self.codes >= Status.DIVERGED.code, self.lowest)

    def final_codes(self) -> Tensor:
        """How each sample ended, (B,); without a tolerance what is returned decides."""
        if self.tol > 0:
            return self.codes
        broken = ~self.chosen().relative.isfinite()
        return self.codes.masked_fill(broken, Status.NON_FINITE.code)
