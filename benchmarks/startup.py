"""How long the imports take that every program pays for.

python benchmarks/startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main() -> None:
    """Import in fresh interpreters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    for module in ("edge_mdeq", "mdeq_runtime", "edge_mdeq.cli"):
        times = [
            float(subprocess.check_output([sys.executable, "-c", CODE.format(module)]))
            for _ in range(args.runs)
        ]
        middle = statistics.median(times)
        print(f"import {module}: {middle:.3f} s ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
