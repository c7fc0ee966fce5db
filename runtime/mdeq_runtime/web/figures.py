"""What the page's charts are drawn from: an event every half a second, the same for all viewers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec
import numpy as np

from mdeq_runtime.answers import UNSEEN, class_shares, label_of, top_scores
from mdeq_runtime.memory import resident_bytes
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.overlay import Palette, class_colour
from mdeq_runtime.results import Result
from mdeq_runtime.sensors import Sensors
from mdeq_runtime.web.controls import describe_policy

__all__ = ["EVERY_S", "Figures"]

EVERY_S = 0.5
POINTS = 32  # frames per event at most; of more, every second or third is told
CLASSES = 12  # rows of the legend
NOTHING = np.zeros(0, np.uint8)


class Figures:
    """Gathers frames between two events.

    Args:
        labels, palette: a name and an RGB colour per class.
        sensors: temperatures and power; None: this machine's.
        clock: seconds that only grow.

    Attributes:
        session, metrics: what answers frames and what counts them, as soon as a run has begun.
    """

    def __init__(
        self,
        labels: Sequence[str],
        palette: Palette,
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.labels, self.palette, self.clock = labels, palette, clock
        self.sensors = sensors or Sensors(hot_c=100.0)  # of any limit: all zones are shown
        self.session: Any = None
        self.metrics: Metrics | None = None
        self.lock = threading.Lock()
        self.frames: deque[tuple[float, Result]] = deque(maxlen=256)
        self.count = self.told = 0
        self.started = self.last = clock()

    def add(self, result: Result) -> None:
        """Take note of a frame; cheap, as it happens in the pipeline's thread."""
        now, figures = self.clock(), replace(result, output=NOTHING, confidence=None)
        with self.lock:
            self.frames.append((now, figures))  # without its mask, which must not stay
            self.count += 1

    def event(self, newest: Result | None, viewers: int) -> bytes:
        """What has happened since the last event, as one server-sent event."""
        now = self.clock()
        with self.lock:
            frames, count = list(self.frames), self.count
            self.frames.clear()
        seconds, self.last = now - self.last, now
        made, self.told = count - self.told, count
        step = len(frames) // POINTS + 1
        said = {
            "time": round(now - self.started, 2),
            "frames": count,
            "viewers": viewers,
            "fps": made / seconds if seconds > 0 else 0.0,
            "points": [
                (round(at - self.started, 3), result.residual, result.iterations)
                for at, result in frames[::-step][::-1]
            ],
            "warm": mean([float(result.warm) for _, result in frames]),
            "converged": mean([float(result.converged) for _, result in frames]),
            "reason": next((r.reason for _, r in reversed(frames) if not r.warm), ""),
            "age_ms": mean([r.age_ms for _, r in frames if r.age_ms is not None]),
            "stages": stage_means([result for _, result in frames]),
            "celsius": self.sensors.celsius(),
            "watts": self.sensors.watts(),
            "rss": resident_bytes(),
            **self.of_newest(newest),
            **self.of_session(),
            **self.of_metrics(),
        }
        return b"data: " + msgspec.json.encode(said) + b"\n\n"

    def of_newest(self, newest: Result | None) -> dict[str, Any]:
        """The legend."""
        if newest is None:
            return {"classes": [], "kind": "none"}
        if newest.output.ndim == 2:
            largest = [(i, s) for i, s in class_shares(newest.output) if i != UNSEEN][:CLASSES]
            shares = sorted(largest)  # rows that swap places would be unreadable
        else:
            shares = top_scores(newest.output, 5)
        rows = [
            (label_of(i, self.labels), hexadecimal(class_colour(i, self.palette)), share)
            for i, share in shares
        ]
        return {"classes": rows, "kind": "areas" if newest.output.ndim == 2 else "scores"}

    def of_session(self) -> dict[str, Any]:
        session = self.session
        manifest, settings = (getattr(session, name, None) for name in ("manifest", "settings"))
        return {
            "name": getattr(manifest, "name", ""),
            "policy": None if settings is None else describe_policy(settings.policy),
            "limit": getattr(session, "limit", None),
        }

    def of_metrics(self) -> dict[str, Any]:
        metrics = self.metrics
        if metrics is None:
            return {"dropped": 0, "device": None, "source": None}
        status = None if metrics.source is None else asdict(metrics.source.status)
        device = None if metrics.device is None else metrics.device.device_bytes()
        return {"dropped": metrics.dropped, "device": device, "source": status}


def hexadecimal(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def stage_means(results: Sequence[Result]) -> dict[str, float]:
    """Milliseconds a frame by stage, without the wait for it."""
    names = dict.fromkeys(name for r in results for name in r.times if name != "read")
    return {n: sum(r.times.get(n, 0.0) for r in results) / len(results) for n in names}
