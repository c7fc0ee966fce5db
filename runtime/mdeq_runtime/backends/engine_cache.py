"""TensorRT engines as ONNX Runtime's provider builds them, kept for the device that they fit.

ONNX Runtime names an engine by its graph's structure, not by its weights or the software that
built it. So each combination of those has a folder of its own, and an engine that is not recorded
there with its hash by this device (altered, half-written by a run that was killed, or put there by
a stranger) is removed and built anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_mdeq.bundle.reader import hash_file
from edge_mdeq.errors import DeviceError
from edge_mdeq.files import read_capped, user_folder, write_atomic
from mdeq_runtime.device_key import made_here, tag

__all__ = ["EngineCache", "engine_roots", "open_engine_cache"]

log = logging.getLogger(__name__)

RECORD = "engines.json"
ENGINES = "*.engine"
RECORD_LIMIT = 2**20  # bytes
PURPOSE = "ONNX Runtime's engines"  # of tags


class EngineCache:
    """A folder of engines for one device, one software and one set of graphs.

    Args:
        folder: made if needed.
        facts: what the engines depend on; they are written beside them.

    Raises:
        OSError: the folder cannot be written to.
        DeviceError: this device has no key that can be used.
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        self.folder, self.facts = folder, dict(facts)
        self.graphs: list[str] = []  # whose engines are here
        self.building: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        known = self.read()
        for engine in sorted(folder.glob(ENGINES)):
            if known.get(engine.name) != hash_file(engine):
                log.warning("%s is not as it was recorded; it is built anew", engine)
                engine.unlink()
                self.graphs = []
        self.write()

    def read(self) -> dict[str, str]:
        """The engines that were recorded here by this device, with their hashes."""
        try:
            record = json.loads(read_capped(self.folder / RECORD, RECORD_LIMIT))
            given = record.pop("tag")
            if record["facts"] != self.facts or not made_here(PURPOSE, record, given):
                return {}
            known, self.graphs = dict(record["files"]), list(record["graphs"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
        return known

    def announce(self, graph: str) -> None:
        """Say so before an engine is built: for minutes there will be no other sign of life."""
        self.building = graph
        if graph not in self.graphs:
            log.warning(
                "building a TensorRT engine of %s for this device (%s); it takes minutes, and is "
                "kept in %s",
                graph,
                self.facts.get("device", "unknown"),
                self.folder,
            )

    def record(self) -> None:
        """Note what was built since ``announce``, so that the next run uses it."""
        if self.building is not None and self.building not in self.graphs:
            self.graphs.append(self.building)
            self.write()
        self.building = None

    def write(self) -> None:
        files = {engine.name: hash_file(engine) for engine in sorted(self.folder.glob(ENGINES))}
        record: dict[str, Any] = {"facts": self.facts, "graphs": self.graphs, "files": files}
        record["tag"] = tag(PURPOSE, record)
        write_atomic(self.folder / RECORD, json.dumps(record, indent=2).encode() + b"\n")


def open_engine_cache(roots: Sequence[Path], facts: Mapping[str, str]) -> EngineCache | None:
    """The cache for ``facts`` in the first of ``roots`` that can be written to.

    Returns:
        None if none can; what went wrong is logged, and engines will be built in every run.
    """
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
    device = re.sub(r"[^A-Za-z0-9.]+", "-", facts.get("device", "device")).strip("-")
    problems = []
    for root in roots:
        try:
            cache = EngineCache(root / f"{device}-{digest[:16]}", facts)
            tempfile.TemporaryFile(dir=cache.folder).close()
        except OSError as error:
            problems.append(f"{root}: {error.strerror}")
        except DeviceError as error:
            problems.append(str(error))
        else:
            return cache
    log.warning("TensorRT engines cannot be kept (%s); every run builds them", "; ".join(problems))
    return None


def engine_roots(bundle: Path, cache: Path | None) -> tuple[Path, ...]:
    """Where engines may be kept: where the user says; else beside the bundle, or in a user's cache.

    Args:
        bundle: the bundle's folder.
        cache: the user's choice.
    """
    if cache is not None:
        return (cache / "engines",)
    user = user_folder("XDG_CACHE_HOME", ".cache")
    roots = (bundle / "engines",)
    return roots if user is None else (*roots, user / "edge-mdeq" / "engines")
