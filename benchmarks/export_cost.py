"""Composing is not tracing: what exporting K = 26 costs beside K = 2, in time and in bytes.

python benchmarks/export_cost.py [--weights samples/models/camvid-nano] [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KS = (2, 26)


def main() -> None:
    """Export in turn, each in a process of its own as a user would, and print pairwise ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="samples/models/camvid-nano")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    seconds: dict[int, list[float]] = {k: [] for k in KS}
    sizes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.runs):
            for k in KS:
                bundle = Path(folder) / f"k{k}.mdeq"
                command = [sys.executable, "-m", "edge_mdeq.cli", "export", args.weights]
                command += ["-o", str(bundle), "--iterations", str(k), "--force", "-q"]
                started = time.monotonic()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds[k].append(time.monotonic() - started)
                sizes[k] = sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file())
    for k in KS:
        low, high = min(seconds[k]), max(seconds[k])
        middle = statistics.median(seconds[k])
        print(f"K = {k:2}: {middle:.1f} s ({low:.1f} to {high:.1f}), {sizes[k] / 1e6:.2f} MB")
    ratios = [b / a for a, b in zip(seconds[2], seconds[26], strict=True)]
    print(
        f"time ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"bundle grows by {(sizes[26] - sizes[2]) / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
