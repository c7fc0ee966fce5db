"""What a run amounted to, gathered in bounded memory however long it lasts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mdeq_runtime.results import Result

__all__ = ["Percentiles", "Summary", "Tally"]

WINDOW = 10_000  # frames that the percentiles look back on; a run may last for weeks


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds of one stage that half, nine in ten, 99 in 100 of the frames stayed within."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Summary:
    """The outcome of ``run``.

    Attributes:
        frames: how many were answered.
        dropped: how many a live source delivered that nobody had time for.
        seconds: how long the run took, without closing its sinks.
        interrupted: whether Ctrl-C ended it.
        stages: by stage, over the last 10 000 frames: "read" (waiting for the source), those of the
            session, and "write" (all sinks and the callback).
        mean_iterations: evaluations of f per frame.
        warm_share: share of the frames that started from the previous equilibrium, 0...1.
        residual_mean: over the finite ones; None if there were none.
        residual_max: infinite if any was not finite.
        peak_rss_bytes: peak memory of the process (VmHWM), None where unknown.

    The means and the maximum are None when there was no frame.
    """

    frames: int
    dropped: int
    seconds: float
    interrupted: bool
    stages: Mapping[str, Percentiles]
    mean_iterations: float | None
    warm_share: float | None
    residual_mean: float | None
    residual_max: float | None
    peak_rss_bytes: int | None

    @property
    def fps(self) -> float:
        """Frames answered per second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


@dataclass
class Tally:
    """Counts while a run goes on."""

    frames: int = 0
    iterations: int = 0
    warm: int = 0
    finite: int = 0
    residual_sum: float = 0.0
    residual_max: float = 0.0
    stages: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, result: Result, write_ms: float) -> None:
        """Count one answered frame."""
        self.frames += 1
        self.iterations += result.iterations
        self.warm += result.warm
        if math.isfinite(result.residual):
            self.finite += 1
            self.residual_sum += result.residual
            self.residual_max = max(self.residual_max, result.residual)
        else:
            self.residual_max = math.inf
        for stage, milliseconds in {**result.times, "write": write_ms}.items():
            self.stages.setdefault(stage, deque(maxlen=WINDOW)).append(milliseconds)

    def summary(
        self, *, dropped: int, seconds: float, interrupted: bool, peak_rss_bytes: int | None
    ) -> Summary:
        """The sums as means and percentiles."""
        frames = self.frames
        return Summary(
            frames=frames,
            dropped=dropped,
            seconds=seconds,
            interrupted=interrupted,
            stages={stage: _percentiles(values) for stage, values in self.stages.items()},
            mean_iterations=self.iterations / frames if frames else None,
            warm_share=self.warm / frames if frames else None,
            residual_mean=self.residual_sum / self.finite if self.finite else None,
            residual_max=self.residual_max if frames else None,
            peak_rss_bytes=peak_rss_bytes,
        )


def _percentiles(milliseconds: deque[float]) -> Percentiles:
    p50, p90, p99 = np.percentile(list(milliseconds), (50, 90, 99))
    return Percentiles(float(p50), float(p90), float(p99))
