"""A camera (or a video) through an equilibrium model, in fifty lines.

python samples/camera_demo.py camvid-nano.mdeq 0             # a USB camera, in a window
python samples/camera_demo.py camvid-nano.mdeq drive.mp4 out.mp4
"""

from __future__ import annotations

import argparse
import sys

import edge_mdeq
from edge_mdeq.errors import EdgeMdeqError
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sources import open_source


def show(result: Result) -> None:
    """One line per frame: how it started, and how well its equilibrium converged."""
    start = "warm" if result.warm else f"cold ({result.reason})"
    print(
        f"frame {result.index}: {result.iterations} evaluations, residual {result.residual:.3f}, "
        f"{result.times['solve']:.1f} ms, {start}"
    )


def main() -> None:
    """Open everything, run until the source ends or Ctrl-C, say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("source")
    parser.add_argument("output", nargs="?", default="display://")
    args = parser.parse_args()
    with (
        edge_mdeq.load(args.bundle) as model,
        model.session() as session,
        open_source(args.source) as source,
    ):
        palette = model.manifest.palette
        sink = open_sink(args.output, fps=source.fps, labels=model.labels, palette=palette)
        summary = run(session, source, [sink], on_result=show)
    print(f"{summary.frames} frames, {summary.fps:.1f} per second, {summary.dropped} dropped")


if __name__ == "__main__":
    try:
        main()
    except EdgeMdeqError as error:
        sys.exit(f"error: {error}")
