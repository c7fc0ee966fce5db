"""CUDA graphs: what a frame queues, recorded once and launched as one.

pycuda has none, so libcuda is asked through ctypes. A recorded graph holds addresses: it is good
for one engine, one stream's buffers and one turn of them, and until any of those goes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from mdeq_runtime.backends import nvidia

__all__ = ["CapturedGraph", "capture"]

THREAD_LOCAL = 1  # CUstreamCaptureMode: what other threads do with CUDA meanwhile is no error


class CapturedGraph:
    """An executable graph; ``destroy`` it before what it uses."""

    def __init__(self, executable: ctypes.c_void_p) -> None:
        self.executable: ctypes.c_void_p | None = executable

    def launch(self, stream: int) -> None:
        """Queue all of it on a stream, given by its handle.

        Raises:
            DeviceError: the driver refuses.
        """
        nvidia._call(nvidia._driver(), "cuGraphLaunch", self.executable, ctypes.c_void_p(stream))

    def destroy(self) -> None:
        executable, self.executable = self.executable, None
        if executable is not None:
            nvidia._call(nvidia._driver(), "cuGraphExecDestroy", executable)


def capture(stream: int, enqueue: Callable[[], None]) -> CapturedGraph:
    """Record what ``enqueue`` puts on a stream, given by its handle; nothing of it is done yet.

    Raises:
        DeviceError: the driver refuses, or something was queued that cannot be recorded.
    """
    driver, handle = nvidia._driver(), ctypes.c_void_p(stream)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    nvidia._call(driver, "cuStreamBeginCapture_v2", handle, THREAD_LOCAL)
    try:
        enqueue()
    except BaseException:
        driver.cuStreamEndCapture(handle, ctypes.byref(graph))  # the stream must be usable again
        if graph.value:
            driver.cuGraphDestroy(graph)
        raise
    nvidia._call(driver, "cuStreamEndCapture", handle, ctypes.byref(graph))
    try:
        nvidia._call(
            driver,
            "cuGraphInstantiateWithFlags",
            ctypes.byref(executable),
            graph,
            ctypes.c_ulonglong(0),
        )
    finally:
        nvidia._call(driver, "cuGraphDestroy", graph)
    return CapturedGraph(executable)
