"""How old a camera's frame is when its answer is there, and whether that grows.

    python benchmarks/capture_age.py [SOURCE] [--inference-ms 100] [--minutes 10] [--rate 30]

The model is a pause of as many milliseconds. Age is from the moment at which the capture thread had
the frame; the target is the inference and two periods of the source. Without SOURCE: test://.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sources import SourceOptions, open_source


def ages(uri: str, rate: float, inference_s: float, seconds: float) -> np.ndarray:
    """(frames, 2): seconds since the start, and the age of each answer in milliseconds."""
    options = SourceOptions(rate=rate) if uri.startswith("test:") else SourceOptions()
    rows: list[tuple[float, float]] = []
    stop, started = threading.Event(), time.monotonic()

    def session(frame: Frame) -> Result:
        time.sleep(inference_s)
        mask = np.zeros(frame.image.shape[:2], np.uint8)
        return Result(mask, None, 1, 0.1, True, True, "", index=frame.index)

    def note(result: Result) -> None:
        now = time.monotonic() - started
        if result.age_ms is not None:
            rows.append((now, result.age_ms))
        if now > seconds:
            stop.set()

    run(session, open_source(uri, options), [], on_result=note, stop=stop)
    return np.array(rows)


def main() -> int:
    """A line for each tenth of the time; 1 if the target is missed or the age grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="test://")
    parser.add_argument("--inference-ms", type=float, default=100.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=30.0)
    args = parser.parse_args()
    seconds = 60.0 * args.minutes
    found = ages(args.source, args.rate, args.inference_ms / 1000, seconds)
    target = args.inference_ms + 2000.0 / args.rate
    table = Table(title=f"age, ms; target: p99 <= {target:.0f}", title_justify="left")
    for column in ("seconds", "answers", "p50", "p99", "max"):
        table.add_column(column, justify="right")
    for part in range(11):
        low, high = (part * seconds / 10, (part + 1) * seconds / 10) if part < 10 else (0, seconds)
        some = found[(found[:, 0] >= low) & (found[:, 0] < high), 1]
        if len(some):
            p50, p99, most = (*np.percentile(some, (50, 99)), some.max())
            table.add_row(
                f"{low:.0f}-{high:.0f}", str(len(some)), *(f"{x:.0f}" for x in (p50, p99, most))
            )
    Console().print(table)
    half = len(found) // 2
    growth = np.median(found[half:, 1]) - np.median(found[:half, 1])
    print(f"the second half's median is {growth:+.1f} ms beside the first's")
    return int(np.percentile(found[:, 1], 99) > target or growth > 1000.0 / args.rate)


if __name__ == "__main__":
    sys.exit(main())
