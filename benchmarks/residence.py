"""What this process holds, now and along a run: pages, file descriptors and threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RATE = 15  # frames per second of a clip's time
MINUTE = 60 * RATE  # frames
ALLOWED = 1_000_000  # bytes above what was resident after the first minute
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Sample:
    """After ``frame`` frames.

    Attributes:
        resident, private: bytes of memory, all of it and what no file backs.
        descriptors, threads: how many are open, and run.
    """

    frame: int
    resident: int
    private: int
    descriptors: int
    threads: int


def sample(frame: int) -> Sample:
    """As the kernel has it now."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    resident, private = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))
    descriptors = len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
    threads = max(int(lines["Threads"]), threading.active_count())
    return Sample(frame, resident, private, descriptors, threads)


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Those from the end of the first minute on."""
    return [one for one in samples if one.frame >= MINUTE]


def rise(samples: Sequence[Sample]) -> int:
    """Bytes by which resident memory was at most above that after the first minute."""
    after = settled(samples)
    return max(one.resident for one in after) - after[0].resident if after else 0
