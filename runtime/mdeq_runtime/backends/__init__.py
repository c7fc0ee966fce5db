"""What runs graphs. A session knows this protocol and nothing of the library behind it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Parts, Rung

__all__ = [
    "Answer",
    "Backend",
    "CopiesWeights",
    "Footprint",
    "PredictsMemory",
    "ReportsDeviceMemory",
    "StreamState",
]


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
    """One stream's equilibrium and its solver's history, resident where the graphs run."""

    def reset(self) -> None:
        """Back to the cold start z = 0, with an empty history."""

    def restart(self) -> None:
        """Keep the equilibrium and empty the history: a new solve starts from it."""


class Backend(Protocol):
    """Runs the graphs of one bundle; several streams may share it, each with its own state.

    ``run`` is a whole solve. ``inject``, ``advance`` and ``readout`` are the same in parts: what
    they hand to each other stays in the state.

    Attributes:
        name: for people.
        turn: held while a graph runs, by whoever wants to share the machine fairly.
    """

    name: str
    turn: AbstractContextManager[Any]

    def load(self, graph: str) -> None:
        """Make a graph ready; loading it again does nothing."""

    def unload(self, graph: str) -> None:
        """Let go of a graph and its memory; unloading what is not loaded does nothing."""

    def new_state(self) -> Any:
        """A cold ``StreamState``."""

    def run(self, rung: Rung, image: NDArray[np.uint8], state: Any) -> Answer:
        """Solve for ``image`` (H, W, 3) RGB from ``state``, which moves on in place."""

    def inject(self, parts: Parts, image: NDArray[np.uint8], state: Any) -> None:
        """Put the injection of ``image`` (H, W, 3) RGB into ``state``."""

    def advance(self, rung: Rung, state: Any) -> float:
        """Go on from ``state``, which moves on in place; the residual of the last iterate."""

    def readout(self, parts: Parts, state: Any) -> Answer:
        """The answer of what the last ``advance`` evaluated, with its residual."""

    def close(self) -> None:
        """Let go of graphs and memory; using it afterwards is a SessionError."""


@runtime_checkable
class ReportsDeviceMemory(Protocol):
    """What a backend with a memory of its own may have besides."""

    def device_bytes(self) -> int:
        """Device memory in bytes that graphs, weights and states take; from any thread."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of host memory that graphs take; upper bounds.

    Attributes:
        library: code and tables that the first graph of a process brings in.
        graphs: weights and nodes, as long as they are loaded.
        working: more at the peak: values while a graph runs, or what loading takes for a moment.
    """

    library: int
    graphs: int
    working: int


@runtime_checkable
class CopiesWeights(Protocol):
    """What a backend has besides whose graphs each hold all their weights in host memory."""

    @property
    def parts_will_do(self) -> bool:
        """Whether a solve in parts gives the answer of one graph."""


@runtime_checkable
class PredictsMemory(Protocol):
    """What a backend under a memory limit has besides."""

    def footprint(self, graphs: Sequence[str]) -> Footprint:
        """What it would take with these graphs, none of which need be loaded."""
