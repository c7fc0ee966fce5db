"""TensorRT engines as a session's backend.

Every call is handed to the one thread that uses the GPU, and waits for it: streams take turns, and
what fails there is raised in the stream's own thread. Per frame the image goes up, and the output,
the confidence and the residual come down; states, history and injection stay.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, Parts, Rung
from edge_mdeq.errors import BundleError, EdgeMdeqError, SessionError
from mdeq_runtime.backends import Answer, Footprint
from mdeq_runtime.tensorrt.device import Block, Device
from mdeq_runtime.tensorrt.running import Engines
from mdeq_runtime.tensorrt.state import (
    Addresses,
    Buffers,
    TensorRTState,
    largest_state,
    specs_of,
)
from mdeq_runtime.tensorrt.versions import Flavour

__all__ = ["TensorRTBackend"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class TensorRTBackend:
    """Runs the engines of one profile; see ``backends.Backend``.

    Args:
        bundle: the opened bundle.
        flavour: the TensorRT that runs them.
        engine_of: gives the file of a graph's engine, checked; or raises EngineError.
        limit: bytes of the device's memory that engines and states may take; None: as many as
            there are. Code, CUDA's context and captured graphs are not in them.
        index: which GPU.
        streaming: whether an engine that does not fit as a whole is to keep a part of its weights
            with the host, where it was built for that.
        host_code: whether engines may bring code for the CPU, as version-compatible ones do.
        graphs: whether to capture CUDA graphs.

    Raises:
        DeviceError: no driver, no such GPU, or a driver too old for this TensorRT.
        MissingExtraError: pycuda is not installed.
        BundleError: the bundle takes several images at once, or lacks the profile.
        MemoryLimitError: not even the zeros of a cold start fit.
        SessionError: pycuda or TensorRT failed in a way that is not known.
    """

    def __init__(
        self,
        bundle: Bundle,
        flavour: Flavour,
        engine_of: Callable[[str], Path],
        limit: int | None = None,
        index: int = 0,
        *,
        streaming: bool = False,
        host_code: bool = False,
        graphs: bool = True,
    ) -> None:
        batch = bundle.manifest.input.tensor.shape[0]
        if batch > 1:
            raise BundleError(
                f"{bundle.path} was exported for batches of {batch}; a stream is answered frame by "
                "frame: export with --batch 1 or --dynamic-batch"
            )
        self.bundle, self.flavour, self.engine_of = bundle, flavour, engine_of
        self.profile_name = flavour.profile
        self.profile = bundle.profile(flavour.profile)
        self.name = flavour.name
        self.loading = threading.Lock()
        self.turn: AbstractContextManager[Any] = nullcontext()
        self.device = device = Device(index, limit)
        try:
            specs = specs_of(bundle.manifest)
            self.engines = self.on_device(
                "starting", lambda: Engines(device, flavour, specs, streaming, host_code)
            )
            self.engines.capturing = graphs
            self.zeros = self.on_device("starting", self.make_zeros)
        except BaseException:
            device.close()
            raise
        self.shut = weakref.finalize(self, shut, device, self.engines, self.zeros)

    def make_zeros(self) -> Block:
        size = largest_state(self.bundle.manifest)
        zeros = self.device.allocate(size, "the zeros of a cold start")
        self.device.zero(zeros)
        self.device.wait()
        return zeros

    def load(self, graph: str) -> None:
        """Make a graph's engine ready.

        Raises:
            EngineError: it is missing, damaged, or of another device, version or graph.
            MemoryLimitError: it does not fit; what is loaded stays.
            SessionError: closed.
        """
        self.check_open()
        with self.loading:  # two streams may ask at once, and one engine will do
            if graph not in self.engines.loaded:
                path = self.engine_of(graph)
                self.on_device(graph, lambda: self.engines.load(graph, path))

    def unload(self, graph: str) -> None:
        """Let go of an engine and its memory; it can be loaded again."""
        if self.shut.alive:
            self.on_device(graph, lambda: self.engines.unload(graph))

    def new_state(self) -> TensorRTState:
        """A cold state; its memory is given back when it is forgotten.

        Raises:
            MemoryLimitError: it does not fit.
            SessionError: closed.
        """
        self.check_open()
        device, manifest, zeros, streams = (
            self.device, self.bundle.manifest, self.zeros, self.engines.streams,
        )  # fmt: skip

        def make() -> Buffers:
            buffers = Buffers(device, manifest, zeros)
            streams.add(buffers)
            return buffers

        buffers = self.on_device("a new state", make)
        state = TensorRTState(self, buffers)
        weakref.finalize(state, device.post, buffers.free).atexit = False
        return state

    def run(self, rung: Rung, image: NDArray[np.uint8], state: TensorRTState) -> Answer:
        def work() -> Answer:
            state.buffers.put(image)
            return self.answer(rung.graph, state, state.solve_addresses())

        answer = self.execute(rung.graph, state, work)
        state.solved()
        return answer

    def inject(self, parts: Parts, image: NDArray[np.uint8], state: TensorRTState) -> None:
        def work() -> None:
            state.buffers.put(image)
            self.engines.enqueue(parts.inject, state.inject_addresses(), state.buffers)
            self.device.wait()

        self.execute(parts.inject, state, work)

    def advance(self, rung: Rung, state: TensorRTState) -> float:
        def work() -> float:
            self.engines.enqueue(rung.graph, state.advance_addresses(), state.buffers)
            state.buffers.fetch_residual()
            self.device.wait()
            return state.residual()

        residual = self.execute(rung.graph, state, work)
        state.advanced()
        return residual

    def readout(self, parts: Parts, state: TensorRTState) -> Answer:
        def work() -> Answer:
            return self.answer(parts.readout, state, state.readout_addresses())

        return self.execute(parts.readout, state, work)

    def answer(self, graph: str, state: TensorRTState, addresses: Addresses) -> Answer:
        """Run a graph that gives one, and fetch it."""
        self.engines.enqueue(graph, addresses, state.buffers)
        state.buffers.fetch_residual()
        state.buffers.fetch_answer()
        self.device.wait()
        return state.answer()

    def execute(self, graph: str, state: TensorRTState, work: Callable[[], T]) -> T:
        """Do ``work`` with a graph that is loaded and a state of this backend.

        Raises:
            SessionError: closed, another model's state, or it failed; the state has not moved on.
        """
        self.check_open()
        mine = getattr(state, "owner", None) is self
        if not mine:
            raise SessionError("this is no state of this model; make one with new_state()")
        if graph not in self.engines.loaded:
            self.load(graph)
        with self.turn:
            return self.on_device(graph, work)

    def on_device(self, what: str, work: Callable[[], T]) -> T:
        try:
            return self.device.call(work)
        except EdgeMdeqError:
            raise
        except Exception as error:  # pycuda's or TensorRT's own
            raise SessionError(
                f"{what} failed on {self.device.gpu.name} with {self.name}: "
                f"{type(error).__name__}: {error}; if the next frame fails too, open the bundle "
                "again, and if that does not help, start the process again"
            ) from error

    def device_bytes(self) -> int:
        """Device memory in bytes that engines, their working memory and states take."""
        return self.device.taken

    def footprint(self, graphs: Sequence[str]) -> Footprint:
        """What engines take of the process's memory limit; see ``backends.PredictsMemory``.

        On a board whose GPU shares the memory that is what they take there; elsewhere nothing, as
        the limit holds on the GPU by itself. The library is in what the process holds already.

        Raises:
            EngineError: a graph has no engine that fits.
        """
        if not self.device.gpu.integrated:
            return Footprint(0, 0, 0)
        loaded = self.engines.loaded
        sizes = [
            loaded[graph].weights if graph in loaded else self.engine_of(graph).stat().st_size
            for graph in graphs
        ]
        working = self.engines.scratch.size if self.engines.scratch else 0
        return Footprint(0, sum(sizes), working)

    def check_open(self) -> None:
        if not self.shut.alive:
            raise SessionError("this model is closed; open the bundle again")

    def close(self) -> None:
        """Let go of engines and memory, also that of states; closing again does nothing."""
        self.shut()


def shut(device: Device, engines: Engines, zeros: Block) -> None:
    """What ``close`` does, and the end of a backend that nobody closed."""

    def free() -> None:
        engines.close()
        device.free(zeros)

    try:
        device.call(free)
    except Exception as error:  # a GPU that failed cannot be tidied up either
        log.warning("the GPU's memory could not be given back: %s", error)
    device.close()
