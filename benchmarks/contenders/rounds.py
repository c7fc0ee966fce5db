"""Contenders in turn, round by round, in an order that is drawn anew each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contenders.base import Answer, Case, Contender

__all__ = ["Entrant", "compete", "moving_scene"]

FEWEST, MOST = 5, 40  # rounds
SLOW_MS = 300.0  # what takes longer is not warmed up anew in every round
TURN_MS, LARGEST = 60.0, 5  # a turn goes on for so long, with at most so many frames
REST = 0.01  # seconds between two turns, in which the threads of the last one go to sleep
FRAMES = 24


@dataclass
class Entrant:
    """A contender that is ready, and what was measured of it.

    Attributes:
        wall, cpu: milliseconds of a frame in each round, on the clock and of all cores.
        residuals: relative residual of the last frame of each round, of what has one.
        frames: that a turn counts.
    """

    contender: Contender
    answer: Answer
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    residuals: list[float | None] = field(default_factory=list)
    frames: int = 1
    slow: bool = False
    step: int = 0

    def frame(self, images: Sequence[NDArray[np.uint8]]) -> tuple[float, float, float | None]:
        """Milliseconds of one frame, on the clock and of all cores, and its residual."""
        image = images[self.step % len(images)]
        self.step += 1
        began, busy = time.perf_counter(), time.process_time()
        residual = self.answer(image)
        return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - busy), residual

    def warm_up(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Two frames, the second of which says how many make a turn."""
        self.frame(images)
        taken = self.frame(images)[0]
        self.slow = taken > SLOW_MS
        self.frames = min(LARGEST, max(1, int(TURN_MS / taken)))

    def take(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """One turn: its figures are the medians of its frames."""
        if not self.slow:
            self.frame(images)  # the one before left it cold caches
        found = [self.frame(images) for _ in range(self.frames)]
        self.wall.append(median(ms for ms, _, _ in found))
        self.cpu.append(median(ms for _, ms, _ in found))
        self.residuals.append(found[-1][2])

    def figures(self) -> dict[str, Any]:
        """As they are kept: round by round, so that ratios can be taken of any two."""
        known = [value for value in self.residuals if value is not None]
        return {
            "wall_ms": [round(ms, 4) for ms in self.wall],
            "cpu_ms": round(fmean(self.cpu), 3),
            "residual": median(known) if known else None,
        }


def moving_scene(case: Case) -> list[NDArray[np.uint8]]:
    """RGB images (H, W, 3) in which one frame is the last one moved by a little."""
    from mdeq_export.images import verification_images

    height, width = case.size
    images, _ = verification_images(None, 1, height, width)
    step = max(1, width // 128)
    places = [*range(FRAMES // 2), *range(FRAMES // 2, 0, -1)]
    return [np.ascontiguousarray(np.roll(images[0], step * k, axis=1)) for k in places]


def compete(
    entrants: Sequence[Entrant],
    images: Sequence[NDArray[np.uint8]],
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Rounds until ``seconds`` are over, but not fewer than five nor more than forty; how many."""
    for entrant in entrants:
        entrant.warm_up(images)
    rng, began, rounds = np.random.default_rng(0), time.monotonic(), 0
    while rounds < FEWEST or (rounds < MOST and time.monotonic() - began < seconds):
        for index in rng.permutation(len(entrants)):
            time.sleep(REST)
            entrants[index].take(images)
            progress(int(min(time.monotonic() - began, seconds)), int(seconds) or 1)
        rounds += 1
    return rounds
