"""When a solve stops: after so many evaluations, at a tolerance, or when its time is up."""

from __future__ import annotations

from dataclasses import dataclass

from edge_mdeq.bundle.manifest import MOST_EVALUATIONS as MOST
from edge_mdeq.errors import ConfigError

__all__ = ["FixedIterations", "Policy", "UntilDeadline", "UntilTolerance"]

GOOD = 0.05  # a relative residual that the authors of DEQ call good convergence
LONGEST = 26  # evaluations; as long as the published solves


@dataclass(frozen=True)
class FixedIterations:
    """The same number of evaluations for every frame, in one graph run if the ladder has it.

    Attributes:
        n: for every frame; None: two for a frame that starts from the last equilibrium (if the
            ladder has it, else its smallest rung), the largest rung for any other.
        cold: another number for a frame without a usable predecessor; 0: the largest rung.
        tol: relative residual at or below which a result counts as converged.
    """

    n: int | None = None
    cold: int | None = None
    tol: float = GOOD

    def __post_init__(self) -> None:
        if self.n is not None and not 1 <= self.n <= MOST:
            raise ConfigError(f"iterations is {self.n}, need at least 1 and at most {MOST}")
        if self.cold is not None and not 0 <= self.cold <= MOST:
            raise ConfigError(f"cold iterations is {self.cold}, need at least 1 and at most {MOST}")
        check_tolerance(self.tol)


@dataclass(frozen=True)
class UntilTolerance:
    """As many evaluations as a frame needs, one rung after the other.

    Attributes:
        tol: relative residual at which a solve stops.
        max_iterations: evaluations after which it stops anyway; the result is then not converged.
    """

    tol: float = GOOD
    max_iterations: int = LONGEST

    def __post_init__(self) -> None:
        check_tolerance(self.tol)
        check_limit(self.max_iterations)


@dataclass(frozen=True)
class UntilDeadline:
    """As many evaluations as fit into the time a frame has, and no more than it needs.

    A frame has at least one evaluation, however short its time. Whether another one fits is judged
    by how long the last ones took, so a frame may be late by as much as one of them varies.

    Attributes:
        ms: from the call of the session to its result, fitting the frame included.
        tol: relative residual at which a solve stops before its time is up.
        max_iterations: the same for a number of evaluations.
    """

    ms: float
    tol: float = 0.01
    max_iterations: int = LONGEST

    def __post_init__(self) -> None:
        if not 0 < self.ms < float("inf"):
            raise ConfigError(f"the deadline is {self.ms} ms, must be positive and finite")
        check_tolerance(self.tol)
        check_limit(self.max_iterations)


Policy = FixedIterations | UntilTolerance | UntilDeadline


def check_tolerance(tol: float) -> None:
    if not 0 < tol < float("inf"):
        raise ConfigError(f"the tolerance is {tol}, must be positive and finite")


def check_limit(count: int) -> None:
    if count < 1:
        raise ConfigError(f"max_iterations is {count}, need at least 1")
