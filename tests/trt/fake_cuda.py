"""A double of pycuda.driver and of libcuda, with NumPy for device memory and queues for streams.

Only names that pycuda has had from 2021.1 to 2026.1 are here. What CUDA leaves undefined, or pycuda
does with a warning at best, fails: memory used after it was freed, a call without a current
context, an object let go of in another thread than its context's, a copy from or to memory that is
not page-locked. Copies and kernels run when their stream is synchronised, not before.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOTAL = 2**30
GUARD = 2**20  # addresses between two allocations


class Misuse(BaseException):
    """The code under test did what would end in undefined behaviour."""


class Error(Exception): ...


class MemoryError(Error): ...  # noqa: A001 - pycuda's name


class LogicError(Error): ...


class LaunchError(Error): ...


class Gpu:
    """The state of the one device there is; ``reset`` before each test."""

    def __init__(self) -> None:
        self.addresses = itertools.count(0x7F00_0000_0000, 2**32)  # never one twice
        self.handles = itertools.count(0x5000, 16)
        self.reset()

    def reset(self) -> None:
        self.blocks: dict[int, NDArray[np.uint8]] = {}
        self.streams: dict[int, Stream] = {}
        self.pinned: list[NDArray[Any]] = []
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.free = TOTAL
        self.broken: str | None = None  # what every call fails with
        self.retained = 0
        self.counts: dict[str, int] = {}
        self.copied: list[tuple[str, int]] = []  # each copy, "up" or "down", and its bytes
        self.refuse: dict[str, int] = {}  # libcuda's functions that fail, and with what

    def note(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


gpu = Gpu()
local = threading.local()


def stack() -> list[Context]:
    if not hasattr(local, "stack"):
        local.stack = []
    return local.stack  # type: ignore[no-any-return]


def need_context(name: str) -> None:
    gpu.note(name)
    if not stack():
        raise LogicError(f"{name} failed: invalid device context")
    if gpu.broken:
        raise LogicError(f"{name} failed: {gpu.broken}")


def init(flags: int = 0) -> None: ...


class Device:
    def __init__(self, index: int) -> None:
        self.index = index

    def retain_primary_context(self) -> Context:
        gpu.retained += 1
        return Context(threading.get_ident())


class Context:
    def __init__(self, thread: int) -> None:
        self.thread, self.valid = thread, True

    def push(self) -> None:
        if not self.valid or self.thread != threading.get_ident():
            raise LogicError("cuCtxPushCurrent failed: context of another thread, or detached")
        stack().append(self)

    @staticmethod
    def pop() -> None:
        if not stack():
            raise LogicError("cuCtxPopCurrent failed: cannot pop non-current context")
        stack().pop()

    def detach(self) -> None:
        if self.thread != threading.get_ident():
            raise Misuse("a context is detached in another thread: it leaks")
        self.valid = False
        gpu.retained -= 1


class DeviceAllocation:
    def __init__(self, size: int) -> None:
        self.thread, self.size, self.address = threading.get_ident(), size, next(gpu.addresses)
        rng = np.random.default_rng(self.address)  # nothing is zero by itself
        gpu.blocks[self.address] = rng.integers(0, 256, size, np.uint8)
        gpu.free -= size

    def __int__(self) -> int:
        return self.address

    __index__ = __int__

    def free(self) -> None:
        if self.thread != threading.get_ident():
            raise Misuse("device memory is freed in another thread than its context's")
        if self.address not in gpu.blocks:
            raise LogicError("cuMemFree failed: invalid value")
        del gpu.blocks[self.address]
        gpu.free += self.size

    def __del__(self) -> None:
        if self.address in gpu.blocks:
            self.free()


def mem_alloc(size: int) -> DeviceAllocation:
    need_context("mem_alloc")
    if size <= 0:
        raise LogicError("cuMemAlloc failed: invalid argument")
    if size > gpu.free:
        raise MemoryError("cuMemAlloc failed: out of memory")
    return DeviceAllocation(size)


def mem_get_info() -> tuple[int, int]:
    need_context("mem_get_info")
    return gpu.free, TOTAL


def view(address: int, size: int) -> NDArray[np.uint8]:
    """Device memory."""
    for start, block in gpu.blocks.items():
        if start <= address and address + size <= start + block.size:
            return block[address - start : address - start + size]
    raise Misuse(f"{size} bytes at {address:#x} are no device memory, or no longer")


class PagelockedHostAllocation:
    """The base of a page-locked array."""

    def __init__(self, shape: Any, dtype: Any, order: Any) -> None:
        self.thread = threading.get_ident()
        self.memory = np.empty(shape, dtype, order)
        self.__array_interface__ = self.memory.__array_interface__
        gpu.pinned.append(self.memory)

    def free(self) -> None:
        if self.thread != threading.get_ident():
            raise Misuse("page-locked memory is freed in another thread than its context's")
        kept = [memory for memory in gpu.pinned if memory is not self.memory]
        if len(kept) == len(gpu.pinned):
            raise LogicError("cuMemFreeHost failed: invalid value")
        gpu.pinned = kept


def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> NDArray[Any]:
    need_context("pagelocked_empty")
    return np.asarray(PagelockedHostAllocation(shape, dtype, order))


class Stream:
    def __init__(self, flags: int = 0) -> None:
        need_context("Stream")
        self.handle = next(gpu.handles)
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        gpu.streams[self.handle] = self

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        need_context("Stream.synchronize")
        if self.captured is not None:
            raise LogicError("cuStreamSynchronize failed: operation not permitted when capturing")
        queue, self.queue = self.queue, []
        for work in queue:
            work()


def stream_of(handle: int) -> Stream:
    need_context("enqueue")
    return gpu.streams[handle]


def raw(array: Any) -> NDArray[np.uint8]:
    if not any(np.shares_memory(array, pinned) for pinned in gpu.pinned):
        raise Misuse("a copy that is to be asynchronous needs page-locked memory")
    if not array.flags.c_contiguous:
        raise ValueError("ndarray is not contiguous")
    return array.reshape(-1).view(np.uint8)  # type: ignore[no-any-return]


def memcpy_htod_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
    need_context("memcpy_htod_async")
    host = raw(src)
    gpu.copied.append(("up", host.size))
    device = view(int(dest), host.size)
    queue_on(stream, lambda: np.copyto(device, host))


def memcpy_dtoh_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
    need_context("memcpy_dtoh_async")
    host = raw(dest)
    gpu.copied.append(("down", host.size))
    device = view(int(src), host.size)
    queue_on(stream, lambda: np.copyto(host, device))


def memset_d8_async(dest: Any, data: int, size: int, stream: Stream | None = None) -> None:
    need_context("memset_d8_async")
    device = view(int(dest), size)
    queue_on(stream, lambda: device.fill(data))


def queue_on(stream: Stream | None, work: Callable[[], None]) -> None:
    if stream is None:
        raise Misuse("the default stream is used")
    stream.enqueue(work)


class Libcuda:
    """What ``edge_mdeq`` asks the driver through ctypes; a status of 0 is success."""

    def __init__(self, version: int = 12060) -> None:
        self.version = version

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            gpu.note(name)
            if name in gpu.refuse:
                if name == "cuStreamEndCapture":
                    self.stream(arguments[0]).captured = None
                return gpu.refuse[name]
            return int(getattr(self, f"do_{name}")(*arguments) or 0)

        if name.startswith("do_"):
            raise Misuse(f"libcuda's {name[3:]} is not imitated here")
        return call

    @staticmethod
    def stream(handle: Any) -> Stream:
        return gpu.streams[int(getattr(handle, "value", handle))]

    def do_cuInit(self, flags: int) -> None: ...  # noqa: N802

    def do_cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0 if index == 0 else 101

    def do_cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:  # noqa: N802
        name.value = b"Imitation"

    def do_cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> None:  # noqa: N802
        number._obj.value = {75: 8, 76: 7, 18: 1, 16: 8}[attribute]

    def do_cuDriverGetVersion(self, number: Any) -> None:  # noqa: N802
        number._obj.value = self.version

    def do_cuGetErrorString(self, status: int, text: Any) -> None:  # noqa: N802
        text._obj.value = b"imitated failure"

    def do_cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> None:  # noqa: N802
        self.stream(stream).captured = []

    def do_cuStreamEndCapture(self, stream: Any, graph: Any) -> None:  # noqa: N802
        captured, self.stream(stream).captured = self.stream(stream).captured, None
        graph._obj.value = next(gpu.handles)
        gpu.graphs[graph._obj.value] = captured or []

    def do_cuGraphInstantiateWithFlags(self, made: Any, graph: Any, flags: Any) -> None:  # noqa: N802
        made._obj.value = next(gpu.handles)
        gpu.graphs[made._obj.value] = gpu.graphs[graph.value]

    def do_cuGraphLaunch(self, made: Any, stream: Any) -> None:  # noqa: N802
        for work in gpu.graphs[made.value]:
            self.stream(stream).enqueue(work)

    def do_cuGraphDestroy(self, graph: Any) -> None:  # noqa: N802
        del gpu.graphs[graph.value]

    do_cuGraphExecDestroy = do_cuGraphDestroy  # noqa: N815
