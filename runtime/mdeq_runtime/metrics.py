"""What a run amounts to, gathered frame by frame in bounded memory however long it lasts."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from mdeq_runtime.backends import Backend, ReportsDeviceMemory
from mdeq_runtime.memory import peak_resident_bytes, resident_bytes
from mdeq_runtime.results import Result
from mdeq_runtime.sources.status import Status

if TYPE_CHECKING:
    from mdeq_runtime.sources.base import Source

__all__ = ["WINDOW", "Metrics", "Percentiles", "Snapshot", "Summary"]

WINDOW = 10_000  # frames that the percentiles look back on


@dataclass(frozen=True)
class Percentiles:
    """One quantity over many frames.

    Attributes:
        p50, p90, p99: what half, nine in ten, 99 in 100 of the last 10 000 values stayed within.
        count: how many values there have been since the start.
        total: their sum.
    """

    p50: float
    p90: float
    p99: float
    count: int
    total: float


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one moment.

    Attributes:
        time: seconds since 1970, UTC, as far as the machine's clock is right.
        seconds: how long the metrics have been gathered.
        frames: how many were answered.
        dropped: how many a live source delivered that nobody had time for.
        stages: milliseconds by stage: "read" (waiting for the source), those of the session, and
            "write" (all sinks and the callback).
        busy: milliseconds spent on a frame: all stages but "read".
        age: milliseconds from a frame's capture to its answer, of live sources.
        iterations: evaluations of f by frame.
        mean_iterations: their mean.
        warm_share: share of the frames that started from the previous equilibrium, 0...1.
        cold: how many frames started from zero, by the kind of reason (``reasons.COLD_KINDS``).
        residual: over the finite ones.
        residual_mean: over the finite ones.
        residual_max: infinite if any was not finite.
        rss_bytes: resident memory of the process now (VmRSS), None where unknown.
        peak_rss_bytes: its peak (VmHWM), None where unknown.
        device_bytes: memory of the device, None where the backend does not report it.
        source: how the source is doing; None where no pipeline said which it is.

    What is a mean, a maximum or a percentile is None when there was nothing to take it of.
    """

    time: float
    seconds: float
    frames: int
    dropped: int
    stages: Mapping[str, Percentiles]
    busy: Percentiles | None
    age: Percentiles | None
    iterations: Percentiles | None
    mean_iterations: float | None
    warm_share: float | None
    cold: Mapping[str, int]
    residual: Percentiles | None
    residual_mean: float | None
    residual_max: float | None
    rss_bytes: int | None
    peak_rss_bytes: int | None
    device_bytes: int | None
    source: Status | None

    @property
    def fps(self) -> float:
        """Frames answered per second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def to_json_line(self) -> str:
        """All attributes as one JSON object without line breaks; what is not finite is null."""
        return msgspec.json.encode(self).decode()


@dataclass(frozen=True)
class Summary(Snapshot):
    """The outcome of ``run``: how things stood in the end, before its sinks were closed.

    Attributes:
        interrupted: whether Ctrl-C ended it.
    """

    interrupted: bool


class Metrics:
    """Counts while a run goes on; a thread may feed it while others take snapshots.

    Memory is 160 kB for each stage that a session reports, however many frames there are.

    Args:
        backend: asked for the device's memory, if it reports that.
        clock: seconds that only grow.
        wall: seconds since 1970.

    Attributes:
        source: whose status snapshots carry; whoever runs it sets it.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.device: ReportsDeviceMemory | None = None
        self.use(backend)
        self.source: Source | None = None
        self.clock, self.wall = clock, wall
        self.started = clock()
        self.lock, self.taking = threading.Lock(), threading.Lock()
        self.frames = self.dropped = self.warm = 0
        self.cold: Counter[str] = Counter()
        self.residual_max = 0.0
        self.stages: dict[str, Recent] = {}
        self.busy, self.iterations, self.residual = Recent(), Recent(), Recent()
        self.age = Recent()

    def use(self, backend: Backend | None) -> None:
        """Ask another backend for the device's memory from now on."""
        self.device = backend if isinstance(backend, ReportsDeviceMemory) else None

    def add(self, result: Result, write_ms: float = 0.0, dropped: int = 0) -> None:
        """Count one answered frame.

        Args:
            result: the answer; its times are those of the stages.
            write_ms: milliseconds that its outputs took.
            dropped: frames that were dropped since the last call.
        """
        with self.lock:
            self.frames += 1
            self.dropped += dropped
            if result.warm:
                self.warm += 1
            else:
                self.cold[result.cold or "other"] += 1
            self.busy.add(result.busy_ms + write_ms)
            self.iterations.add(result.iterations)
            if result.age_ms is not None:
                self.age.add(result.age_ms)
            if math.isfinite(result.residual):
                self.residual.add(result.residual)
                self.residual_max = max(self.residual_max, result.residual)
            else:
                self.residual_max = math.inf
            for stage, milliseconds in result.times.items():
                self.stage(stage).add(milliseconds)
            self.stage("write").add(write_ms)

    def drop(self, count: int) -> None:
        """Count frames that were dropped without another being answered."""
        with self.lock:
            self.dropped += count

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        with self.taking:  # one at a time: the copies below have one place each
            with self.lock:  # held for as long as copying takes, not sorting
                frames, dropped, warm = self.frames, self.dropped, self.warm
                cold, residual_max = dict(self.cold), self.residual_max
                stages = {stage: recent.copy() for stage, recent in self.stages.items()}
                busy, iterations = self.busy.copy(), self.iterations.copy()
                residual, ages = self.residual.copy(), self.age.copy()
            return Snapshot(
                time=self.wall(),
                seconds=self.clock() - self.started,
                frames=frames,
                dropped=dropped,
                stages={stage: found for stage, r in stages.items() if (found := r.percentiles())},
                busy=busy.percentiles(),
                age=ages.percentiles(),
                iterations=iterations.percentiles(),
                mean_iterations=iterations.mean(),
                warm_share=warm / frames if frames else None,
                cold=cold,
                residual=residual.percentiles(),
                residual_mean=residual.mean(),
                residual_max=residual_max if frames else None,
                rss_bytes=resident_bytes(),
                peak_rss_bytes=peak_resident_bytes(),
                device_bytes=self.device.device_bytes() if self.device else None,
                source=self.source.status if self.source is not None else None,
            )

    def stage(self, name: str) -> Recent:
        if name not in self.stages:
            self.stages[name] = Recent()
        return self.stages[name]


class Recent:
    """The last ``WINDOW`` values of one quantity, and the count and the sum of all."""

    def __init__(self) -> None:
        self.values, self.copied = unfilled(), unfilled()
        self.count, self.total = 0, 0.0

    def add(self, value: float) -> None:
        self.values[self.count % WINDOW] = value
        self.count += 1
        self.total += value

    def copy(self) -> Copied:
        """As it is now, in a place that the next copy takes.

        Were it allocated each time, a megabyte for all quantities would come and go in the heap,
        which other threads' blocks then keep from closing again.
        """
        self.copied[:] = self.values
        return Copied(self.copied, self.count, self.total)


@dataclass(frozen=True)
class Copied:
    """What a ``Recent`` held at one moment."""

    values: NDArray[np.float64]
    count: int
    total: float

    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def percentiles(self) -> Percentiles | None:
        """They are sorted in place: what is not filled yet is NaN, and comes last."""
        if not self.count:
            return None
        self.values.sort()
        last = min(self.count, WINDOW) - 1
        p50, p90, p99 = (self.between(share * last) for share in (0.5, 0.9, 0.99))
        return Percentiles(p50, p90, p99, self.count, self.total)

    def between(self, at: float) -> float:
        """The sorted values at a place between two of them, as NumPy's percentiles are."""
        low, high = self.values[math.floor(at)], self.values[math.ceil(at)]
        return float(low + (high - low) * (at - math.floor(at)))


def unfilled() -> NDArray[np.float64]:
    """A ring whose pages are there at once: a run's memory grows for none of its frames."""
    return np.full(WINDOW, math.nan)
