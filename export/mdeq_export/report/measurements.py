"""Times on this machine: what depends on a moment lies beside the manifest, never in it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_mdeq.bundle import Manifest
from edge_mdeq.files import write_atomic

__all__ = ["MEASUREMENTS", "REPORT", "measure_times", "read_measurements", "update_measurements"]

MEASUREMENTS, REPORT = "measurements.json", "report.html"
RUNS = 7


def measure_times(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Milliseconds of every rung of the first profile on ONNX Runtime's CPU provider.

    The rungs take turns, so that what else the machine does meets all of them.

    Returns:
        The machine, and "milliseconds" by evaluations: least, median and most of ``RUNS``.
    """
    name, profile = next(iter(manifest.profiles.items()))
    sessions, feeds = {}, {}
    for rung in profile.rungs:
        session = ort.InferenceSession(str(path / rung.graph), providers=["CPUExecutionProvider"])
        given = {
            spec.name: np.zeros((abs(spec.shape[0]), *spec.shape[1:]), spec.dtype)
            for spec in (manifest.input.tensor, *manifest.states)
        }
        session.run(None, given)
        sessions[rung.evaluations], feeds[rung.evaluations] = session, given
    taken: dict[int, list[float]] = {count: [] for count in sessions}
    for _ in range(RUNS):
        for count, session in sessions.items():
            started = time.perf_counter()
            session.run(None, feeds[count])
            taken[count].append(1e3 * (time.perf_counter() - started))
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "runtime": f"onnxruntime {ort.__version__}, CPU",
        },
        "profile": name,
        "milliseconds": {
            str(count): [round(f(times), 3) for f in (min, statistics.median, max)]
            for count, times in taken.items()
        },
    }


def read_measurements(path: Path) -> dict[str, Any]:
    """What was measured of the bundle at ``path``; empty where there is nothing, or no JSON."""
    try:
        found = json.loads((path / MEASUREMENTS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def update_measurements(path: Path, **entries: Any) -> None:
    """Put ``entries`` among the measurements of the bundle at ``path``."""
    merged = read_measurements(path) | entries
    write_atomic(path / MEASUREMENTS, json.dumps(merged, indent=2).encode() + b"\n")
