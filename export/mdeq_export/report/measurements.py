"""Times of a bundle's graphs on this machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_mdeq.bundle import Manifest, Rung
from edge_mdeq.bundle.precision import precision_of
from mdeq_export.cost import live_bytes
from mdeq_export.sessions import plain_session

__all__ = ["measure_times", "name_of"]

RUNS, FEWEST_RUNS = 7, 3
SECONDS = 1.0  # after which no further run is begun, if there were as many as FEWEST_RUNS
HELD = 2**28  # bytes of the weights and values of graphs that are loaded at the same time

Taken = dict[str, list[float]]


def measure_times(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Milliseconds of every rung of the first profile on ONNX Runtime's CPU provider.

    The rungs take turns, so that what else the machine does meets all of them; as many of them as
    memory is spent on.

    Returns:
        The machine, and "milliseconds" by evaluations ("8", "8 int8"): least, median and most of
        ``RUNS``, or of fewer where they take long.
    """
    profile_name, profile = next(iter(manifest.profiles.items()))
    weights = sum(file.bytes for file in profile.weights)
    largest = max(live_bytes(path / rung.graph) for rung in profile.rungs)
    together = max(1, HELD // (weights + largest))
    given = {
        spec.name: np.zeros((abs(spec.shape[0]), *spec.shape[1:]), spec.dtype)
        for spec in (manifest.input.tensor, *manifest.states)
    }
    taken: Taken = {}
    for first in range(0, len(profile.rungs), together):
        taken |= take_turns(path, profile.rungs[first : first + together], given)
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": len(os.sched_getaffinity(0)),
            "runtime": f"onnxruntime {ort.__version__}, CPU",
        },
        "profile": profile_name,
        "milliseconds": {
            name: [round(f(times), 3) for f in (min, statistics.median, max)]
            for name, times in taken.items()
        },
    }


def name_of(rung: Rung) -> str:
    """A rung's evaluations, and its precision where that is not the one of all weights."""
    precision = precision_of(rung)
    return f"{rung.evaluations}" + (f" {precision}" if precision in ("int8", "refined") else "")


def take_turns(path: Path, rungs: Sequence[Rung], given: Mapping[str, NDArray[Any]]) -> Taken:
    """Milliseconds of each run of ``rungs`` on ``given``, by name; the first is no use."""
    sessions = {name_of(rung): plain_session(path / rung.graph, spinning=True) for rung in rungs}
    for session in sessions.values():
        session.run(None, given)
    taken: Taken = {name: [] for name in sessions}
    began = time.perf_counter()
    for run in range(RUNS):
        if run >= FEWEST_RUNS and time.perf_counter() - began > SECONDS:
            break
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, given)
            taken[name].append(1e3 * (time.perf_counter() - started))
    return taken
