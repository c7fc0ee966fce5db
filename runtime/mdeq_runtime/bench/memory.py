"""The memory of one rung: a process that runs it and nothing else, above the same one without it.

``main`` is that process. Its base is the interpreter with what it has to import.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_mdeq.bundle import Rung, open_bundle
from edge_mdeq.bundle.signature import key_files
from edge_mdeq.errors import EdgeMdeqError, SessionError

if TYPE_CHECKING:
    from mdeq_runtime.bench.benchmark import BenchSettings

__all__ = ["Memory", "main", "measure_memory"]

FRAMES = 4
TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class Memory:
    """Bytes of a process.

    Attributes:
        above_base: at its peak, more than before the bundle was opened.
        resident: after some frames.
        peak: the most that it ever had.
        device: of a GPU's memory; None where the backend has none of its own.
    """

    above_base: int
    resident: int
    peak: int
    device: int | None = None


def measure_memory(
    bundle: Path, profile: str, rung: Rung, settings: BenchSettings, threads: int
) -> Memory | None:
    """What a process takes that answers frames with ``rung``; None where the system does not tell.

    Raises:
        SessionError: the process failed.
    """
    keys = settings.require_signature
    job = {
        "bundle": str(bundle),
        "profile": profile,
        "graph": rung.graph,
        "threads": threads,
        "device": settings.device,
        "cache": None if settings.cache is None else str(settings.cache),
        "keys": None if keys is None else [str(key) for key in key_files(keys)],
    }
    command = [sys.executable, "-m", "mdeq_runtime.bench.memory", json.dumps(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise SessionError(
            f"{rung.graph} took more than {TIMEOUT:g} s for {FRAMES} frames; leave its memory out "
            "with --no-memory"
        ) from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SessionError(
            f"the process that runs {rung.graph} for its memory failed: {said}; leave this out "
            "with --no-memory"
        )
    found = json.loads(done.stdout)
    return None if found is None else Memory(**found)


def main() -> None:
    """Answer a few frames with one rung; the memory as JSON on stdout, or null."""
    from mdeq_runtime.bench.benchmark import BenchSettings, open_for, session_for
    from mdeq_runtime.bench.machine import Cores
    from mdeq_runtime.bench.pictures import load_frames
    from mdeq_runtime.memory import peak_resident_bytes, resident_bytes

    for library in ("numpy", "cv2", "onnxruntime"):
        with suppress(ImportError):
            __import__(library)
    job = json.loads(sys.argv[1])
    base = resident_bytes()
    bundle = open_bundle(Path(job["bundle"]), require_signature=job["keys"])
    rung = next(r for r in bundle.profile(job["profile"]).rungs if r.graph == job["graph"])
    settings = BenchSettings(
        iterations=[rung.evaluations],
        device=job["device"],
        cache=None if job["cache"] is None else Path(job["cache"]),
    )
    backend, _ = open_for(bundle, settings, Cores(job["threads"], ()))
    session = session_for(bundle, job["profile"], backend, rung, "warm")
    frames, _ = load_frames(None, bundle.manifest.input.size)
    for frame in frames[:FRAMES]:
        session(frame)
    resident, peak = resident_bytes(), peak_resident_bytes()  # the peak last, it counts the other
    if base is None or peak is None or resident is None:
        print("null")
        return
    device = backend.device_bytes() if hasattr(backend, "device_bytes") else None
    print(json.dumps(vars(Memory(peak - base, resident, peak, device))))


if __name__ == "__main__":
    try:
        main()
    except EdgeMdeqError as failed:
        sys.exit(str(failed))
