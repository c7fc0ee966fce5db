"""Engines that run: side by side on the device, in one memory to work in, captured or not.

All of them work in the same memory, as one thread runs them one after the other on one stream; it
is as large as the neediest of them asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

from edge_mdeq.bundle import TensorSpec
from edge_mdeq.errors import DeviceError, SessionError
from mdeq_runtime.tensorrt.capture import capture
from mdeq_runtime.tensorrt.device import Block, Device
from mdeq_runtime.tensorrt.loading import AGAIN, Loaded, Loader
from mdeq_runtime.tensorrt.state import Addresses, Buffers
from mdeq_runtime.tensorrt.versions import Flavour

__all__ = ["Engines"]

log = logging.getLogger(__name__)


class Engines:
    """The engines of one backend. All methods are for the device's thread.

    Args:
        device: where they run.
        flavour: the TensorRT that runs them.
        specs: what a graph may take and give, by name.
        streaming: whether an engine that does not fit as a whole is to keep a part of its weights
            with the host, where it was built for that.
        host_code: whether engines may bring code for the CPU, as version-compatible ones do.

    Raises:
        DeviceError: the driver is too old for this TensorRT.
    """

    def __init__(
        self,
        device: Device,
        flavour: Flavour,
        specs: dict[str, TensorSpec],
        streaming: bool,
        host_code: bool,
    ) -> None:
        self.device, self.flavour, self.specs = device, flavour, specs
        self.streaming = streaming and flavour.streams_weights
        self.loaded: dict[str, Loaded] = {}
        self.streams: WeakSet[Buffers] = WeakSet()  # whose captured graphs use the engines
        self.scratch: Block | None = None
        self.capturing = True
        self.loader = Loader(device, flavour, host_code)

    def load(self, graph: str, path: Path) -> None:
        """Make an engine ready; loading it again does nothing.

        Raises:
            MemoryLimitError: it does not fit; what was loaded before still is.
            EngineError: it cannot be read, or is not the graph's.
        """
        if graph in self.loaded:
            return
        size = path.stat().st_size if path.is_file() else 0
        if not self.streaming:  # what cannot fit is not even read
            self.device.reserve(size, f"the engine of {graph}")
        reserved = 0 if self.streaming else size
        try:
            engine = self.loader.deserialize(graph, path)
            if self.streaming:
                reserved = self.budget(graph, engine, size)
            self.loaded[graph] = self.loader.prepare(graph, engine, self.specs, reserved)
            self.fit_scratch(graph)
        except BaseException:
            self.device.release(reserved)
            if self.loaded.pop(graph, None) is not None:
                self.fit_scratch(graph)
            raise

    def budget(self, graph: str, engine: Any, size: int) -> int:
        """Leave weights with the host as far as the limit asks for it; the bytes that stay here."""
        device, streamable = self.device, int(engine.streamable_weights_size)
        if device.limit is not None and streamable:
            fixed = size - streamable
            present = self.scratch.size if self.scratch else 0
            for _ in range(2):  # streaming needs some scratch itself
                more = max(0, self.loader.scratch_of(engine) - present)
                left = device.limit - device.taken - fixed - more
                if left >= streamable:
                    break
                engine.weight_streaming_budget_v2 = max(0, left)
            here = min(streamable, int(engine.weight_streaming_budget_v2))
            if here < streamable:
                log.info(
                    "%s: %d of %d bytes of weights stay with the host", graph,
                    streamable - here, streamable,
                )  # fmt: skip
            size = fixed + here
        device.reserve(size, f"the engine of {graph}")
        return size

    def unload(self, graph: str) -> None:
        """Let go of an engine; unloading what is not loaded does nothing."""
        if graph not in self.loaded:
            return
        for buffers in self.streams:
            buffers.forget(graph)
        self.device.release(self.loaded.pop(graph).weights)
        self.fit_scratch(graph)

    def fit_scratch(self, graph: str) -> None:
        """Make the shared memory as large as the engines that are loaded now need it."""
        need = max((loaded.scratch for loaded in self.loaded.values()), default=0)
        present = self.scratch.size if self.scratch else 0
        if need != present:
            self.drop_scratch()
            if need:
                self.scratch = self.device.allocate(need, f"the working memory of {graph}")
        for loaded in self.loaded.values():
            if self.scratch is not None:
                self.loader.give(loaded, self.scratch)

    def drop_scratch(self) -> None:
        for buffers in self.streams:
            buffers.forget()
        scratch, self.scratch = self.scratch, None
        if scratch is not None:
            self.device.free(scratch)

    def enqueue(self, graph: str, addresses: Addresses, buffers: Buffers) -> None:
        """Queue a run. The second one at the same addresses is captured, the others launch that.

        Raises:
            SessionError: TensorRT refuses.
        """
        if self.scratch is None:  # there was none left after a load that failed
            self.fit_scratch(graph)
        key, stream = (graph, *addresses.values()), self.device.stream.handle
        if key in buffers.captured:
            buffers.captured[key].launch(stream)
            return
        buffers.runs[key] = buffers.runs.get(key, 0) + 1
        run = self.direct(graph, addresses)
        if not self.capturing or buffers.runs[key] < 2 or not self.capturable(graph):
            run()  # the first one also lets TensorRT do what it puts off until then
            return
        try:
            buffers.captured[key] = capture(stream, run)
        except (DeviceError, SessionError) as error:
            self.capturing = False
            log.warning(
                "CUDA graphs are not used: %s could not be captured (%s%s); every frame is queued "
                "kernel by kernel", graph, error, self.loader.said(),
            )  # fmt: skip
            run()
            return
        buffers.captured[key].launch(stream)

    def capturable(self, graph: str) -> bool:
        """Whether TensorRT says so; only that for RTX does, which compiles while it runs."""
        if not self.flavour.rtx:
            return True
        context = self.loaded[graph].context
        return bool(context.is_stream_capturable(self.device.stream.handle))

    def direct(self, graph: str, addresses: Addresses) -> Callable[[], None]:
        """A function that queues a run."""
        loaded = self.loaded[graph]

        def run() -> None:
            for name in loaded.names:
                if not loaded.context.set_tensor_address(name, addresses[name]):
                    raise SessionError(
                        f"{graph} takes no address for {name}{self.loader.said()}; {AGAIN}"
                    )
            if not loaded.context.execute_async_v3(self.device.stream.handle):
                raise SessionError(
                    f"{graph} could not be run by {self.flavour.name}{self.loader.said()}"
                )

        return run

    def close(self) -> None:
        """Let go of everything, in the order in which it depends on each other."""
        for buffers in list(self.streams):
            buffers.free()
        for loaded in self.loaded.values():
            self.device.release(loaded.weights)
        self.loaded.clear()
        self.drop_scratch()
        self.loader.close()
