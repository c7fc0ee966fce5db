"""Peak memory and time of the mask readout, all at once and in tiles of rows.

    python benchmarks/readout_memory.py [--entry cityscapes-small] [--size 1024 2048] [--runs 5]

The readout alone, with random weights and states, in ONNX Runtime as the runtime sets it up. Peak:
VmHWM of a fresh process through its first run, above what was resident when states and outputs
were there and the graph was loaded. It holds the states once more where the runtime reorders them.
Time: of the CPU, one thread, all graphs in turn in one process, so that other load matters little;
ratios are between neighbours. Three graphs: "at once" upsamples all states, joins and convolves
them; "one tile" convolves before it upsamples; "tiled" does so in tiles of rows, as many as an
export takes. ``--skip`` the first two where there is no memory for them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_mdeq.registry import REGISTRY, lookup
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend, share_arena
from mdeq_runtime.memory import limit_heaps, peak_resident_bytes, resident_bytes

PLAIN, ONE, TILED = "at once", "one tile", "tiled"
CLEAR_REFS, RESET_PEAK = Path("/proc/self/clear_refs"), "5"  # see proc(5)


def main() -> None:
    """Export the readouts, measure each in a process of its own, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    entries = [name for name, entry in REGISTRY.items() if entry.model.task == "segmentation"]
    parser.add_argument("--entry", default="cityscapes-small", choices=entries)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(1024, 2048))
    parser.add_argument("--runs", type=int, default=5, help="of the timing")
    parser.add_argument(
        "--skip", nargs="*", default=(), choices=(PLAIN, ONE), help="to save memory"
    )
    parser.add_argument("--child", choices=("peak", "time"), help=argparse.SUPPRESS)
    parser.add_argument("--graphs", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sessions = [Loaded(path) for path in args.graphs]
        answer = peak(*sessions) if args.child == "peak" else times(sessions, args.runs)
        print(json.dumps(answer))
        return
    with tempfile.TemporaryDirectory() as folder:
        graphs, tiles = export(args.entry, *args.size, Path(folder), args.skip)
        peaks = {name: child("peak", [path]) for name, path in graphs.items()}
        seconds = child("time", list(graphs.values()), "--runs", str(args.runs))
    show(args, tiles, peaks, dict(zip(graphs, seconds, strict=True)), Console(width=100))


def export(
    entry: str, height: int, width: int, folder: Path, skip: tuple[str, ...]
) -> tuple[dict[str, Path], int]:
    """The readouts of a model with random weights as ONNX files, and the number of tiles."""
    import onnx_ir as ir
    import torch

    from edge_mdeq.model import MDEQ
    from mdeq_export.pieces import trace
    from mdeq_export.readouts import ReadMask, TiledReadMask

    torch.manual_seed(0)
    model = MDEQ(lookup(entry).model)
    for weight in model.readout.parameters():
        if weight.ndim == 4:  # the initialisation's are so small that all pixels are of one class
            torch.nn.init.kaiming_normal_(weight)
    model = model.freeze()
    tiled = TiledReadMask(model, height, width)
    readouts = {
        PLAIN: ReadMask(model, height, width),
        ONE: TiledReadMask(model, height, width, tiles=1),
        TILED: tiled,
    }
    z = tuple(torch.zeros(shape) for shape in model.config.state_shapes(1, height, width))
    graphs = {}
    for index, (name, readout) in enumerate(readouts.items()):
        if name not in skip:
            graphs[name] = folder / f"readout{index}.onnx"
            ir.save(ir.Model(trace(readout, (z,)), ir_version=10), graphs[name])
    return graphs, len(tiled.tiles)


def child(what: str, graphs: list[Path], *options: str) -> Any:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--child", what, *options, "--graphs", *map(str, graphs)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Loaded:
    """A graph in a session, with its inputs and outputs allocated."""

    def __init__(self, path: str) -> None:
        import onnxruntime as ort

        limit_heaps()
        share_arena(ort)
        options = OrtCpuBackend.options(SimpleNamespace(ort=ort, threads=1))
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        rng, wrap = np.random.default_rng(0), ort.OrtValue.ortvalue_from_numpy
        kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
        self.given = [
            rng.standard_normal(i.shape, np.float32).astype(kinds[i.type])
            for i in self.session.get_inputs()
        ]
        self.answers = [np.ones(o.shape, kinds[o.type]) for o in self.session.get_outputs()]
        for value, array in zip(self.session.get_inputs(), self.given, strict=True):
            self.binding.bind_ortvalue_input(value.name, wrap(array))
        for value, array in zip(self.session.get_outputs(), self.answers, strict=True):
            self.binding.bind_ortvalue_output(value.name, wrap(array))

    def run(self) -> float:
        """Seconds of the CPU."""
        started = time.process_time()
        self.session.run_with_iobinding(self.binding)
        return time.process_time() - started


def peak(loaded: Loaded) -> int:
    """Bytes that the first run adds at its peak."""
    CLEAR_REFS.write_text(RESET_PEAK)
    before = resident_bytes()
    loaded.run()
    return peak_resident_bytes() - before


def times(sessions: list[Loaded], runs: int) -> list[list[float]]:
    """Seconds of each run of each graph, taken in turn; the first round warms up."""
    rounds = [[loaded.run() for loaded in sessions] for _ in range(1 + runs)][1:]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def show(
    args: argparse.Namespace,
    tiles: int,
    peaks: dict[str, int],
    seconds: dict[str, list[float]],
    console: Console,
) -> None:
    """The table, and what it is to be compared with."""
    config, (height, width) = lookup(args.entry).model, args.size
    shapes = config.state_shapes(1, height, width)
    states = sum(4 * c * h * w for _, c, h, w in shapes)
    _, _, rows, columns = shapes[0]
    hidden = 4 * sum(config.channels) * rows * columns
    logits = 4 * config.classes * height * width
    console.print(
        f"{args.entry} at {height} x {width}: states {states / 1e6:.1f} MB, hidden layer "
        f"{hidden / 1e6:.1f} MB, full logits {logits / 1e6:.1f} MB; {tiles} tiles"
    )
    table = Table()
    table.add_column("readout")
    for heading in ("peak MB", "of the states", "CPU ms, median", "time ratio", "min", "max"):
        table.add_column(heading, justify="right")
    reference = next(iter(seconds))
    for name in peaks:
        ratios = [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]
        table.add_row(
            name,
            f"{peaks[name] / 1e6:.1f}",
            f"{peaks[name] / states:.2f}",
            f"{1e3 * statistics.median(seconds[name]):.2f}",
            *(f"{f(ratios):.3f}" for f in (statistics.median, min, max)),
        )
    console.print(table)


if __name__ == "__main__":
    main()
