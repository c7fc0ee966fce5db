"""What ONNX Runtime's backends share: a session per graph, and a binding per state and turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, Parts, Rung
from edge_mdeq.errors import BundleError, MemoryLimitError, SessionError
from mdeq_runtime.backends import Answer

__all__ = ["BoundState", "OrtBackend", "over_share"]

Values = dict[str, Any]  # what to bind, by the graph's names


class BoundState(Protocol):
    """A stream's buffers, as the methods below bind them to graphs.

    Attributes:
        owner: the backend that made it.
        bindings: those made so far, by graph and phase.
    """

    owner: Any
    bindings: dict[Any, Any]

    def phase(self) -> Any:
        """What decides which buffers the next run reads and writes."""

    def put(self, image: NDArray[np.uint8]) -> None:
        """Make ``image`` (H, W, 3) RGB the graphs' input."""

    def solve_values(self) -> tuple[Values, Values]:
        """Inputs and outputs of a ``solve`` graph; the other three alike."""

    def inject_values(self) -> tuple[Values, Values]: ...
    def advance_values(self) -> tuple[Values, Values]: ...
    def readout_values(self) -> tuple[Values, Values]: ...

    def solved(self) -> None:
        """A ``solve`` graph has run: its outputs are where the next run starts."""

    def advanced(self) -> None:
        """The same of an ``advance`` graph."""

    def residual_value(self) -> float:
        """Of the last evaluated iterate."""

    def answer(self) -> Answer:
        """What the last graph that gives one found."""


class OrtBackend:
    """Runs the graphs of one profile; a subclass opens sessions and makes states.

    Args:
        bundle: the opened bundle; each file's hash is checked before it is used.
        profile: its name.
        threads: threads per graph, 0 for one per core.

    Raises:
        BundleError: the bundle lacks the profile, takes several images at once, or a file of it is
            missing or altered.
    """

    name: str

    def __init__(self, bundle: Bundle, profile: str, threads: int = 0) -> None:
        batch = bundle.manifest.input.tensor.shape[0]
        if batch > 1:
            raise BundleError(
                f"{bundle.path} was exported for batches of {batch}; a stream is answered frame by "
                "frame: export with --batch 1 or --dynamic-batch"
            )
        self.bundle, self.threads = bundle, threads
        self.profile = bundle.profile(profile)
        self.sessions: dict[str, Any] = {}
        self.states: WeakSet[Any] = WeakSet()
        self.loading = threading.Lock()
        self.turn: AbstractContextManager[Any] = nullcontext()
        self.closed = False
        for weights in self.profile.weights:
            bundle.file(weights.file)

    def open(self, graph: str) -> Any:
        """A session of ``graph``.

        Raises:
            BundleError: it cannot be loaded.
            MemoryLimitError: it does not fit into what it may take.
        """
        raise NotImplementedError

    def load(self, graph: str) -> None:
        if self.closed:
            raise SessionError("this model is closed; open the bundle again")
        with self.loading:  # two streams may ask at once, and one session will do
            if graph not in self.sessions:
                self.sessions[graph] = self.open(graph)

    def unload(self, graph: str) -> None:
        """Let go of a graph and of what states have bound to it; it can be loaded again."""
        for state in self.states:
            for key in [key for key in state.bindings if key[0] == graph]:
                del state.bindings[key]
        self.sessions.pop(graph, None)

    def identity(self, graph: str) -> str:
        """Which graph this is: its hash and those of the weights that it may use."""
        files = self.bundle.manifest.files
        weights = [files[w.file].sha256 for w in self.profile.weights]
        return " ".join([files[graph].sha256, *weights])

    def adopt(self, state: Any) -> Any:
        """Take a new state for one of this backend's."""
        state.owner = self
        self.states.add(state)
        return state

    def own(self, state: Any) -> Any:
        """``state`` if it is one of this backend: another's is bound to graphs of its own."""
        if getattr(state, "owner", None) is not self:
            raise SessionError("this is no state of this model; make one with new_state()")
        return state

    def run(self, rung: Rung, image: NDArray[np.uint8], state: BoundState) -> Answer:
        self.own(state).put(image)
        self.execute(rung.graph, state, state.solve_values)
        state.solved()
        return state.answer()

    def inject(self, parts: Parts, image: NDArray[np.uint8], state: BoundState) -> None:
        self.own(state).put(image)
        self.execute(parts.inject, state, state.inject_values)

    def advance(self, rung: Rung, state: BoundState) -> float:
        self.own(state)
        self.execute(rung.graph, state, state.advance_values)
        state.advanced()
        return state.residual_value()

    def readout(self, parts: Parts, state: BoundState) -> Answer:
        self.own(state)
        self.execute(parts.readout, state, state.readout_values)
        return state.answer()

    def execute(
        self, graph: str, state: BoundState, values: Callable[[], tuple[Values, Values]]
    ) -> None:
        """Run a graph on a state's buffers; its binding for the present phase is made once."""
        self.load(graph)
        session, key = self.sessions[graph], (graph, state.phase())
        if key not in state.bindings:
            state.bindings[key] = bind(session, *values())
        try:
            with self.turn:
                session.run_with_iobinding(state.bindings[key])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            if over_share(error):
                raise MemoryLimitError(f"{graph} needs more than its share: {error}") from error
            raise SessionError(f"{graph} failed in ONNX Runtime: {error}") from error

    def close(self) -> None:
        self.closed = True
        self.sessions.clear()


def bind(session: Any, inputs: Values, outputs: Values) -> Any:
    """A binding of a session; a value is an ``OrtValue``, or knows how to bind itself as input."""
    binding = session.io_binding()
    for name, value in inputs.items():
        if hasattr(value, "bind_input"):
            value.bind_input(binding, name)
        else:
            binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return binding


def over_share(error: Exception) -> bool:
    """Whether it is the arena that refused, or the device."""
    return "bfc_arena" in str(error) or "out of memory" in str(error)
