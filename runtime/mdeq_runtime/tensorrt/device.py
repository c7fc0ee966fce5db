"""CUDA through pycuda: one context, one stream, and memory that is counted.

All of it happens in one thread. The context is the device's primary one, which CUDA's runtime API
uses as well, so that TensorRT and other libraries of the process work in the same. It is current
only while a function runs that was handed to ``call``, and popped on every path out of it: a thread
that ends with a context on pycuda's stack ends the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import DeviceError, MemoryLimitError, SessionError, require
from mdeq_runtime.backends.nvidia import find_device
from mdeq_runtime.tensorrt.worker import Worker

__all__ = ["Block", "Device"]

log = logging.getLogger(__name__)

T = TypeVar("T")
EXTRA, PURPOSE = "tensorrt", "running TensorRT engines"


@dataclass(eq=False)
class Block:
    """Device memory.

    Attributes:
        address: where it begins; a multiple of 256.
        size: bytes.
    """

    address: int
    size: int
    allocation: Any


class Device:
    """A GPU and the thread in which it is used.

    Args:
        index: by which CUDA counts it.
        limit: bytes of its memory that may be taken here; None: as many as there are.

    Attributes:
        taken: bytes that are taken, allocated here or reserved for what TensorRT allocates.
        stream: pycuda's; all work is put on it.

    Raises:
        DeviceError: no driver, or no such GPU, or CUDA cannot be used there.
        MissingExtraError: pycuda is not installed.
    """

    def __init__(self, index: int = 0, limit: int | None = None) -> None:
        self.gpu = find_device(index)  # before anything that would crash without one
        self.cuda: Any = require("pycuda.driver", EXTRA, PURPOSE)
        self.limit, self.taken = limit, 0
        self.worker = Worker(f"tensorrt-gpu{index}")
        self.context: Any = None
        try:
            self.worker.call(self.open)
            self.stream: Any = self.call(self.cuda.Stream)
        except BaseException as error:
            self.close()
            if isinstance(error, self.cuda.Error):
                raise DeviceError(
                    f"CUDA cannot be used on {self.gpu.name} ({error}); see whether another "
                    "process has filled its memory, or use the device cpu"
                ) from error
            raise

    def open(self) -> None:
        self.cuda.init()
        self.context = self.cuda.Device(self.gpu.index).retain_primary_context()

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` returns in the device's thread, its context current; or its error.

        Raises:
            SessionError: the device was closed.
        """
        return self.worker.call(lambda: self.within(function))

    def post(self, function: Callable[[], None]) -> Future[None] | None:
        """Do it without waiting; its error is only logged. None if the device was closed."""

        def careful() -> None:
            try:
                self.within(function)
            except Exception as error:
                log.warning("the GPU could not be tidied up: %s", error)

        return self.worker.post(careful)

    def within(self, function: Callable[[], T]) -> T:
        if self.context is None:
            raise SessionError("this model is closed; open the bundle again")
        self.context.push()
        try:
            return function()
        finally:
            self.cuda.Context.pop()

    def close(self) -> None:
        """Let go of the context and end the thread; closing again does nothing."""

        def leave() -> None:
            self.stream = None
            context, self.context = self.context, None
            if context is not None:
                context.detach()

        if not self.worker.stopped:
            try:
                self.call(self.drop_stream) if self.context is not None else None
                self.worker.call(leave)
            except Exception as error:  # a context that failed cannot be tidied up either
                log.warning("the GPU's context could not be left: %s", error)
            self.worker.stop()

    def drop_stream(self) -> None:
        self.stream = None

    # What follows is to be called from a function that was handed to ``call``.

    def reserve(self, size: int, what: str) -> None:
        """Count bytes that are about to be taken.

        Args:
            size: bytes.
            what: takes them, as the subject of a sentence.

        Raises:
            MemoryLimitError: they do not fit into the limit; nothing is counted.
        """
        if self.limit is not None and self.taken + size > self.limit:
            raise MemoryLimitError(
                f"{what} needs {size} bytes of device memory, but of the limit of {self.limit} "
                f"bytes {self.taken} are taken; raise the limit, use fewer rungs or streams, or "
                "build engines that stream their weights"
            )
        self.taken += size

    def release(self, size: int) -> None:
        """The opposite of ``reserve``."""
        self.taken -= size

    def allocate(self, size: int, what: str) -> Block:
        """Memory of undefined content; ``what`` is for the message.

        Raises:
            MemoryLimitError: it does not fit into the limit, or the device has no more.
        """
        self.reserve(size, what)
        try:
            allocation = self.cuda.mem_alloc(size)
        except self.cuda.MemoryError as error:
            self.release(size)
            free, total = self.cuda.mem_get_info()
            raise MemoryLimitError(
                f"{what} needs {size} bytes of device memory, but {free} of {total} are free "
                f"({self.taken} are taken here); use fewer rungs or streams, or end what else "
                "uses the GPU"
            ) from error
        except BaseException:
            self.release(size)
            raise
        return Block(int(allocation), size, allocation)

    def free(self, block: Block) -> None:
        """Give memory back; all that used it must be done."""
        self.release(block.size)
        block.allocation.free()

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Page-locked host memory, which is what the GPU copies from and to by itself."""
        array: NDArray[Any] = self.cuda.pagelocked_empty(shape, np.dtype(dtype))
        return array

    def unpin(self, array: NDArray[Any]) -> None:
        """Give page-locked memory back; no view of it may be in use."""
        array.base.free()  # type: ignore[union-attr]

    def upload(self, block: Block, array: NDArray[Any]) -> None:
        """Queue a copy of a page-locked array to the device."""
        self.cuda.memcpy_htod_async(block.address, array, self.stream)

    def download(self, array: NDArray[Any], block: Block) -> None:
        """Queue a copy to a page-locked array."""
        self.cuda.memcpy_dtoh_async(array, block.address, self.stream)

    def zero(self, block: Block) -> None:
        """Queue that a block be filled with zeros."""
        self.cuda.memset_d8_async(block.address, 0, block.size, self.stream)

    def wait(self) -> None:
        """Until all that was queued is done."""
        self.stream.synchronize()
