"""The memory of a session above a bare process, by evaluations, with and without the graph cache.

    python benchmarks/session_memory.py [BUNDLE] [--filled imagenet-small] [--counts 4 26]

Each row is a process of its own: the peak of its resident memory (VmHWM), mapped and private, less
that of the same process before the bundle was opened, with NumPy, OpenCV and ONNX Runtime imported.
``--filled`` exports a registered configuration with drawn weights first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

CHILD = """
import json, sys
from pathlib import Path
import cv2, numpy, onnxruntime
from mdeq_runtime import Model, SessionSettings, UntilTolerance
from mdeq_runtime.memory import peak_resident_bytes, resident_bytes
bundle, count, cache = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None
base = resident_bytes()
settings = SessionSettings(UntilTolerance(1e-9, max_iterations=count), reset_on_cut=False)
with Model(bundle, settings, threads=1, cache=cache) as model, model.session() as session:
    size = model.manifest.input.size
    image = numpy.random.default_rng(0).integers(0, 256, (*size, 3), dtype=numpy.uint8)
    results = [session(image) for _ in range(3)]
    step = min(r.times["advance"] / r.iterations for r in results)
    lines = dict(l.split(":") for l in open("/proc/self/status") if l.startswith(("Rss", "VmHWM")))
    private = int(lines["RssAnon"].split()[0]) * 1024
print(json.dumps([peak_resident_bytes() - base, private, step]))
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--filled", default="imagenet-small")
    parser.add_argument("--counts", type=int, nargs="*", default=[4, 26])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or drawn(args.filled, Path(folder))
        weights = sum(p.stat().st_size for p in (bundle / "graphs/ort-cpu").glob("weights-*"))
        title = f"{bundle.stem}, weights of {weights / 1e6:.1f} MB"
        table = Table(title=title, title_justify="left")
        for column in ("evaluations", "graph cache", "peak above base, MB", "private, MB", "ms"):
            table.add_column(column, justify="right")
        for cache in ("", str(Path(folder) / "cache")):
            if cache:
                measure(bundle, 1, cache)  # fills it
            for count in args.counts:
                peak, private, step = measure(bundle, count, cache)
                shown = f"{peak / 1e6:.1f}", f"{private / 1e6:.1f}", f"{step:.1f}"
                table.add_row(str(count), "yes" if cache else "no", *shown)
        Console(width=100).print(table)


def drawn(name: str, folder: Path) -> Path:
    """A bundle of drawn weights; exported in a process of its own."""
    program = (
        "import sys; from pathlib import Path; from filled import save_filled; import edge_mdeq\n"
        "from mdeq_export import ExportSettings\n"
        "save_filled(sys.argv[1], Path(sys.argv[2]))\n"
        "edge_mdeq.export(sys.argv[2], sys.argv[3], ExportSettings(iterations=(1,)))"
    )
    bundle, weights = folder / f"{name}.mdeq", folder / "weights"
    weights.mkdir()
    arguments = [sys.executable, "-c", program, name, str(weights), str(bundle)]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parent)
    return bundle


def measure(bundle: Path, count: int, cache: str) -> tuple[int, int, float]:
    """Peak above base and private memory in bytes, and milliseconds of an evaluation."""
    arguments = [sys.executable, "-c", CHILD, str(bundle), str(count), cache]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    peak, private, step = json.loads(done.stdout)
    return int(peak), int(private), float(step)


if __name__ == "__main__":
    main()
