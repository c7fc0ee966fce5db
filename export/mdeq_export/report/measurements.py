"""Times of a bundle's graphs on this machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_mdeq.bundle import Manifest

__all__ = ["measure_times"]

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
            "cores": len(os.sched_getaffinity(0)),
            "runtime": f"onnxruntime {ort.__version__}, CPU",
        },
        "profile": name,
        "milliseconds": {
            str(count): [round(f(times), 3) for f in (min, statistics.median, max)]
            for count, times in taken.items()
        },
    }
