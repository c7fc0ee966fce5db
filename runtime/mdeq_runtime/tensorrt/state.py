"""A stream's tensors on the device: two sets of state that take turns, and the rest.

A cold start reads zeros in the place of the state, and an empty history zeros in the place of the
history, so that neither needs a copy. What only a solve in parts needs is made at the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, TensorSpec
from mdeq_runtime.backends import Answer
from mdeq_runtime.backends.ort_gpu import shape_of
from mdeq_runtime.tensorrt.capture import CapturedGraph
from mdeq_runtime.tensorrt.device import Block, Device

__all__ = ["Addresses", "Buffers", "TensorRTState", "largest_state", "specs_of"]

Addresses = dict[str, int]  # by the graph's names
WHAT = "a stream's state"


@dataclass(eq=False)
class Buffers:
    """Memory of one stream. All methods are for the device's thread.

    Args:
        device: where it lies.
        manifest: says what there is.
        zeros: a block of zeros, as large as the largest state or part of a history.

    Raises:
        MemoryLimitError: it does not fit; nothing is taken then.
    """

    device: Device
    manifest: Manifest
    zeros: Block
    runs: dict[Any, int] = field(default_factory=dict)  # by graph and addresses
    captured: dict[Any, CapturedGraph] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    pinned: list[NDArray[Any]] = field(default_factory=list)
    freed: bool = False

    def __post_init__(self) -> None:
        manifest = self.manifest
        try:
            self.image = self.make(manifest.input.tensor)
            self.output = self.make(manifest.output.tensor)
            self.residual = self.make(manifest.residual)
            self.confidence = self.make(manifest.confidence) if manifest.confidence else None
            self.states = self.make_pair(manifest.states)
            self.picture = self.pin(manifest.input.tensor)
            self.residual_host = self.pin(manifest.residual)
            self.output_host = self.pin(manifest.output.tensor)
            self.confidence_host = self.pin(manifest.confidence) if manifest.confidence else None
        except BaseException:
            self.free()
            raise

    def make(self, spec: TensorSpec) -> Block:
        block = self.device.allocate(size_of(spec), f"{WHAT} ({spec.name})")
        self.blocks.append(block)
        return block

    def make_all(self, specs: Sequence[TensorSpec]) -> list[Block]:
        """All or none: what comes first is given back where the rest does not fit."""
        made: list[Block] = []
        try:
            for spec in specs:
                made.append(self.make(spec))
        except BaseException:
            for block in made:
                self.blocks.remove(block)
                self.device.free(block)
            raise
        return made

    def make_pair(self, specs: Sequence[TensorSpec]) -> list[list[Block]]:
        both = self.make_all([*specs, *specs])
        return [both[: len(specs)], both[len(specs) :]]

    def pin(self, spec: TensorSpec) -> NDArray[Any]:
        array = self.device.pinned(shape_of(spec), spec.dtype)
        self.pinned.append(array)
        return array

    @cached_property
    def injection(self) -> Block:
        return self.make(self.manifest.injection)

    @cached_property
    def history(self) -> list[list[Block]]:
        return self.make_pair(self.manifest.history)

    @cached_property
    def evaluated(self) -> list[Block]:
        """What ``advance`` evaluated last, where that is not what the solve goes on from."""
        if self.manifest.values == self.manifest.state_outputs:
            return []
        return self.make_all(self.manifest.states)

    def put(self, image: NDArray[np.uint8]) -> None:
        """Queue the image; it is made contiguous on the way."""
        self.picture[0] = image
        self.device.upload(self.image, self.picture)

    def fetch_residual(self) -> None:
        """Queue a copy to the host."""
        self.device.download(self.residual_host, self.residual)

    def fetch_answer(self) -> None:
        """Queue copies to the host."""
        self.device.download(self.output_host, self.output)
        if self.confidence is not None and self.confidence_host is not None:
            self.device.download(self.confidence_host, self.confidence)

    def forget(self, graph: str | None = None) -> None:
        """Destroy what was captured of a graph, or of all."""
        for key in [key for key in self.captured if graph in (None, key[0])]:
            self.captured.pop(key).destroy()
        for key in [key for key in self.runs if graph in (None, key[0])]:
            del self.runs[key]

    def free(self) -> None:
        """Give everything back; freeing again does nothing."""
        if not self.freed:
            self.freed = True
            self.forget()
            while self.blocks:
                self.device.free(self.blocks.pop())
            while self.pinned:
                self.device.unpin(self.pinned.pop())


@dataclass(eq=False)
class TensorRTState:
    """A stream's equilibrium and history, as sessions hold it; see ``backends.StreamState``.

    Attributes:
        owner: the backend that made it.
        turn: which of the two sets is the input of the next run.
        output, confidence: of the last answer, in memory that outlives the device's.
    """

    owner: Any
    buffers: Buffers
    turn: int = 0
    cold: bool = True
    empty: bool = True

    def __post_init__(self) -> None:
        confidence = self.buffers.confidence_host
        self.output = np.empty_like(self.buffers.output_host)
        self.confidence = None if confidence is None else np.empty_like(confidence)

    def reset(self) -> None:
        """Back to z = 0, with an empty history."""
        self.cold = self.empty = True

    def restart(self) -> None:
        """Empty the solver's history."""
        self.empty = True

    def solved(self) -> None:
        """A ``solve`` graph has run: its outputs are where the next run starts."""
        self.turn, self.cold = 1 - self.turn, False

    def advanced(self) -> None:
        """The same of an ``advance`` graph."""
        self.solved()
        self.empty = False

    def solve_addresses(self) -> Addresses:
        return self.image() | self.state_in() | self.answer_out() | self.after()

    def inject_addresses(self) -> Addresses:
        return self.image() | self.injection()

    def advance_addresses(self) -> Addresses:
        manifest, buffers = self.buffers.manifest, self.buffers
        evaluated = addresses(manifest.values, buffers.evaluated)
        names = [spec.name for spec in manifest.history]
        history_in = self.zeros_or(self.empty, names, buffers.history[self.turn])
        history_out = addresses(manifest.history_outputs, buffers.history[1 - self.turn])
        inputs = self.injection() | self.state_in() | history_in
        return inputs | evaluated | self.after() | history_out

    def readout_addresses(self) -> Addresses:
        names = [spec.name for spec in self.buffers.manifest.states]
        return (addresses(names, self.buffers.evaluated) or self.state_in()) | self.answer_out()

    def image(self) -> Addresses:
        return {self.buffers.manifest.input.tensor.name: self.buffers.image.address}

    def injection(self) -> Addresses:
        return {self.buffers.manifest.injection.name: self.buffers.injection.address}

    def state_in(self) -> Addresses:
        names = [spec.name for spec in self.buffers.manifest.states]
        return self.zeros_or(self.cold, names, self.buffers.states[self.turn])

    def zeros_or(self, empty: bool, names: list[str], blocks: list[Block]) -> Addresses:
        if empty:
            return dict.fromkeys(names, self.buffers.zeros.address)
        return addresses(names, blocks)

    def after(self) -> Addresses:
        """The next state, and the residual."""
        manifest, buffers = self.buffers.manifest, self.buffers
        states = addresses(manifest.state_outputs, buffers.states[1 - self.turn])
        return states | {manifest.residual.name: buffers.residual.address}

    def answer_out(self) -> Addresses:
        manifest, buffers = self.buffers.manifest, self.buffers
        found = {manifest.output.tensor.name: buffers.output.address}
        if manifest.confidence is not None and buffers.confidence is not None:
            found[manifest.confidence.name] = buffers.confidence.address
        return found

    def residual(self) -> float:
        return float(self.buffers.residual_host[0])

    def answer(self) -> Answer:
        """What was fetched, in arrays of the state's own."""
        self.output[...] = self.buffers.output_host
        confidence = None
        if self.confidence is not None:
            self.confidence[...] = self.buffers.confidence_host
            confidence = self.confidence[0]
        return Answer(self.output[0], confidence, self.residual())


def addresses(names: Iterable[str], blocks: list[Block]) -> Addresses:
    """By name, as many as there are blocks."""
    return {name: block.address for name, block in zip(names, blocks, strict=False)}


def size_of(spec: TensorSpec) -> int:
    """Bytes, of one image."""
    return np.dtype(spec.dtype).itemsize * int(np.prod(shape_of(spec)))


def largest_state(manifest: Manifest) -> int:
    """Bytes of the largest state or part of a history."""
    return max(size_of(spec) for spec in (*manifest.states, *manifest.history))


def specs_of(manifest: Manifest) -> dict[str, TensorSpec]:
    """Every tensor that a graph of the bundle may take or give, by its name there."""
    specs = [
        manifest.input.tensor,
        manifest.output.tensor,
        manifest.residual,
        manifest.injection,
        *manifest.states,
        *manifest.history,
        *([manifest.confidence] if manifest.confidence else []),
    ]
    found = {spec.name: spec for spec in specs}
    for names, of in (
        (manifest.state_outputs, manifest.states),
        (manifest.values, manifest.states),
        (manifest.history_outputs, manifest.history),
    ):
        found |= dict(zip(names, of, strict=True))
    return found
