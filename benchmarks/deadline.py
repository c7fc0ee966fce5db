"""Whether frames are answered in time: ``UntilDeadline`` for deadlines from 1.5 evaluations upward.

    python benchmarks/deadline.py BUNDLE CLIP [--deadlines 1.5 2.5 4 8] [--frames 250] [--threads 0]

A deadline is given in evaluations: so many times what one takes, on top of what a frame with none
would take (injection, readout, fitting). Per deadline: the share of frames answered within it and
one evaluation more, the 99th percentile of how late they were (negative: early), and how many
evaluations they had. Then the same, times measured anew, beside a process that keeps a core busy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mdeq_runtime import Model, SessionSettings, UntilDeadline, UntilTolerance
from mdeq_runtime.sources import open_source

NEVER = 1e-9  # a tolerance that no frame meets: the clock alone decides
BUSY = "while True: pass"


def main() -> None:
    """Print a table, alone and beside a busy process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("clip")
    parser.add_argument("--deadlines", type=float, nargs="*", default=[1.5, 2.5, 4.0, 8.0])
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    frames = read(args.clip, args.frames)
    with Model(args.bundle, threads=args.threads) as model:
        table = Table(title=f"{len(frames)} frames", title_justify="left")
        for column in (
            "beside",
            "evaluation, ms",
            "deadline, ms",
            "in time + 1",
            "late by, p99, ms",
            "evaluations",
        ):
            table.add_column(column, justify="left" if column == "beside" else "right")
        for beside in ("nothing", "a busy process"):
            other = subprocess.Popen([sys.executable, "-c", BUSY]) if beside != "nothing" else None
            try:
                step, rest = pace(model, frames)
                for count in args.deadlines:
                    ms = count * step + rest
                    late, evaluations = run(model, frames, ms)
                    share = float((late <= step).mean())
                    p99 = f"{np.percentile(late, 99):+.1f}"
                    table.add_row(
                        beside,
                        f"{step:.1f}",
                        f"{ms:.1f}",
                        f"{share:.1%}",
                        p99,
                        f"{evaluations:.2f}",
                    )
            finally:
                if other is not None:
                    other.kill()
                    other.wait()
    Console(width=100).print(table)


def read(clip: str, count: int) -> list[NDArray[np.uint8]]:
    """The first frames of a clip."""
    with open_source(clip) as source:
        found = []
        while len(found) < count and (frame := source.read()) is not None:
            found.append(frame.image)
    return found


def pace(model: Model, frames: Sequence[NDArray[np.uint8]]) -> tuple[float, float]:
    """Milliseconds of one evaluation, and of everything else that a frame takes."""
    settings = SessionSettings(UntilTolerance(NEVER, max_iterations=4))
    with model.session(settings) as session:
        times = [session(frame).times for frame in frames[:40]]
    step = float(np.median([t["advance"] / 4 for t in times[5:]]))
    rest = float(np.median([sum(t.values()) - t["advance"] for t in times[5:]]))
    return step, rest


def run(
    model: Model, frames: Sequence[NDArray[np.uint8]], ms: float
) -> tuple[NDArray[np.float64], float]:
    """How late each frame was, in milliseconds, and the mean number of evaluations."""
    late, evaluations = [], []
    with model.session(SessionSettings(UntilDeadline(ms, tol=NEVER, max_iterations=64))) as session:
        for frame in frames:
            started = time.perf_counter()
            result = session(frame)
            late.append(1e3 * (time.perf_counter() - started) - ms)
            evaluations.append(result.iterations)
    return np.array(late[5:]), float(np.mean(evaluations[5:]))


if __name__ == "__main__":
    main()
