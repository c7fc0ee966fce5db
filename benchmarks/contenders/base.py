"""A contender, and the model that they all answer for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import open_bundle
from edge_mdeq.registry import PublishedSolver, lookup

__all__ = ["AbsentError", "Answer", "Case", "Contender", "session"]

Answer = Callable[[NDArray[np.uint8]], float | None]  # RGB (H, W, 3) -> residual, if it has one
PUBLISHED = {"classification": "imagenet-small", "segmentation": "cityscapes-small"}


class AbsentError(Exception):
    """A contender that cannot run here; the message says why."""


@dataclass(frozen=True)
class Case:
    """A model and where its files are.

    Attributes:
        name: of the model; what is no sample model is a registered one with drawn weights.
        weights: folder of weights and card.
        bundle: exported from them.
        folder: for what contenders make once and use again.
        threads: that each contender gets.
        memory_only: too large to be timed beside the others.
    """

    name: str
    weights: Path
    bundle: Path
    folder: Path
    threads: int
    memory_only: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return open_bundle(self.bundle).manifest.input.size

    @property
    def published(self) -> PublishedSolver:
        """How the published code solves this model, or else the one of its task."""
        try:
            found = lookup(self.name).published
        except ValueError:
            found = None
        task = open_bundle(self.bundle).manifest.task
        return found or lookup(PUBLISHED[task]).published  # type: ignore[return-value]


@dataclass(frozen=True)
class Contender:
    """Something that answers an image.

    Attributes:
        name: unique within a case.
        kind: "ours", "research", "naive", "openvino" or "network".
        prepare: makes it ready and returns what answers an image; raises AbsentError.
        precision: "fp32", "int8", or "refined" where the last evaluations are more precise.
        start: "cold", "warm", or "" for what has no state.
        evaluations: of f; None for what has none.
        steps: of one of our rungs, such as "7 int8 + 1 fp32".
        libraries: that a process has to import for it, which belong to no session's memory.
        memory: whether to measure it in a process of its own; a warm and a cold start take the
            same.
    """

    name: str
    kind: str
    prepare: Callable[[], Answer]
    precision: str = "fp32"
    start: str = ""
    evaluations: int | None = None
    steps: str = ""
    libraries: tuple[str, ...] = ("onnxruntime", "mdeq_runtime")
    memory: bool = True


def session(path: Path, threads: int) -> object:
    """A graph in ONNX Runtime as its users load one: all its defaults, so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
