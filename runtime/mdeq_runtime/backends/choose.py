"""Which backend runs a bundle on this machine, and on which of its profiles.

| device | needs | profile |
|---|---|---|
| cpu | onnxruntime, or any other build of it | ort-cpu, which every bundle has |
| cuda | onnxruntime-gpu, CUDA, cuDNN, a GPU | ort-cuda |
| tensorrt | TensorRT, pycuda, and engines that `edge-mdeq engine` built here | tensorrt-N |
| | without them onnxruntime-gpu and TensorRT, whose first run builds some | tensorrt-N |
| auto | | engines that fit, else cuda where all of it is there, else cpu |

``auto`` builds no engines: that takes minutes, and is for the user to ask for. Whatever makes it
leave a GPU unused is logged, if the bundle or what is installed suggests that one was meant.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_mdeq.bundle import Bundle, Profile
from edge_mdeq.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    MemoryLimitError,
    MissingExtraError,
    SessionError,
    require,
)
from mdeq_runtime.backends import Backend
from mdeq_runtime.backends.engine_cache import engine_roots, open_engine_cache
from mdeq_runtime.backends.nvidia import CudaDevice, find_device, tensorrt_version
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.backends.ort_gpu import OrtGpuBackend
from mdeq_runtime.backends.places import CUDA, TENSORRT, cuda, require_provider, tensorrt
from mdeq_runtime.memory import total_bytes
from mdeq_runtime.policies import Policy
from mdeq_runtime.tensorrt.identity import system
from mdeq_runtime.tensorrt.opening import open_engines

__all__ = ["DEVICES", "open_backend"]

log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda", "tensorrt")
PROVIDERS = {"cuda": CUDA, "tensorrt": TENSORRT}
TENSORRT_LIBRARY = "libonnxruntime_providers_tensorrt.so"


def open_backend(
    bundle: Bundle,
    device: str = "auto",
    threads: int = 0,
    cache: Path | None = None,
    limit: int | None = None,
    policies: Sequence[Policy] = (),
    carry: bool = True,
    precision: str | None = None,
) -> tuple[Backend, str]:
    """What runs ``bundle`` on ``device``.

    Args:
        bundle: the opened bundle.
        device: one of ``DEVICES``.
        threads: threads per graph on the CPU, 0 for one per core.
        cache: a folder for graphs, or engines, as this machine runs them.
        limit: bytes that the process may take on the CPU, or that graphs may take of a GPU's
            memory.
        policies, carry, precision: of the sessions that are expected; engines are only chosen if
            they are there for these, and can be loaded.

    Returns:
        The backend, and the name of the profile that it runs.

    Raises:
        ConfigError: no such device.
        MissingExtraError: ONNX Runtime, or its build for GPUs, is not installed.
        DeviceError: no GPU, or a library that it needs is missing.
        BundleError: the bundle was not exported for the device, or is damaged.
        MemoryLimitError: a stream does not fit this machine, or a limit.
    """
    if device not in DEVICES:
        near = difflib.get_close_matches(device, DEVICES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown device {device!r}, known: {', '.join(DEVICES)}{hint}")
    check_size(bundle)
    if device == "auto":
        return open_auto(bundle, threads, cache, limit, policies, carry, precision)
    if device == "cuda":
        return open_cuda(bundle, limit)
    if device == "tensorrt":
        return open_tensorrt(bundle, cache, limit, policies, carry, precision)
    return OrtCpuBackend(bundle, threads, cache, limit), "ort-cpu"


def check_size(bundle: Bundle) -> None:
    """See that the tensors of one stream fit this machine, before anything is allocated.

    Raises:
        MemoryLimitError: they do not: no machine would show that before it runs out of memory.
    """
    need, total = bundle.manifest.stream_bytes, total_bytes()
    if total is not None and need > total:
        raise MemoryLimitError(
            f"a stream of {bundle.path} takes {need / 1e6:.0f} MB for its tensors alone, this "
            f"machine has {total / 1e6:.0f} MB; export it for a smaller image"
        )


def open_auto(
    bundle: Bundle,
    threads: int,
    cache: Path | None,
    limit: int | None,
    policies: Sequence[Policy],
    carry: bool,
    precision: str | None,
) -> tuple[Backend, str]:
    meant = any(name.startswith("tensorrt-") for name in bundle.manifest.profiles)
    try:
        return open_engines(bundle, policies, carry, cache, limit, precision)
    except (DeviceError, BundleError, MissingExtraError, MemoryLimitError, SessionError) as error:
        log.log(logging.WARNING if meant else logging.DEBUG, "not running on TensorRT: %s", error)
    ort = require("onnxruntime", "onnxruntime", "running a bundle")
    if CUDA in ort.get_available_providers():
        try:
            return open_cuda(bundle, limit)
        except (DeviceError, BundleError) as error:
            log.warning("running on the CPU, not on a GPU: %s", error)
    return open_backend(bundle, "cpu", threads, cache, limit)


def open_cuda(bundle: Bundle, limit: int | None) -> tuple[Backend, str]:
    ort = provider_of("cuda")
    find_device()
    name = exported_for(bundle, "ort-cuda")
    preload(ort)
    require_provider(ort, CUDA)
    place = cuda(in_half(bundle.profile(name)), limit=limit)
    return OrtGpuBackend(bundle, name, place, limit), name


def open_tensorrt(
    bundle: Bundle,
    cache: Path | None,
    limit: int | None,
    policies: Sequence[Policy],
    carry: bool,
    precision: str | None,
) -> tuple[Backend, str]:
    """Engines of our own, or, where these cannot run, those that ONNX Runtime builds."""
    try:
        return open_engines(bundle, policies, carry, cache, limit, precision)
    except (DeviceError, BundleError, MissingExtraError, SessionError) as error:
        if not has_provider(TENSORRT):
            raise
        log.warning("running on ONNX Runtime's TensorRT: %s", error)
    return open_ort_tensorrt(bundle, cache, limit)


def open_ort_tensorrt(bundle: Bundle, cache: Path | None, limit: int | None) -> tuple[Backend, str]:
    ort = provider_of("tensorrt")
    gpu = find_device()
    major = built_for_tensorrt(ort)
    name = exported_for(bundle, f"tensorrt-{major}")
    profile = bundle.profile(name)
    if in_half(profile):
        raise BundleError(
            f"the graphs of {bundle.path} for {name} hold FP16, which ONNX Runtime's TensorRT "
            "provider cannot build as they say (its networks are weakly typed: FP16 would spread "
            "to norms and solver); export without --half, or use the device cuda"
        )
    preload(ort)
    version = tensorrt_version(major)
    for provider in (CUDA, TENSORRT):
        require_provider(ort, provider)
    engines = open_engine_cache(
        engine_roots(bundle.path, cache), facts(bundle, profile, ort, gpu, version)
    )
    folder = None if engines is None else engines.folder
    place = tensorrt("FP16" in profile.flags, folder, limit=limit)
    return OrtGpuBackend(bundle, name, place, limit, engines), name


def has_provider(provider: str) -> bool:
    """Whether an ONNX Runtime is installed that was built with a provider."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    ort = require("onnxruntime", "onnxruntime", "running a bundle")
    return provider in ort.get_available_providers()


def provider_of(device: str) -> Any:
    """The module ONNX Runtime, if it was built with what a device needs.

    Raises:
        MissingExtraError: it was not.
    """
    ort = require("onnxruntime", "onnxruntime-gpu", f"the device {device}")
    if PROVIDERS[device] not in ort.get_available_providers():
        raise MissingExtraError(
            f"the device {device} needs an ONNX Runtime with {PROVIDERS[device]}; the one here "
            f"({ort.__version__}) has {', '.join(ort.get_available_providers())}. The two builds "
            "overwrite each other: pip uninstall onnxruntime onnxruntime-gpu, then pip install "
            "'edge-mdeq[onnxruntime-gpu]'; on a Jetson, the onnxruntime-gpu made for its JetPack"
        )
    return ort


def exported_for(bundle: Bundle, name: str) -> str:
    """``name``, if it is a profile of the bundle.

    Raises:
        BundleError: it is not; with how to get it.
    """
    if name not in bundle.manifest.profiles:
        raise BundleError(
            f"{bundle.path} has no graphs for {name!r}, only for "
            f"{', '.join(bundle.manifest.profiles)}; export it again with --target {name}, or use "
            "the device cpu"
        )
    return name


def in_half(profile: Profile) -> bool:
    """Whether a profile's graphs compute in FP16."""
    return any(weights.precision == "fp16" for weights in profile.weights)


def preload(ort: Any) -> None:
    """Let ONNX Runtime find the CUDA and cuDNN that pip installed, where they are."""
    heard = io.StringIO()  # it prints what it does not find, system-wide libraries included
    with contextlib.redirect_stdout(heard):
        ort.preload_dlls()
    if heard.getvalue():
        log.debug("onnxruntime.preload_dlls: %s", heard.getvalue().strip())


def built_for_tensorrt(ort: Any) -> int:
    """The major version of the TensorRT that an ONNX Runtime is linked with.

    Raises:
        DeviceError: it does not say.
    """
    library = Path(ort.__file__).parent / "capi" / TENSORRT_LIBRARY
    try:
        found = re.search(rb"libnvinfer\.so\.(\d+)", library.read_bytes())
    except OSError as error:
        raise DeviceError(
            f"ONNX Runtime's TensorRT provider cannot be read ({error}); install it again"
        ) from error
    if found is None:
        raise DeviceError(f"{library} does not say which TensorRT it needs; use the device cuda")
    return int(found.group(1))


def facts(
    bundle: Bundle, profile: Profile, ort: Any, gpu: CudaDevice, version: str
) -> dict[str, str]:
    """All that an engine depends on."""
    files = sorted(bundle.manifest.files[name].sha256 for name in profile.files)
    return {
        "device": gpu.name,
        "multiprocessors": str(gpu.processors),
        "compute_capability": ".".join(map(str, gpu.capability)),
        "cuda": str(gpu.driver),
        "tensorrt": version,
        "onnxruntime": str(ort.__version__),
        "graphs": hashlib.sha256(" ".join(files).encode()).hexdigest(),
        **system(),
    }
