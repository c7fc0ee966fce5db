"""Peak memory of the device process on the demo clip, above a bare interpreter.

    python benchmarks/device_memory.py [--bundle out/demo/camvid-nano.mdeq] [--runs 5]

Run ``make demo`` first: it makes the bundle. After a fresh installation restart, or drop the page
cache: just written libraries are mapped in larger pieces, and every figure is some 30 MB higher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "samples"))
from demo import BASE, peak_of, sample_clip

OUTPUTS = {"annotated video and JSON lines": ("out.mp4", "out.jsonl"), "JSON lines": ("out.jsonl",)}


def main() -> None:
    """Measure VmHWM of fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="out/demo/camvid-nano.mdeq")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    base = statistics.median(
        peak_of(subprocess.run([sys.executable, "-c", BASE], capture_output=True, text=True))
        for _ in range(args.runs)
    )
    print(f"bare interpreter with NumPy and OpenCV: {base / 1e6:.1f} MB")
    for name, outputs in OUTPUTS.items():
        above = []
        for _ in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "edge_mdeq.cli", "run", args.bundle]
                command += [str(sample_clip()), "--json"]
                for output in outputs:
                    command += ["--output", str(Path(folder) / output)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit("the run failed; does `make demo` work?")
            above.append((json.loads(done.stdout)["peak_rss_bytes"] - base) / 1e6)
        middle, low, high = statistics.median(above), min(above), max(above)
        print(f"run with {name}: {middle:.1f} MB above ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
