"""Hours of frames in a row: whether memory stays flat, and whether every cold start says why.

    python benchmarks/soak.py [--bundle NAME.mdeq] [--clip CLIP] [--frames 108000] [--every 9000]
        [--iterations N | --tolerance TOL | --deadline-ms MS] [--json]

A clip is played over and over through the whole pipeline, as fast as it goes: from the file
through a session into JSON lines and metrics, whose clock goes by the frames, 15 a second: 108,000
are two hours, and a line of metrics is written every 150. Resident memory is read after every
``--every`` frames, and after the first minute's worth (900); in the end the JSON lines are read
again for cold starts without a reason. Exit code 1 if there was one, or if memory rose by more than
1 MB above what it was after the first minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from residence import ALLOWED, MINUTE, RATE, Sample, rise, sample
from rich.console import Console
from rich.table import Table

from mdeq_runtime import (
    FixedIterations,
    Frame,
    Model,
    Result,
    SessionSettings,
    UntilDeadline,
    UntilTolerance,
)
from mdeq_runtime.metrics import Metrics
from mdeq_runtime.pipeline import run
from mdeq_runtime.policies import Policy
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.metrics import MetricsSink
from mdeq_runtime.sources import open_source
from mdeq_runtime.sources.base import Source

sys.path.insert(0, str(Path(__file__).parents[1] / "samples"))
from demo import sample_clip

SAMPLE = Path(__file__).parents[1] / "samples" / "bundles" / "camvid-nano.mdeq"


class Looped(Source):
    """A file that begins anew when it ends; its frames are numbered on."""

    live = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.source = open_source(path)
        self.fps, self.size = self.source.fps, self.source.size
        self.description = f"{self.source.description}, over and over"
        self.index = 0

    def read(self) -> Frame | None:
        frame = self.source.read()
        if frame is None:
            self.source.close()
            self.source = open_source(self.path)
            frame = self.source.read()
        if frame is not None:
            frame = replace(frame, index=self.index)
            self.index += 1
        return frame

    def close(self) -> None:
        self.source.close()


@dataclass(frozen=True)
class Outcome:
    """What a soak amounts to.

    Attributes:
        frames: how many were answered.
        samples: memory along the way.
        rise: bytes by which resident memory was at most above that after the first minute.
        cold: frames from a cold start, by the kind of reason.
        unexplained: numbers of frames from a cold start without a reason in the JSON lines.
        fps: frames per second.
    """

    frames: int
    samples: list[Sample]
    rise: int
    cold: dict[str, int]
    unexplained: list[int]
    fps: float


def soak(
    bundle: Path, clip: str, frames: int, every: int, policy: Policy, folder: Path, threads: int = 0
) -> Outcome:
    """Play ``clip`` until ``frames`` frames are answered; what is logged goes into ``folder``."""
    samples: list[Sample] = []
    count = 0

    def watch(result: Result) -> None:
        nonlocal count
        count += 1
        if count % every == 0 or count in (MINUTE, frames):
            samples.append(sample(count))

    log = folder / "results.jsonl"
    with Model(bundle, SessionSettings(policy), threads) as model, model.session() as session:
        metrics = Metrics(model.backend)
        sinks = [
            open_sink(str(log), fps=None, labels=model.labels, palette=model.manifest.palette),
            MetricsSink(folder / "metrics.jsonl", metrics, 10.0, clock=lambda: count / RATE),
        ]
        summary = run(
            session, Looped(clip), sinks, max_frames=frames, on_result=watch, metrics=metrics
        )
    kinds: Counter[str] = Counter()
    unexplained = []
    with log.open("rb") as lines:
        for line in lines:
            entry = json.loads(line)
            if not entry["warm"]:
                kinds[entry["reason"].partition(",")[0]] += 1
                if not entry["reason"]:
                    unexplained.append(entry["index"])
    if sum(kinds.values()) != sum(summary.cold.values()):
        raise RuntimeError(f"the log has {kinds} cold starts, the metrics {summary.cold}")
    return Outcome(count, samples, rise(samples), dict(summary.cold), unexplained, summary.fps)


def main() -> None:
    """Print tables of memory and of cold starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=SAMPLE)
    parser.add_argument("--clip")
    parser.add_argument("--frames", type=int, default=108_000)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--tolerance", type=float)
    parser.add_argument("--deadline-ms", type=float)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    policy: Policy = FixedIterations(args.iterations)
    if args.tolerance is not None:
        policy = UntilTolerance(args.tolerance)
    if args.deadline_ms is not None:
        policy = UntilDeadline(args.deadline_ms)
    every = args.every or max(MINUTE, args.frames // 12)
    clip = args.clip or str(sample_clip())
    with tempfile.TemporaryDirectory() as folder:
        outcome = soak(args.bundle, clip, args.frames, every, policy, Path(folder), args.threads)
    if args.json:
        print(json.dumps(asdict(outcome)))
    else:
        show(outcome, policy)
    sys.exit(1 if outcome.unexplained or outcome.rise > ALLOWED else 0)


def show(outcome: Outcome, policy: Policy) -> None:
    """The outcome in tables."""
    console = Console(width=100)
    console.print(f"{outcome.frames} frames under {policy}, {outcome.fps:.1f} per second")
    table = Table()
    for column in ("frames", "resident, MB", "private, MB"):
        table.add_column(column, justify="right")
    for one in outcome.samples:
        table.add_row(str(one.frame), f"{one.resident / 1e6:.2f}", f"{one.private / 1e6:.2f}")
    console.print(table)
    console.print(f"at most {outcome.rise / 1e6:+.2f} MB above frame {MINUTE}")
    table = Table(title="cold starts", title_justify="left")
    table.add_column("reason")
    table.add_column("frames", justify="right")
    for kind, count in sorted(outcome.cold.items()):
        table.add_row(kind, str(count))
    table.add_row("none given", str(len(outcome.unexplained)))
    console.print(table)


if __name__ == "__main__":
    main()
