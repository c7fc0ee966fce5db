"""What goes into a session and what comes out: frames and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.errors import ConfigError, FrameError
from mdeq_runtime.reasons import ColdKind

__all__ = ["Frame", "Result"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture from a source.

    Attributes:
        image: (h, w, 3) uint8, BGR as OpenCV delivers it.
        index: number of the frame in its source, from 0; dropped frames count.
        timestamp: seconds; the position in a file, or the monotonic clock at capture.
        captured: seconds of the monotonic clock when a live source gave it; None for files.
        epoch: how often its source was opened before. A warm start never crosses two of them.
    """

    image: NDArray[np.uint8]
    index: int
    timestamp: float
    captured: float | None = None
    epoch: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one frame, and how it was found.

    Attributes:
        output: for segmentation a mask (h, w) uint8 of class indices at the frame's size (255 where
            the model saw nothing); for classification scores (classes,) float32 that sum to one.
        confidence: for segmentation, if asked for, the probability (h, w) float32 of each pixel's
            class; else None.
        iterations: evaluations of f that this frame cost.
        residual: relative residual of the last evaluated iterate.
        converged: whether the residual is at or below the session's tolerance.
        warm: whether the solve started from the previous frame's equilibrium.
        reason: why it was cold ("first frame", "reset: ...", ...), or "" when warm.
        times: milliseconds by stage ("fit", "solve", "restore"; the pipeline adds "read").
        index, timestamp: those of the frame.
        labels, palette: a name and an RGB colour per class, as far as the bundle has them.
        cold: ``reason`` as one of a few words ("first_frame", "scene_cut", ...), to count by; None
            when warm.
        age_ms: milliseconds from the frame's capture to this answer; None for files, and where no
            pipeline looked at the clock.
        trace: (evaluations so far, residual) after each run of a graph: one pair for a count in one
            graph, one per evaluation for a solve in parts; a start that was given up is in it.
    """

    output: NDArray[Any]
    confidence: NDArray[np.float32] | None
    iterations: int
    residual: float
    converged: bool
    warm: bool
    reason: str
    times: Mapping[str, float] = field(default_factory=dict)
    index: int = 0
    timestamp: float = 0.0
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    cold: ColdKind | None = None
    age_ms: float | None = None
    trace: tuple[tuple[int, float], ...] = ()

    @property
    def busy_ms(self) -> float:
        """Milliseconds that were spent on the frame: all stages but "read", the wait for it."""
        return sum(ms for stage, ms in self.times.items() if stage != "read")

    def to_mask(self) -> NDArray[np.uint8]:
        """The mask (h, w) uint8 of class indices, at the frame's size.

        Raises:
            ConfigError: the model is a classifier.
        """
        if self.output.ndim != 2:
            raise ConfigError("a classifier's result has no mask; use top_k() or output")
        return self.output

    def top_k(self, k: int = 5) -> list[tuple[str, float]]:
        """(label, score) of the ``k`` likeliest classes, likeliest first.

        For segmentation the score is the share of the frame's pixels, and classes without any are
        left out.
        """
        from mdeq_runtime.answers import UNSEEN, class_shares, label_of, top_scores

        if k < 1:
            raise ConfigError(f"k is {k}, need at least 1")
        if self.output.ndim == 2:
            found = [(i, share) for i, share in class_shares(self.output) if i != UNSEEN][:k]
        else:
            found = top_scores(self.output, k)
        return [(label_of(index, self.labels), score) for index, score in found]

    def overlay(self, frame: NDArray[np.uint8], opacity: float = 0.5) -> NDArray[np.uint8]:
        """A copy of ``frame`` (h, w, 3) BGR with this answer, a legend and the residual drawn in.

        Raises:
            FrameError: not a BGR image, or of another size than the answered one.
        """
        from mdeq_runtime.frames import check_frame
        from mdeq_runtime.overlay import draw

        check_frame(frame, "the frame to draw on")
        if self.output.ndim == 2 and frame.shape[:2] != self.output.shape:
            raise FrameError(
                f"the frame to draw on has size {frame.shape[:2]}, the answer {self.output.shape}; "
                "pass the frame that was answered"
            )
        return draw(frame, self, self.labels, self.palette, opacity=opacity)
