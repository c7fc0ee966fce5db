"""What was measured of a bundle on some machine: beside its manifest, never in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edge_mdeq.errors import BundleError
from edge_mdeq.files import write_atomic

__all__ = ["MEASUREMENTS", "REPORT", "REPORT_DATA", "read_measurements", "update_measurements"]

MEASUREMENTS = "measurements.json"
REPORT, REPORT_DATA = "report.html", "report.json"  # a page, and the numbers on it


def read_measurements(path: Path) -> dict[str, Any]:
    """What was measured of the bundle at ``path``; empty where there is nothing, or no JSON."""
    try:
        found = json.loads((path / MEASUREMENTS).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def update_measurements(path: Path, **entries: Any) -> None:
    """Put ``entries`` among the measurements of the bundle at ``path``.

    Raises:
        BundleError: they cannot be written.
    """
    merged = read_measurements(path) | entries
    try:
        write_atomic(path / MEASUREMENTS, json.dumps(merged, indent=2).encode() + b"\n")
    except OSError as error:
        raise BundleError(
            f"cannot write {path / MEASUREMENTS}: {error.strerror}; free some space"
        ) from error
