"""An engine file becomes an engine that can run, or an error that says why not.

| | 8.6 | 10, 11, RTX |
|---|---|---|
| a context without memory of its own | ..._without_device_memory() | USER_MANAGED |
| what it needs | device_memory_size | device_memory_size_v2 |
| giving it that | device_memory = pointer | set_device_memory(pointer, size) |
"""

from __future__ import annotations

import logging
import mmap
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edge_mdeq.bundle import TensorSpec
from edge_mdeq.errors import DeviceError, EngineError, MemoryLimitError
from mdeq_runtime.backends.ort_gpu import shape_of
from mdeq_runtime.tensorrt.device import Block, Device
from mdeq_runtime.tensorrt.listening import logger
from mdeq_runtime.tensorrt.versions import Flavour

__all__ = ["AGAIN", "Loaded", "Loader"]

log = logging.getLogger(__name__)

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
OLDEST_CUDA = {"tensorrt-8": 11, "tensorrt-10": 11, "tensorrt-11": 12, "tensorrt-rtx": 12}
NO_MEMORY = ("out of memory", "outofmemory", "cudaerrormemoryallocation")
OLD_DRIVER = "driver version is insufficient"
AGAIN = "build it again: edge-mdeq engine BUNDLE"


@dataclass(eq=False)
class Loaded:
    """An engine that is ready to run.

    Attributes:
        names: of its inputs and outputs.
        weights: bytes of the device that it takes; what its plan has beside weights is in them.
        scratch: bytes that it works in.
    """

    engine: Any
    context: Any
    names: tuple[str, ...]
    weights: int
    scratch: int


class Loader:
    """TensorRT's runtime. All methods are for the device's thread.

    Args:
        device: where engines go.
        flavour: the TensorRT that takes them.
        host_code: whether engines may bring code for the CPU, as version-compatible ones do.

    Raises:
        DeviceError: the driver is too old for this TensorRT.
    """

    def __init__(self, device: Device, flavour: Flavour, host_code: bool) -> None:
        self.device, self.flavour = device, flavour
        self.heard: list[str] = []
        check_driver(flavour, device.gpu.driver)
        self.logger = logger(flavour, self.hear)
        self.runtime: Any = flavour.module.Runtime(self.logger)
        if host_code:
            self.runtime.engine_host_code_allowed = True

    def hear(self, severity: str, text: str) -> None:
        if severity == "warning":
            log.debug("TensorRT: %s", text)
        else:
            self.heard.append(text)

    def said(self) -> str:
        """TensorRT's errors since this was asked last, as the end of a sentence."""
        heard, self.heard = self.heard, []
        return f" ({'; '.join(text.strip() for text in heard[-3:])})" if heard else ""

    def deserialize(self, graph: str, path: Path) -> Any:
        """The engine in a file, its weights on the device.

        Raises:
            EngineError: the file cannot be read, or TensorRT does not take it.
            MemoryLimitError: the device has no memory left.
        """
        self.said()
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as plan:
                view = memoryview(plan)
                try:
                    engine = self.runtime.deserialize_cuda_engine(view)
                finally:
                    view.release()
        except (OSError, ValueError) as error:  # mmap refuses an empty file
            raise EngineError(f"{path} cannot be read ({error}); {AGAIN}") from error
        if engine is None:
            raise self.refusal(
                f"{self.flavour.name} does not take {path} as the engine of {graph}",
                f"it is damaged, or of another version or device; {AGAIN}",
            )
        return engine

    def prepare(
        self, graph: str, engine: Any, specs: dict[str, TensorSpec], weights: int
    ) -> Loaded:
        """Make a context, after a look at whether the engine is what the bundle says.

        Args:
            graph: for messages.
            engine: deserialised.
            specs: what a graph may take and give, by name.
            weights: bytes that the engine counts for.

        Raises:
            EngineError: it is of another graph, or no context can be made.
            MemoryLimitError: the device has no memory left.
        """
        names = tuple(engine.get_tensor_name(k) for k in range(engine.num_io_tensors))
        open_shapes = {}
        for name in names:
            shape, dtype = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
            spec, here = specs.get(name), DTYPES.get(dtype.name, dtype.name)
            if spec is None or here != spec.dtype or not fits(shape, shape_of(spec)):
                wanted = "no such tensor" if spec is None else f"{spec.dtype} {shape_of(spec)}"
                raise EngineError(
                    f"the engine of {graph} has {name} as {here} {shape}, the bundle {wanted}; it "
                    f"was built from another graph: {AGAIN} --force"
                )
            if -1 in shape and engine.get_tensor_mode(name).name == "INPUT":
                open_shapes[name] = shape_of(spec)
        context = self.make_context(engine)
        if context is None:
            raise self.refusal(
                f"{self.flavour.name} cannot make the engine of {graph} ready",
                "free memory of the device, or build it again",
            )
        for name, shape in open_shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(
                    f"the engine of {graph} does not take {name} as {shape}{self.said()}; build "
                    "it for a batch of 1"
                )
        return Loaded(engine, context, names, weights, self.scratch_of(engine))

    def refusal(self, what: str, then: str) -> DeviceError | MemoryLimitError:
        said = self.said()
        if OLD_DRIVER in said:
            return DeviceError(f"{what}{said}: update the driver, or use the device cpu")
        if any(words in said.lower() for words in NO_MEMORY):
            free, total = self.device.cuda.mem_get_info()
            return MemoryLimitError(
                f"{what}{said}: {free} of {total} bytes of the device are free; use fewer rungs, "
                "or end what else uses the GPU"
            )
        return EngineError(f"{what}{said}: {then}")

    def make_context(self, engine: Any) -> Any:
        """A context without memory of its own.

        TensorRT for RTX could capture a CUDA graph by itself. That one is for a context whose
        addresses stay; here they change with every frame, and it would be captured anew.
        """
        if self.old:
            return engine.create_execution_context_without_device_memory()
        strategies = self.flavour.module.ExecutionContextAllocationStrategy
        return engine.create_execution_context(strategies.USER_MANAGED)

    @property
    def old(self) -> bool:
        """Whether it is a version of the first column above."""
        return not self.flavour.rtx and self.flavour.numbers[0] < 10

    def scratch_of(self, engine: Any) -> int:
        return int(engine.device_memory_size if self.old else engine.device_memory_size_v2)

    def give(self, loaded: Loaded, scratch: Block) -> None:
        """Let an engine work in ``scratch``."""
        if self.old:
            loaded.context.device_memory = scratch.address
        else:
            loaded.context.set_device_memory(scratch.address, scratch.size)

    def close(self) -> None:
        """Let go of the runtime; its engines must be gone."""
        self.runtime = None


def check_driver(flavour: Flavour, driver: int) -> None:
    """See that a driver is new enough: TensorRT itself takes the process down where it is not.

    Raises:
        DeviceError: it is not.
    """
    oldest = cuda_of(flavour)
    if driver // 1000 < oldest:
        raise DeviceError(
            f"{flavour.name} needs a driver for CUDA {oldest} or later, this one is for "
            f"{driver // 1000}.{driver % 1000 // 10}; update the driver (on a Jetson, JetPack), or "
            "use the device cpu"
        )


def cuda_of(flavour: Flavour) -> int:
    """The major of the CUDA that a TensorRT was built for: by its package's name, or the oldest."""
    name = str(flavour.module.__name__).replace("_", "-")
    for major in (11, 12, 13):
        try:
            metadata.version(f"{name}-cu{major}")
        except metadata.PackageNotFoundError:
            continue
        return major
    return OLDEST_CUDA.get(flavour.profile, 0)


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether an engine's shape, with -1 for what is open, allows that of the bundle."""
    return len(shape) == len(wanted) and all(
        here in (-1, there) for here, there in zip(shape, wanted, strict=True)
    )
