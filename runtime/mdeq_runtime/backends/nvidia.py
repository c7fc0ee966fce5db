"""What NVIDIA's driver and TensorRT say of this machine; asked through ctypes, nothing is imported.

Where they are absent that is found within a millisecond, and said in words.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from edge_mdeq.errors import DeviceError

__all__ = ["CudaDevice", "DeviceMemory", "find_device", "tensorrt_version"]

DRIVER = "libcuda.so.1"  # of the driver, so it is the same for every CUDA
MAJOR, MINOR, INTEGRATED, PROCESSORS = 75, 76, 18, 16  # CUdevice_attribute


@dataclass(frozen=True)
class CudaDevice:
    """One GPU.

    Attributes:
        index: by which CUDA counts it.
        name: such as "Orin".
        capability: compute capability, (8, 7) for an Orin.
        driver: the newest CUDA that the driver supports, such as 12060.
        integrated: whether it shares its memory with the CPU, as on a Jetson.
        processors: how many multiprocessors it has; all boards with an Orin have the same name,
            but from 4 to 16 of them. 0: not asked.
    """

    index: int
    name: str
    capability: tuple[int, int]
    driver: int
    integrated: bool = False
    processors: int = 0


def find_device(index: int = 0) -> CudaDevice:
    """The GPU with that index.

    Raises:
        DeviceError: no driver, or no such GPU.
    """
    driver = _driver()
    device, number = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    asked = []
    for attribute in (MAJOR, MINOR, INTEGRATED, PROCESSORS):
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        asked.append(number.value)
    _call(driver, "cuDriverGetVersion", ctypes.byref(number))
    major, minor, integrated, processors = asked
    return CudaDevice(
        index, name.value.decode(), (major, minor), number.value, bool(integrated), processors
    )


class DeviceMemory:
    """What has been taken of a GPU's memory since this was made; made once, and kept.

    CUDA counts the device as a whole: what other processes take or give back meanwhile is in the
    number too. CUDA's own context, which making this brings into being, is not.

    Raises:
        DeviceError: no driver, or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self.driver = _driver()
        self.device, self.context = ctypes.c_int(), ctypes.c_void_p()
        _call(self.driver, "cuDeviceGet", ctypes.byref(self.device), index)
        _call(self.driver, "cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.before = self.used()

    def used(self) -> int:
        """Bytes in use on the device, by anyone; from any thread."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self.current():
            _call(self.driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def taken(self) -> int:
        """Bytes in use above those at the beginning."""
        return max(0, self.used() - self.before)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context that ONNX Runtime uses the calling thread's own for a moment."""
        _call(self.driver, "cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            _call(self.driver, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def tensorrt_version(major: int) -> str:
    """The version of the installed TensorRT, such as "10.3.0".

    Args:
        major: by which its library is named.

    Raises:
        DeviceError: it is not installed, or not where libraries are looked for.
    """
    name = f"libnvinfer.so.{major}"
    try:
        number = int(ctypes.CDLL(name).getInferLibVersion())
    except (OSError, AttributeError) as error:
        raise DeviceError(
            f"TensorRT {major} could not be loaded ({error}), and this ONNX Runtime was built for "
            f"it; on a Jetson it comes with JetPack, elsewhere install it from NVIDIA and put the "
            f"folder of {name} into LD_LIBRARY_PATH; or use the device cuda"
        ) from error
    return spell_version(number)


def spell_version(number: int) -> str:
    """TensorRT's version as people write it: 8601 is 8.6.1, 100300 is 10.3.0."""
    major = 10_000 if number >= 100_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _driver() -> ctypes.CDLL:
    driver = _library()
    if isinstance(driver, str):
        raise DeviceError(
            f"no NVIDIA driver was found ({driver}); install it, in a container start that with "
            "--gpus all (on a Jetson with --runtime nvidia), or use the device cpu"
        )
    _call(driver, "cuInit", 0)
    return driver


@cache  # a service asks with every reload, and each attempt would leave a cycle of objects
def _library() -> ctypes.CDLL | str:
    """The driver, or why there is none."""
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        return str(error)


def _call(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        DeviceError: with the driver's own words.
    """
    status = getattr(driver, function)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        words = text.value.decode() if text.value else "unknown error"
        raise DeviceError(
            f"the NVIDIA driver's {function} failed with {status} ({words}); see whether "
            "nvidia-smi (on a Jetson tegrastats) shows the GPU, or use the device cpu"
        )
