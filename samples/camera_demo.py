"""A camera (or a video) through an equilibrium model, into as many outputs as you like.

python samples/camera_demo.py camvid-nano.mdeq 0                       # a USB camera, in a window
python samples/camera_demo.py camvid-nano.mdeq drive.mp4 out.mp4 out.jsonl
python samples/camera_demo.py camvid-nano.mdeq rtsp://gate/stream http://127.0.0.1:8080 --hard keep
"""

import argparse
import sys
from pathlib import Path

import edge_mdeq
from edge_mdeq.errors import EdgeMdeqError
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.hard import HardFrames
from mdeq_runtime.sources import open_source


def show(result: Result) -> None:
    start = "warm" if result.warm else f"cold ({result.reason})"
    solved = f"{result.iterations} evaluations, residual {result.residual:.3f}"
    print(f"frame {result.index}: {solved}, {result.busy_ms:.1f} ms, {start}")


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("source")
    parser.add_argument("outputs", nargs="*", default=["display://"])
    parser.add_argument("--hard", type=Path, help="a folder for frames that did not converge")
    args = parser.parse_args()
    with edge_mdeq.load(args.bundle) as model, open_source(args.source) as source:
        classes = {"labels": model.labels, "palette": model.manifest.palette}
        sinks = [open_sink(output, fps=source.fps, **classes) for output in args.outputs]
        sinks += [HardFrames(args.hard, 2**30, model.labels)] if args.hard else []
        print(*[f"see {sink.url}\n" for sink in sinks if hasattr(sink, "url")], end="", flush=True)
        summary = run(model.session(), source, sinks, on_result=show)
    print(f"{summary.frames} frames, {summary.fps:.1f} per second, {summary.dropped} dropped")


if __name__ == "__main__":
    try:
        main()
    except EdgeMdeqError as error:
        sys.exit(f"error: {error}")
