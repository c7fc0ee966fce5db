"""What it costs that the threads of a graph wait, spinning, while the next graph runs.

    python benchmarks/spinning.py [BUNDLE] [--precision fp32] [--evaluations 4] [--threads 2]

A cold frame as one graph and in parts, with threads that wait for their graph to run again, which
ONNX Runtime does by itself, and with threads that stop when it has run, as the runtime has it. Each
is a process of its own, in turns; milliseconds of a frame, of all rounds, and memory above a bare
process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

SAMPLE = Path(__file__).parents[1] / "samples" / "bundles" / "camvid-nano.mdeq"
FORMS, THREADS = ("graph", "parts"), ("waiting", "stopped")
CHILD = """
import json, sys, time
import numpy as np
import onnxruntime
from mdeq_runtime import FixedIterations, Model, SessionSettings, solving
from mdeq_runtime.backends import ort_cpu
from mdeq_runtime.memory import resident_bytes
bundle, form, idle, precision, evaluations, threads = sys.argv[1:]
if idle == "waiting":
    options = ort_cpu.OrtCpuBackend.options
    def spinning(self):
        found = options(self)
        found.add_session_config_entry("session.force_spinning_stop", "0")
        return found
    ort_cpu.OrtCpuBackend.options = spinning
policy = FixedIterations(int(evaluations))
settings = SessionSettings(
    policy, carry=False, reset_on_cut=False, restart_above=1e9, precision=precision
)
solving.saves_memory = lambda *args: form == "parts"
onnxruntime.set_default_logger_severity(3)  # of an entry that is written twice
base, took = resident_bytes(), []
with Model(bundle, settings, threads=int(threads)) as model, model.session() as session:
    image = np.random.default_rng(0).integers(0, 256, (*model.manifest.input.size, 3), np.uint8)
    for _ in range(25):
        began = time.perf_counter()
        session(image)
        took.append(1e3 * (time.perf_counter() - began))
    print(json.dumps([took[3:], resident_bytes() - base]))
"""


def main() -> None:
    """Take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ways = [(form, idle) for form in FORMS for idle in THREADS]
    took: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    memory: dict[tuple[str, str], int] = {}
    for _ in range(args.rounds):
        for way in ways:
            command = [sys.executable, "-c", CHILD, str(args.bundle), *way, args.precision]
            command += [str(args.evaluations), str(args.threads)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            times, memory[way] = json.loads(done.stdout)
            took[way] += times
    title = f"{args.bundle.stem}, {args.precision}, {args.evaluations} evaluations"
    table = Table("form", "threads", "p10 ms", "p50 ms", "p90 ms", "MB", title=title)
    for way in ways:
        found = [f"{ms:.1f}" for ms in np.percentile(took[way], (10, 50, 90))]
        table.add_row(*way, *found, f"{memory[way] / 1e6:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
