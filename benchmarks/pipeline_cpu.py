"""What the pipeline costs without a model: its CPU time beside that of a bare OpenCV loop.

    python benchmarks/pipeline_cpu.py [--size 720 1280] [--rate 30] [--seconds 10] [--rounds 3]

A server in another process sends MJPEG over HTTP at the rate of a camera. Turn by turn, each in a
process of its own: ``cv2.VideoCapture.read`` in a loop, and the same stream through the pipeline
(reconnecting source, watch over its pictures, slot, checks, metrics) with an answer that costs
nothing. Counted is the CPU time of all threads after the first frames.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

SKIP = 15  # frames, for opening and catching up
BOUNDARY = "edge-mdeq-frame"


def serve(size: tuple[int, int], rate: float) -> None:
    """Send a moving pattern to whoever asks, for ever; prints its port."""
    import cv2

    from mdeq_runtime.sources import SourceOptions
    from mdeq_runtime.sources.pattern import Pattern

    pattern = Pattern(SourceOptions(height=size[0], width=size[1]))
    pictures = [cv2.imencode(".jpg", pattern.picture(4 * i))[1].tobytes() for i in range(60)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            self.end_headers()
            started, index = time.monotonic(), 0
            while True:
                body = pictures[index % len(pictures)]
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}"
                try:
                    self.wfile.write(head.encode() + b"\r\n\r\n" + body + b"\r\n")
                except OSError:
                    return
                index += 1
                time.sleep(max(0.0, started + index / rate - time.monotonic()))

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def bare(uri: str, seconds: float) -> tuple[int, float]:
    """Frames, and CPU seconds, of a loop around ``cv2.VideoCapture.read``."""
    import cv2

    capture = cv2.VideoCapture(uri, cv2.CAP_FFMPEG)
    for _ in range(SKIP):
        capture.read()
    frames, cpu, end = 0, time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        frames += bool(capture.read()[0])
    return frames, time.process_time() - cpu


def piped(uri: str, seconds: float) -> tuple[int, float]:
    """The same of the pipeline."""
    from mdeq_runtime.pipeline import run
    from mdeq_runtime.results import Frame, Result
    from mdeq_runtime.sources import open_source

    stop, mask = threading.Event(), np.zeros((1, 1), np.uint8)
    count, cpu, end = 0, 0.0, 0.0

    def session(frame: Frame) -> Result:
        return Result(mask, None, 1, 0.1, True, True, "", index=frame.index)

    def note(result: Result) -> None:
        nonlocal count, cpu, end
        count += 1
        if count == SKIP:
            cpu, end = time.process_time(), time.monotonic() + seconds
        elif count > SKIP and time.monotonic() >= end:
            stop.set()

    run(session, open_source(uri), [], on_result=note, stop=stop)
    return count - SKIP, time.process_time() - cpu


def measured(way: str, uri: str, seconds: float) -> float:
    """CPU milliseconds per frame, in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, uri, str(seconds)]
    environment = os.environ | {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    frames, cpu = json.loads(done.stdout)
    return 1000.0 * float(cpu) / int(frames)


def main() -> int:
    """Print each round and the median ratio; 1 if that is above 1.3."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(720, 1280))
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="(be the server)")
    parser.add_argument("--measure", nargs=3, help="(be one measurement)")
    args = parser.parse_args()
    if args.serve:
        serve(tuple(args.size), args.rate)
    if args.measure:
        way, uri, seconds = args.measure
        print(json.dumps({"bare": bare, "piped": piped}[way](uri, float(seconds))))
        return 0
    size = [str(number) for number in args.size]
    command = [sys.executable, __file__, "--serve", "--rate", str(args.rate), "--size", *size]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        uri = f"http://127.0.0.1:{server.stdout.readline().strip()}/stream"
        ratios = []
        for _ in range(args.rounds):
            alone, through = (measured(way, uri, args.seconds) for way in ("bare", "piped"))
            ratios.append(through / alone)
            print(f"bare {alone:.2f} ms of CPU a frame, pipeline {through:.2f}: {ratios[-1]:.2f}")
        server.kill()
    print(f"median ratio {np.median(ratios):.2f}; target: at most 1.3")
    return int(np.median(ratios) > 1.3)


if __name__ == "__main__":
    sys.exit(main())
