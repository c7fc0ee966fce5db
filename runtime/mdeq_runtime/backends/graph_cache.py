"""Graphs as ONNX Runtime has optimised them, kept on this machine.

A session copies the weights out of their file and reorders most of them: of ImageNet-small, whose
file has 67 MB, it holds 93 MB of its own. Loaded from the optimised graph, whose weights lie in
their final order, it maps them instead: 20 MB are its own, and the kernel can take the rest back.
An optimised graph holds for one version of ONNX Runtime on one kind of processor, so it is a cache
and no part of a bundle. An entry whose fingerprint or hashes differ, or that was not made by this
user on this device, is never loaded, but made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_mdeq.bundle.reader import hash_file
from edge_mdeq.errors import DeviceError
from edge_mdeq.files import hold, read_capped
from mdeq_runtime.device_key import made_here, tag

__all__ = ["GraphCache", "fingerprint"]

log = logging.getLogger(__name__)

GRAPH, WEIGHTS, RECORD = "graph.onnx", "graph.bin", "made.json"
MAKING = ".making-"
CPUINFO = Path("/proc/cpuinfo")
RECORD_LIMIT = 2**16  # bytes
PURPOSE = "optimised graph"  # of tags
SMALLEST = 1024  # bytes of an initializer that goes into the weights file


class GraphCache:
    """A folder of optimised graphs.

    Args:
        root: made if needed; several bundles and versions may share it.
        ort: the module ONNX Runtime.
        options: makes the session options that the backend uses.
    """

    def __init__(self, root: Path, ort: Any, options: Callable[[], Any]) -> None:
        self.root, self.ort, self.options = root, ort, options
        self.machine = fingerprint(ort)

    def session(self, graph: Path, identity: str) -> Any | None:
        """A session on the optimised form of ``graph``, which is made if it is not there.

        Args:
            graph: the bundle's file.
            identity: says which graph with which weights this is; equal ones share an entry.

        Returns:
            None where the cache cannot be used; the reason is logged, and the graph itself will do.
        """
        entry = self.entry(identity)
        try:
            if not self.is_whole(entry):
                self.make(graph, entry)
            return self.open(entry / GRAPH)
        except Exception as error:  # a full disk, a read-only one, ONNX Runtime's own exceptions
            log.warning(
                "the graph cache %s cannot be used (%s); going on without", self.root, error
            )
            return None

    def has(self, identity: str) -> bool:
        """Whether a graph need not be made first."""
        return self.is_whole(self.entry(identity))

    def entry(self, identity: str) -> Path:
        """The folder of a graph on this machine."""
        return self.root / hashlib.sha256(f"{identity} {self.machine}".encode()).hexdigest()[:32]

    def is_whole(self, entry: Path) -> bool:
        """Whether an entry is there, for this machine, made by it, and unaltered."""
        try:
            record = json.loads(read_capped(entry / RECORD, RECORD_LIMIT))
            given = record.pop("tag")
            if not made_here(PURPOSE, record | {"entry": entry.name}, given):
                return False
            files = {name: hash_file(entry / name) for name in (GRAPH, WEIGHTS)}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return False
        except DeviceError:  # ``make`` says so
            return False
        return bool(record == {"machine": self.machine, "files": files})

    def make(self, graph: Path, entry: Path) -> None:
        """Optimise ``graph`` into ``entry``, which appears whole or not at all."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.tidy()
        folder = Path(tempfile.mkdtemp(prefix=MAKING, dir=self.root))
        lock = hold(folder)
        try:
            options = self.options()
            options.optimized_model_filepath = str(folder / GRAPH)
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", WEIGHTS)
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(SMALLEST))
            self.ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            (folder / WEIGHTS).touch()  # a graph without weights has none
            files = {name: hash_file(folder / name) for name in (GRAPH, WEIGHTS)}
            record: dict[str, Any] = {"machine": self.machine, "files": files}
            record["tag"] = tag(PURPOSE, record | {"entry": entry.name})
            (folder / RECORD).write_text(json.dumps(record, indent=2))
            if entry.exists():
                shutil.rmtree(entry, ignore_errors=True)
            try:
                folder.rename(entry)
            except OSError:
                if not self.is_whole(entry):  # else another process was quicker
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def tidy(self) -> None:
        """Remove what runs that were killed have left, not what one beside us is making."""
        for left in self.root.glob(f"{MAKING}*"):
            try:
                lock = hold(left)
            except OSError:
                continue
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)

    def open(self, graph: Path) -> Any:
        """A session that takes the graph as it is."""
        options = self.options()
        options.graph_optimization_level = self.ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self.ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def fingerprint(ort: Any) -> str:
    """What an optimised graph depends on: the version, and what the processor can do."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    kinds = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    facts = sorted({line for line in lines if line.startswith(kinds)})
    processor = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return f"onnxruntime {ort.__version__}, {platform.machine()}, processor {processor}"
