"""What solvers of frames take and give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdeq_runtime.backends import Answer
from mdeq_runtime.reasons import Cold

__all__ = ["NON_FINITE", "Solved", "Solver"]

NON_FINITE = Cold("non_finite", "reset: non-finite state")


@dataclass(frozen=True, eq=False)
class Solved:
    """A frame's answer, how it was found, and how long that took.

    Attributes:
        answer: with the residual of the last evaluation.
        iterations: evaluations of f, those of a start that was given up included.
        cold: why the answer is from a cold start; None if it is from a warm one.
        times: milliseconds by stage.
        trace: (evaluations so far, residual) after each run of a graph, those of a start that was
            given up included.
    """

    answer: Answer
    iterations: int
    cold: Cold | None
    times: dict[str, float]
    trace: tuple[tuple[int, float], ...] = ()


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
