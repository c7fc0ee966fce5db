"""How soon frames are answered again once a camera is back: a real RTSP server, killed often.

    python benchmarks/recoveries.py [--losses 100] [--away 0.5 3] [--json]

The server is killed while a pipeline reads from it, is away for a time drawn from ``--away``
(seconds), and started again. Its recovery is the time from the moment at which it listens to the
first answer. Exit code 1 if one loss was not recovered from within half a minute, or if the median
is not below two seconds. Needs Debian's gir1.2-gst-rtsp-server-1.0 and GStreamer's plugins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from rtsp import serving

from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sources import open_source

TARGET_S, GIVE_UP_S = 2.0, 30.0
SETTLED = 15  # frames before the next loss


class Watched:
    """A pipeline on a source, in a thread; the model costs nothing."""

    def __init__(self, uri: str) -> None:
        self.source, self.stop, self.frames = open_source(uri), threading.Event(), 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        run(self.answer, self.source, [], on_result=self.count, stop=self.stop)

    def answer(self, frame: Frame) -> Result:
        mask = np.zeros(frame.image.shape[:2], np.uint8)
        return Result(mask, None, 1, 0.1, True, True, "", index=frame.index)

    def count(self, result: Result) -> None:
        self.frames += 1

    def wait(self, more: int) -> float | None:
        """Seconds until so many more frames were answered; None: it gave up."""
        wanted, started = self.frames + more, time.monotonic()
        while self.frames < wanted:
            if time.monotonic() - started > GIVE_UP_S:
                return None
            time.sleep(0.005)
        return time.monotonic() - started


def recoveries(losses: int, away: tuple[float, float], seed: int = 0) -> list[float | None]:
    """Seconds of each recovery; None where there was none."""
    chance = random.Random(seed)
    found: list[float | None] = []
    with serving("--fps", "15") as server:
        watched = Watched(server.uri)
        try:
            watched.wait(SETTLED)
            for _ in range(losses):
                server.kill()
                time.sleep(chance.uniform(*away))
                server.start()
                found.append(watched.wait(1))
                watched.wait(SETTLED)
        finally:
            watched.stop.set()
            watched.thread.join(5)
    return found


def main() -> int:
    """Percentiles of the recoveries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", type=int, default=100)
    parser.add_argument("--away", type=float, nargs=2, default=(0.5, 3.0))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    found = recoveries(args.losses, tuple(args.away))
    times = np.array([one for one in found if one is not None])
    quantiles = np.percentile(times, (50, 90, 100)) if len(times) else np.full(3, np.inf)
    p50, p90, most = (float(q) for q in quantiles)
    if args.json:
        print(json.dumps({"losses": len(found), "recoveries": len(times), "seconds": found}))
    else:
        print(f"{len(found)} losses, {len(times)} recoveries")
        print(f"p50 {p50:.2f} s, p90 {p90:.2f} s, at most {most:.2f} s; target: p50 < {TARGET_S:g}")
    return int(len(times) < len(found) or p50 >= TARGET_S)


if __name__ == "__main__":
    sys.exit(main())
