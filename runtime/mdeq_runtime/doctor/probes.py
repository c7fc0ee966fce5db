"""What installed libraries say of themselves, each asked in a process of its own.

A library for another board, CUDA or NumPy may end the process that imports it, or hang; so it is
imported where that does no harm. All are asked at the same time.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_mdeq.errors import DeviceError, EdgeMdeqError

if TYPE_CHECKING:
    from edge_mdeq.bundle import Bundle

__all__ = ["DEVICE_OF", "device_of", "probe_all"]

LIMIT_S = 20.0  # TensorRT takes seconds to import from a slow card
CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mdeq_runtime.doctor.probes import answer
answer(*sys.argv[2:])
"""
DEVICE_OF = {"ort-cpu": "cpu", "ort-cuda": "cuda"}  # profiles, and what runs them


def device_of(profile: str) -> str | None:
    """The device (of ``mdeq_runtime.backends.choose``) for a profile; None: it has none."""
    if re.fullmatch(r"tensorrt-(\d+|rtx)", profile):
        return "tensorrt"
    return DEVICE_OF.get(profile)


def probe_all(
    names: Sequence[str], path: Sequence[str], environ: Mapping[str, str], bundle: Path | None
) -> dict[str, dict[str, Any]]:
    """Ask each of ``names`` (functions below); an answer with "error" says what went wrong."""
    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        return dict(
            zip(
                names, pool.map(lambda name: probe(name, path, environ, bundle), names), strict=True
            )
        )


def probe(
    name: str, path: Sequence[str], environ: Mapping[str, str], bundle: Path | None
) -> dict[str, Any]:
    arguments = [name] if bundle is None else [name, str(bundle.absolute())]
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(list(path)), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {LIMIT_S:g} s"}
    if done.returncode < 0:
        return {"error": f"ended its process ({signal.Signals(-done.returncode).name})"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines() or ["no message"]
        found = {"error": f"ended its process with status {done.returncode} ({said[-1]})"}
    return found


def answer(name: str, bundle: str = "") -> None:
    """Print what a probe finds as one line of JSON; runs in the child."""
    try:
        found = try_bundle(Path(bundle)) if name == "bundle" else PROBES[name]()
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps(found), flush=True)


def ask_opencv() -> dict[str, Any]:
    import cv2

    built: str = cv2.getBuildInformation()

    def said(what: str) -> str:
        found = re.search(rf"^ *{what}: *(.+)$", built, re.MULTILINE)
        return found[1].strip() if found else "NO"

    return {
        "version": cv2.__version__,
        "file": cv2.__file__,
        "gstreamer": not said("GStreamer").startswith("NO"),
        "ffmpeg": not said("FFMPEG").startswith("NO"),
        "v4l": not said("v4l/v4l2").startswith("NO"),
        "gui": said("GUI") not in ("", "NO", "NONE")
        or any(said(toolkit).startswith("YES") for toolkit in (r"GTK\+", "QT")),  # before 4.5
    }


def ask_onnxruntime() -> dict[str, Any]:
    import onnxruntime as ort

    found: dict[str, Any] = {"version": ort.__version__, "providers": ort.get_available_providers()}
    found["devices"] = {device: reason(check) for device, check in READY.items()}
    return found


def ask_tensorrt() -> dict[str, Any]:
    import tensorrt  # type: ignore[import-not-found, unused-ignore]

    return {"version": tensorrt.__version__, "file": tensorrt.__file__}


def ask_pycuda() -> dict[str, Any]:
    import pycuda  # type: ignore[import-not-found, unused-ignore]
    import pycuda.driver  # type: ignore[import-not-found, unused-ignore]

    return {"version": pycuda.VERSION_TEXT}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "cv2": ask_opencv,
    "onnxruntime": ask_onnxruntime,
    "tensorrt": ask_tensorrt,
    "pycuda": ask_pycuda,
}


def reason(check: Callable[[], object]) -> str | None:
    """Why a check fails; None if it does not."""
    try:
        check()
    except EdgeMdeqError as error:
        return str(error)
    return None


def ready_cpu() -> None:
    from edge_mdeq.errors import require

    require("onnxruntime", "onnxruntime", "running a bundle")


def ready_cuda() -> None:
    from mdeq_runtime.backends import choose
    from mdeq_runtime.backends.nvidia import find_device
    from mdeq_runtime.backends.places import CUDA, require_provider

    ort = choose.provider_of("cuda")
    find_device()
    choose.preload(ort)
    require_provider(ort, CUDA)


def ready_tensorrt() -> None:
    """Engines of our own, or else those of ONNX Runtime."""
    from mdeq_runtime.backends import choose
    from mdeq_runtime.backends.places import TENSORRT
    from mdeq_runtime.tensorrt.opening import require_tensorrt

    try:
        require_tensorrt()
    except EdgeMdeqError:
        if not choose.has_provider(TENSORRT):
            raise
        ready_ort_tensorrt()


def ready_ort_tensorrt() -> None:
    from mdeq_runtime.backends import choose
    from mdeq_runtime.backends.nvidia import find_device, tensorrt_version
    from mdeq_runtime.backends.places import CUDA, TENSORRT, require_provider

    ort = choose.provider_of("tensorrt")
    find_device()
    major = choose.built_for_tensorrt(ort)
    choose.preload(ort)
    tensorrt_version(major)
    for provider in (CUDA, TENSORRT):
        require_provider(ort, provider)


READY = {"cpu": ready_cpu, "cuda": ready_cuda, "tensorrt": ready_tensorrt}


def try_bundle(path: Path) -> dict[str, Any]:
    """Which profiles would run here, and what memory the least form needs on the CPU.

    Nothing is written beside the bundle; no graph is loaded.
    """
    from edge_mdeq.bundle import open_bundle
    from mdeq_runtime.backends import PredictsMemory
    from mdeq_runtime.backends.choose import open_backend
    from mdeq_runtime.memory import resident_bytes
    from mdeq_runtime.planner import choices
    from mdeq_runtime.session import SessionSettings

    bundle = open_bundle(path)
    found: dict[str, Any] = {}
    for name, profile in bundle.manifest.profiles.items():
        device = device_of(name)
        entry: dict[str, Any] = {"error": None, "bytes": None}
        found[name] = entry
        if device is None:
            entry["error"] = "none of this runtime's devices runs it"
            continue
        try:
            if device == "tensorrt" and has_engines(bundle, name):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                backend, chosen = open_backend(bundle, device, cache=Path(scratch))
                if chosen != name:
                    entry["error"] = f"the TensorRT here takes {chosen}"
                elif isinstance(backend, PredictsMemory):
                    needs = choices(
                        bundle.manifest,
                        profile,
                        backend.footprint,
                        SessionSettings().policy,
                        carry=True,
                        base=resident_bytes() or 0,
                    )
                    entry["bytes"] = min(choice.need.total for choice in needs)
                backend.close()
        except EdgeMdeqError as error:
            entry["error"] = str(error)
    return {"profiles": found}


def has_engines(bundle: Bundle, profile: str) -> bool:
    """Whether engines of a profile can run here; False where ONNX Runtime may build its own.

    Raises:
        DeviceError, MissingExtraError, BundleError: none can, and ONNX Runtime has no TensorRT.
    """
    from mdeq_runtime.backends.choose import has_provider
    from mdeq_runtime.backends.places import TENSORRT
    from mdeq_runtime.tensorrt.opening import find_engines

    try:
        release, store = find_engines(bundle)
        if release.profile != profile:
            raise DeviceError(f"the TensorRT here takes {release.profile}")
        graphs = [graph for graph in store.profile.graphs if store.candidates(graph)]
        if not any(store.has(graph) for graph in graphs):
            store.find(graphs[0])  # which says why it does not fit
    except EdgeMdeqError:
        if has_provider(TENSORRT):
            return False
        raise
    return True
