"""What ONNX Runtime is told of a GPU: its providers, their options, and one arena.

What was decided for small memory, and why (the bytes are of camvid-nano in parts, as ONNX Runtime
1.31 asks the CUDA runtime for them, without what cuDNN asks for):

- One arena for all sessions of the process that grows by what is asked for: 23 MB. With an arena
  per session it is 28 MB, growing in powers of two 40 MB, with planned patterns as well 57 MB.
- ``cudnn_conv_algo_search`` HEURISTIC: the default tries every algorithm with as much workspace as
  it likes, in the first frame. Where cuDNN's older interface is used,
  ``cudnn_conv_use_max_workspace`` 0 keeps it to 32 MB.
- ``use_tf32`` only in half precision: it rounds the inputs of convolutions to 10 bits, so that a
  solve in single precision would not get below a residual that the bundle promises.
- ``do_copy_in_default_stream`` stays on: off it may race, and there is next to nothing to copy.
- No CUDA graphs: each captured one keeps the arena's memory that it used to itself, needs a capture
  per stream, graph and turn, and forbids that two streams run at the same time.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mdeq.errors import ConfigError, DeviceError
from mdeq_runtime.backends.nvidia import DeviceMemory

__all__ = [
    "CPU",
    "CUDA",
    "TENSORRT",
    "Place",
    "cuda",
    "require_provider",
    "share_arena",
    "tensorrt",
]

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
WORKSPACE = 2**28  # bytes that TensorRT may use while it tries out and runs a layer
CUDNN = "libcudnn.so.9"  # some builds look for it as late as in the first convolution
EXTEND_AS_REQUESTED = 1  # kSameAsRequested, as OrtArenaCfg counts


@dataclass(frozen=True)
class Place:
    """Where graphs run and their tensors lie.

    Attributes:
        name: for people.
        providers: ONNX Runtime's, each with its options. The first one is to run the graphs; what
            it does not take may go to the next, but never to the CPU unless that is named.
        tensors: the device's name among ``OrtValue``'s.
        index: which of them.
    """

    name: str
    providers: tuple[tuple[str, dict[str, Any]], ...]
    tensors: str = "cuda"
    index: int = 0

    @property
    def provider(self) -> str:
        return self.providers[0][0]

    @property
    def on_device(self) -> bool:
        return self.tensors != "cpu"


def cuda(half: bool, index: int = 0, limit: int | None = None) -> Place:
    """The CUDA provider.

    Args:
        half: whether the graphs compute in FP16.
        index: which GPU.
        limit: bytes that weights and values may take.
    """
    return Place("CUDA", ((CUDA, cuda_options(half, index, limit)),), index=index)


def tensorrt(fp16: bool, engines: Path | None, index: int = 0, limit: int | None = None) -> Place:
    """The TensorRT provider, with CUDA for the operators that it does not take.

    Args:
        fp16: whether its builder is to choose FP16 where that is faster.
        engines: a folder of this device's, in which engines are kept, so that they are built once;
            None: they are built in every run.
        index: which GPU.
        limit: bytes that weights and values may take.
    """
    options: dict[str, Any] = {
        "device_id": index,
        "trt_max_workspace_size": min(WORKSPACE, limit or WORKSPACE),
        "trt_fp16_enable": fp16,
    }
    for kept in ("engine", "timing") if engines is not None else ():
        options |= {f"trt_{kept}_cache_enable": True, f"trt_{kept}_cache_path": str(engines)}
    rest = cuda_options(fp16, index, limit)
    return Place("TensorRT", ((TENSORRT, options), (CUDA, rest)), index=index)


def cuda_options(half: bool, index: int, limit: int | None) -> dict[str, Any]:
    """See the module's docstring."""
    options: dict[str, Any] = {
        "device_id": index,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": 0,
        "use_tf32": int(half),
    }
    return options if limit is None else options | {"gpu_mem_limit": limit}


SHARED: dict[int, tuple[int | None, DeviceMemory]] = {}  # each device's arena: its limit, its use


def share_arena(ort: Any, index: int, limit: int | None) -> DeviceMemory:
    """One arena for all sessions on a device, made once and kept; its first limit holds.

    Returns:
        What has been taken of the device since just before it was made.

    Raises:
        DeviceError: there is no such device.
        ConfigError: another limit than the first.
    """
    if index not in SHARED:
        memory = DeviceMemory(index)
        kind, where = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
        settings = {"max_mem": limit or 0, "arena_extend_strategy": EXTEND_AS_REQUESTED}
        options = {name: str(value) for name, value in cuda_options(False, index, limit).items()}
        ort.create_and_register_allocator_v2(
            CUDA, ort.OrtMemoryInfo("Cuda", kind, index, where), options, ort.OrtArenaCfg(settings)
        )
        SHARED[index] = limit, memory
    first, memory = SHARED[index]
    if first != limit:
        raise ConfigError(
            f"this process uses GPU {index} under the limit {first}, which cannot become {limit}; "
            "open all models under the same one, or in processes of their own"
        )
    return memory


def require_provider(ort: Any, provider: str) -> None:
    """See that all libraries of a provider are there; ONNX Runtime would go on without it.

    Raises:
        DeviceError: one of them is not, in the loader's words.
    """
    name = f"libonnxruntime_providers_{provider.removesuffix('ExecutionProvider').lower()}.so"
    for library in (CUDNN, str(Path(ort.__file__).parent / "capi" / name)):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            if "undefined symbol" in str(error):
                continue  # of ONNX Runtime, which has to load it; what it needs itself is there
            raise DeviceError(
                f"ONNX Runtime's {provider} cannot be loaded ({error}), and all would run on the "
                "CPU; pip install 'edge-mdeq[onnxruntime-gpu]' brings CUDA and cuDNN, TensorRT and "
                "all that a Jetson needs come from NVIDIA; or use the device cpu"
            ) from error
