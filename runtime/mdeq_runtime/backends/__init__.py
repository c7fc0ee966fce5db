"""What runs graphs. A session knows this protocol and nothing of the library behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Rung

__all__ = ["Answer", "Backend", "StreamState"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What one graph run gives; the arrays belong to the backend and are overwritten by the next.

    Attributes:
        output: mask (H, W) uint8 of the model's input size, or scores (classes,) float32.
        confidence: (H_0, W_0) float32 or None.
        residual: relative residual of the last evaluated iterate.
    """

    output: NDArray[Any]
    confidence: NDArray[np.float32] | None
    residual: float


class StreamState(Protocol):
    """One stream's equilibrium, resident where the graphs run."""

    def reset(self) -> None:
        """Back to the cold start z = 0."""


class Backend(Protocol):
    """Runs the rungs of one bundle; several streams may share it, each with its own state."""

    name: str

    def load(self, rung: Rung) -> None:
        """Make ``rung`` ready; loading it again does nothing."""

    def new_state(self) -> Any:
        """A cold ``StreamState`` for ``run``."""

    def run(self, rung: Rung, image: NDArray[np.uint8], state: Any) -> Answer:
        """Run ``rung`` on ``image`` (H, W, 3) RGB from ``state``, which moves on in place."""

    def close(self) -> None:
        """Let go of graphs and memory; using it afterwards is a SessionError."""
