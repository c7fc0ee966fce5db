"""Whether a bundle's engines can run here, and if not, why; decided before anything is imported.

What is absent is found first and within milliseconds: driver, TensorRT, pycuda, graphs for it,
engines that fit. Only then are TensorRT and pycuda imported and engines read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from edge_mdeq.bundle import Bundle
from edge_mdeq.bundle.precision import chosen
from edge_mdeq.errors import EngineError, MissingExtraError
from mdeq_runtime.backends import Backend
from mdeq_runtime.backends.nvidia import find_device
from mdeq_runtime.policies import Policy
from mdeq_runtime.tensorrt.engines import EngineStore
from mdeq_runtime.tensorrt.identity import identify
from mdeq_runtime.tensorrt.records import read_record, record_file
from mdeq_runtime.tensorrt.settings import BuildSettings, in_fp16, needed
from mdeq_runtime.tensorrt.versions import Release, find_flavour, find_release

__all__ = ["find_engines", "open_engines", "require_tensorrt"]


def open_engines(
    bundle: Bundle,
    policies: Sequence[Policy],
    carry: bool,
    cache: Path | None = None,
    limit: int | None = None,
    precision: str | None = None,
) -> tuple[Backend, str]:
    """The backend that runs a bundle's engines on this GPU, those that ``policies`` need loaded.

    Args:
        bundle: the opened bundle.
        policies: of the sessions that are expected.
        carry: whether their frames start from the last equilibrium.
        cache: where else engines may lie; see ``EngineStore``.
        limit: bytes of the GPU's memory that may be taken.
        precision: of the sessions; None: the bundle's usual one.

    Returns:
        The backend, and the name of the profile that its engines were built from.

    Raises:
        DeviceError: no driver, no GPU, a TensorRT that is too old, or an engine (``EngineError``)
            that is missing, does not fit, or cannot be loaded.
        MissingExtraError: TensorRT or pycuda is not installed.
        BundleError: the bundle was not exported for this TensorRT.
        MemoryLimitError: the engines do not fit.
        SessionError: pycuda or TensorRT failed in a way that is not known.
    """
    release, store = find_engines(bundle, cache)
    manifest = bundle.manifest
    profile = chosen(store.profile, precision, manifest.precision, manifest.name)
    graphs = needed(profile, policies, carry)
    built = [read_record(record_file(store.find(graph))) for graph in graphs]
    streaming = any(record.settings.get("stream_weights") for record in built)
    host_code = any(record.identity.version_compatible for record in built)
    from mdeq_runtime.tensorrt.backend import TensorRTBackend

    flavour = find_flavour(release.rtx)
    backend = TensorRTBackend(
        bundle, flavour, store.find, limit, streaming=streaming, host_code=host_code
    )
    try:
        for graph in graphs:
            backend.load(graph)
    except BaseException:
        backend.close()
        raise
    return backend, release.profile


def find_engines(bundle: Bundle, cache: Path | None = None) -> tuple[Release, EngineStore]:
    """The TensorRT of this device and the engines of ``bundle`` for it; nothing is imported.

    Raises:
        DeviceError, MissingExtraError, BundleError: as ``open_engines``.
    """
    release = require_tensorrt()
    profile = bundle.profile(release.profile)
    settings = BuildSettings(half=in_fp16(release, profile, False))
    store = EngineStore(bundle, release.profile, identify(release, profile, settings), cache)
    if not any(store.candidates(graph) for graph in profile.graphs):
        raise EngineError(
            f"{bundle.path} has no engines; build them for this device: {store.command()}"
        )
    return release, store


def require_tensorrt() -> Release:
    """The TensorRT of this device, with all that its engines need to run; nothing is imported.

    Raises:
        DeviceError, MissingExtraError: something is missing, and how to get it.
    """
    find_device()
    release = find_release()
    if importlib.util.find_spec("pycuda") is None:
        raise MissingExtraError(
            f"{release.name} is here, but pycuda, which runs its engines, is not; install it where "
            "CUDA's nvcc is on the PATH: PATH=/usr/local/cuda/bin:$PATH pip install "
            "'edge-mdeq[tensorrt]'"
        )
    return release
