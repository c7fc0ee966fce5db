"""How old a camera's frames are when they are answered, while its bundle is reloaded.

    python benchmarks/reload_age.py [--bundle NAME.mdeq] [--rate 15] [--reloads 10] [--json]

``test://`` at ``--rate`` frames per second and 256 x 192, through a bundle that is opened again
every two seconds, from one of two copies in turn. Age is from capture to answer; the target for the
oldest is two periods of the camera. The ages before the first reload are beside it: what the
machine does to frames anyway. Exit code 1 if a frame was older than the target, or a reload failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from mdeq_runtime import Model, Result
from mdeq_runtime.pipeline import run
from mdeq_runtime.service.reload import ReloadableSession
from mdeq_runtime.service.reloader import Reloader
from mdeq_runtime.sources import SourceOptions, open_source

SAMPLE = Path(__file__).parents[1] / "samples" / "bundles" / "camvid-nano.mdeq"
EVERY_S, WARM_UP = 2.0, 5  # frames


def ages(bundle: Path, rate: float, reloads: int) -> tuple[list[float], list[float], int]:
    """Milliseconds of each frame before the first reload, and after it; reloads that were done."""
    before: list[float] = []
    after: list[float] = []
    stop = threading.Event()
    every = max(1, int(EVERY_S * rate))
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / name for name in ("one.mdeq", "two.mdeq")]
        for copy in copies:
            shutil.copytree(bundle, copy)
        link = Path(folder) / "current"
        link.symlink_to(copies[0])
        with ReloadableSession(link, Model(link, threads=1)) as session:
            reloader = Reloader(session)

            def note(result: Result) -> None:
                count = len(before) + len(after) + 1
                (after if count > 2 * every else before).append(result.age_ms or 0.0)
                if count >= (reloads + 2) * every:
                    stop.set()
                elif count >= 2 * every and count % every == 0:
                    (Path(folder) / "next").symlink_to(copies[count // every % 2])
                    (Path(folder) / "next").replace(link)
                    reloader.ask()

            options = SourceOptions(width=256, height=192, rate=rate)
            run(session, open_source("test://", options), [], on_result=note, stop=stop)
    return before[WARM_UP:], after, reloader.done


def main() -> int:
    """Percentiles before and during reloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SAMPLE)
    parser.add_argument("--rate", type=float, default=15.0)
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    before, after, done = ages(args.bundle, args.rate, args.reloads)
    target = 2000.0 / args.rate
    found = {"target_ms": target, "reloads": done, "frames": len(after)}
    for name, values in (("before", before), ("during", after)):
        quantiles = np.percentile(values, (50, 99, 100)).round(1).tolist()
        found |= dict(
            zip((f"{name}_{q}_ms" for q in ("p50", "p99", "max")), quantiles, strict=True)
        )
    if args.json:
        print(json.dumps(found))
    else:
        print(*(f"{name} {value}" for name, value in found.items()), sep="\n")
    return int(max(after) > target or done < args.reloads)


if __name__ == "__main__":
    sys.exit(main())
