"""Fewer evaluations when frames take too long or the machine runs hot, more when there is room.

Every 8 frames a decision is made from the median of their times, and from the sensors:

- Above the target, the limit falls to the count that should meet it with 5% to spare; a second
  decision corrects the first by what the first one gained. Too hot, or too much power: it falls by
  one count; far too hot: to the smallest.
- After 16 quiet frames with room to spare it rises by one count. If that turns out too slow or too
  hot, it goes back, and that count is tried again only once things are better than they were before
  the try. So under a constant load the limit comes to rest: at the largest count that meets the
  target with 5% to spare (or where it began, while that meets the target at all).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_mdeq.errors import ConfigError
from mdeq_runtime.results import Result
from mdeq_runtime.sensors import Sensors

__all__ = ["Governor", "GovernorSettings", "governing"]

log = logging.getLogger(__name__)

WINDOW = 8  # frames per decision; this late, at most, does the governor see what has changed
PATIENCE = 2  # windows without a change before a raise
SPARE = 0.05  # of the target must be left by a change, and before a raise
COOLER_K = 5.0  # below the limit, before a raise
FAR_TOO_HOT_K = 5.0  # above the limit
SETTLE_S = 2.0  # a chip follows its load this soon, as far as it does without its heat sink
TRIAL_S = 600.0  # a raise that makes the machine hot within this time was too much for it
LOG_EVERY_S = 5.0


@dataclass(frozen=True)
class GovernorSettings:
    """What to stay below.

    Attributes:
        target_ms: milliseconds for a frame, from the session's call until its outputs are written.
            Choose less than a camera's period: then evaluations go before frames are dropped.
        hot_c: °C for the hottest part; None: 5 K below where the kernel slows the machine down,
            if it says so.
        watts: power from the supply; None for any.
    """

    target_ms: float
    hot_c: float | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target_ms < float("inf"):
            raise ConfigError(f"the target is {self.target_ms} ms, must be positive and finite")
        if self.hot_c is not None and not 0 < self.hot_c < 150:
            raise ConfigError(f"hot is {self.hot_c} °C, must be between 0 and 150")
        if self.watts is not None and not 0 < self.watts < float("inf"):
            raise ConfigError(f"the power is {self.watts} W, must be positive and finite")


@dataclass(frozen=True)
class Meter:
    """A reading that must not exceed a bound.

    Attributes:
        most: above it, the limit falls.
        room: at or below it, the limit may rise.
        better: how much lower than before a raise that failed it must read for another try.
    """

    most: float
    room: float
    better: float


@dataclass(frozen=True)
class Raise:
    """A raise: when, and what the meters read before."""

    at: float
    before: Mapping[str, float]


class Governor:
    """Advises how many evaluations the next frames may have.

    Args:
        settings: what to stay below.
        counts: the numbers of evaluations that the session can make, ascending.
        sensors: temperatures and power; None: this machine's.
        clock: seconds that only grow.

    Raises:
        ConfigError: counts that are not positive and ascending.
    """

    def __init__(
        self,
        settings: GovernorSettings,
        counts: Sequence[int],
        sensors: Sensors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not counts or counts[0] < 1 or list(counts) != sorted(set(counts)):
            raise ConfigError(f"counts are {list(counts)}, must be positive and ascending")
        self.settings, self.counts = settings, tuple(counts)
        self.sensors = sensors or Sensors(settings.hot_c)
        self.clock = clock
        target, watts = settings.target_ms, settings.watts
        self.meters = {
            "time": Meter(target, (1 - SPARE) * target, 0.1 * target),
            "heat": Meter(0.0, -COOLER_K, 3.0),  # kelvin above the limit
        }
        if watts is not None:
            self.meters["power"] = Meter(watts, 0.95 * watts, 0.05 * watts)
        self.at = len(counts) - 1  # which of the counts is the limit
        self.frames: list[tuple[int, float]] = []  # since the last decision
        self.quiet = 0  # windows in which nothing was over its bound
        self.tried: Raise | None = None  # what led to the present limit, if that was a raise
        self.fresh = False  # whether the window is the first after a change
        self.fixed = 0.0  # what a frame costs besides its evaluations, in evaluations
        self.last: tuple[int, float] | None = None  # evaluations and time before the last change
        self.blocked: dict[int, tuple[str, float]] = {}  # counts, and what must read how much first
        self.cooled = -float("inf")  # when the limit last fell for heat or power
        self.told: dict[int, float] = {}  # when a line of each level was last logged
        self.untold = 0

    @property
    def limit(self) -> int | None:
        """The most evaluations for the next frames; None where nothing has to be limited."""
        return None if self.at == len(self.counts) - 1 else self.counts[self.at]

    def advise(self, result: Result, write_ms: float = 0.0) -> int | None:
        """Take note of an answered frame.

        Args:
            result: the frame's.
            write_ms: milliseconds that its outputs took.

        Returns:
            ``limit``, which changes after every eighth frame at most.
        """
        self.frames.append((max(result.iterations, 1), result.busy_ms + write_ms))
        if len(self.frames) == WINDOW:
            made = statistics.median_low(count for count, _ in self.frames)
            ms = statistics.median(ms for _, ms in self.frames)
            self.frames.clear()
            self.decide(made, ms)
        return self.limit

    def decide(self, made: int, ms: float) -> None:
        """Lower, raise or keep the limit, given the usual evaluations and time of a frame."""
        self.compare(made, ms)
        readings, words = self.read(ms)
        over = [name for name, reading in readings.items() if reading > self.bound(name)]
        if over:
            self.quiet = 0
            to, name = min((self.lowered(name, readings[name], made), name) for name in over)
            # of several meters, the one that asks for most says why
            if to < self.at:
                self.learn(over)
                if name != "time":
                    self.cooled = self.clock()
                self.move(to, logging.WARNING, words[name])
                self.last = (made, ms)
                return
        else:
            self.quiet += 1
            if self.quiet >= PATIENCE and self.may_rise(readings):
                self.tried = Raise(self.clock(), readings)
                self.move(self.at + 1, logging.INFO, words["time"])
                self.last = (made, ms)
                return
        self.fresh = False

    def compare(self, made: int, ms: float) -> None:
        """Learn from the last change, if it was large, what a frame costs besides evaluations.

        However heavy the load, a frame costs in proportion to its evaluations and ``fixed``.
        """
        last, self.last = self.last, None
        if last is None or max(made, last[0]) < 1.25 * min(made, last[0]):
            return
        more_ms = (last[1] - ms) * (1 if last[0] > made else -1)
        if more_ms > 0:  # else the load changed meanwhile
            self.fixed = max(0.0, (last[0] * ms - made * last[1]) / (last[1] - ms))

    def read(self, ms: float) -> tuple[dict[str, float], dict[str, str]]:
        """What the meters read, as far as there is something to read, and in words."""
        target, most = self.settings.target_ms, self.settings.watts
        readings = {"time": ms}
        words = {"time": f"frames take {ms:.1f} ms, the target is {target:g} ms"}
        heat = self.sensors.heat()
        if heat is not None:
            readings["heat"] = heat.above
            words["heat"] = f"{heat.zone} is at {heat.celsius:.1f} °C, limit {heat.limit:.1f} °C"
        watts = self.sensors.watts() if most is not None else None
        if watts is not None:
            readings["power"] = watts
            words["power"] = f"the supply gives {watts:.1f} W, limit {most:g} W"
        return readings, words

    def bound(self, name: str) -> float:
        """Above this something must be done. A change must leave some of the target to be kept."""
        meter = self.meters[name]
        return meter.room if name == "time" and self.fresh else meter.most

    def lowered(self, name: str, reading: float, made: int) -> int:
        """Where the limit should go because ``name`` is over its bound."""
        one_less = max(self.at - 1, 0)
        if name == "time":
            if self.tried and self.fresh:
                return one_less
            share = self.meters[name].room / reading
            affordable = share * (made + self.fixed) - self.fixed
            return max((i for i in range(self.at) if self.counts[i] <= affordable), default=0)
        if name == "heat" and reading > FAR_TOO_HOT_K:
            return 0
        return one_less if self.clock() - self.cooled >= SETTLE_S else self.at

    def learn(self, over: Sequence[str]) -> None:
        """Before the limit falls: what that says about its present count."""
        count = self.counts[self.at]
        tried, self.tried = self.tried, None
        self.blocked.pop(count, None)
        if tried is None:
            return
        for name in over:
            soon = self.fresh if name == "time" else self.clock() - tried.at <= TRIAL_S
            if soon and name in tried.before:
                self.blocked[count] = (name, tried.before[name] - self.meters[name].better)

    def may_rise(self, readings: Mapping[str, float]) -> bool:
        """Whether there is a larger count, room for it, and nothing learnt against it."""
        if self.at == len(self.counts) - 1:
            return False
        if any(reading > self.meters[name].room for name, reading in readings.items()):
            return False
        name, needed = self.blocked.get(self.counts[self.at + 1], ("", 0.0))
        return name not in readings or readings[name] <= needed

    def move(self, to: int, level: int, why: str) -> None:
        """Change the limit, and log it unless another change was logged just now."""
        before, self.at, self.quiet, self.fresh = self.at, to, 0, True
        now = self.clock()
        if now - self.told.get(level, -float("inf")) < LOG_EVERY_S:
            self.untold += 1
            return
        more = f"; {self.untold} more changes since the last line" if self.untold else ""
        self.told[level], self.untold = now, 0
        counts = self.counts[to], self.counts[before]
        log.log(level, "at most %d evaluations instead of %d: %s%s", *counts, why, more)


class Limited(Protocol):
    """A session whose evaluations can be limited."""

    limit: int | None

    @property
    def counts(self) -> tuple[int, ...]: ...


def governing(governor: Governor, session: Limited) -> Callable[[Result, float], None]:
    """What the pipeline calls after each frame: the advice becomes the session's limit.

    Another policy (``Session.use``) may have other counts: then all is learnt anew.
    """
    present = governor

    def follow(result: Result, write_ms: float) -> None:
        nonlocal present
        if session.counts != present.counts:
            present = Governor(present.settings, session.counts, present.sensors, present.clock)
        session.limit = present.advise(result, write_ms)

    return follow
