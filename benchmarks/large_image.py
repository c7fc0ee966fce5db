"""A model of Cityscapes' size from weights to a mask: what export and run hold at their peaks.

    python benchmarks/large_image.py [--entry cityscapes-small] [--size 1024 2048] [--rungs 1 2]

Drawn weights through ``edge-mdeq export --imgsz`` and one picture through ``edge-mdeq run``, each a
process of its own as a user's would be: the largest resident memory. Then graph by graph in ONNX
Runtime, as the runtime sets it up: what the first run adds at its peak to a loaded graph. All are
also given in multiples of the states, which every run needs twice, to read and to write.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from export_cost import SAVE, spend
from readout_memory import child
from rich.console import Console
from rich.table import Table

from edge_mdeq.bundle import Manifest, open_bundle
from edge_mdeq.registry import REGISTRY

PICTURE = (
    "import cv2, sys; from mdeq_export.images import scene;"
    "cv2.imwrite(sys.argv[1], scene(0, int(sys.argv[2]), int(sys.argv[3])))"
)


def main() -> None:
    """Export, run, measure the graphs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    entries = [name for name, entry in REGISTRY.items() if entry.model.task == "segmentation"]
    parser.add_argument("--entry", default="cityscapes-small", choices=entries)
    parser.add_argument("--size", nargs=2, metavar=("H", "W"), default=("1024", "2048"))
    parser.add_argument("--rungs", nargs="+", default=("1", "2"))
    args = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In processes of their own, since a child's peak starts from that of its parent.
        command = [sys.executable, "-c", SAVE, args.entry, name]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)
        picture, path = folder / "picture.png", folder / f"{args.entry}.mdeq"
        subprocess.run([sys.executable, "-c", PICTURE, str(picture), *args.size], check=True)
        options = ["-o", str(path), "-q", "--imgsz", *args.size, "--iterations", *args.rungs]
        exported, said = spend("export", name, *options)
        console.print(said)
        bundle = open_bundle(path)
        rows = {"edge-mdeq export": exported.peak}
        seconds = {"edge-mdeq export": exported.cpu}
        for count in args.rungs:
            masks = folder / f"masks-{count}"
            options = ["--output", f"{masks}/", "--json", "--iterations", count]
            ran, _ = spend("run", str(path), str(picture), *options)
            check(masks / "000000.png", bundle.manifest)
            what = f"edge-mdeq run --iterations {count}"
            rows[what], seconds[what] = ran.peak, ran.cpu
        profile = bundle.profile("ort-cpu")
        parts = profile.parts[0]
        graphs = [parts.inject, *(rung.graph for rung in parts.advance), parts.readout]
        graphs += [rung.graph for rung in profile.rungs]
        rows |= {Path(graph).stem: child("peak", [bundle.file(graph)]) for graph in graphs}
    show(args, bundle.manifest, rows, seconds, console)


def check(mask: Path, manifest: Manifest) -> None:
    """The picture was answered at its size, and with more than one class."""
    import cv2
    import numpy as np

    found = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    assert found is not None
    assert found.shape == tuple(manifest.input.size)
    assert len(np.unique(found)) > 1


def show(
    args: argparse.Namespace,
    manifest: Manifest,
    rows: dict[str, int],
    seconds: dict[str, float],
    console: Console,
) -> None:
    """The table, and what it is to be compared with."""
    elements = sum(channels * h * w for _, channels, h, w in (s.shape for s in manifest.states))
    height, width = manifest.input.size
    logits = 4 * len(manifest.labels) * height * width
    states = 4 * elements
    console.print(
        f"{args.entry} at {height} x {width}: states {states / 1e6:.1f} MB, logits at the image's "
        f"size {logits / 1e6:.1f} MB"
    )
    table = Table()
    table.add_column("process, or graph")
    for heading in ("peak MB", "of the states", "CPU s"):
        table.add_column(heading, justify="right")
    for what, peak in rows.items():
        cpu = f"{seconds[what]:.0f}" if what in seconds else ""
        table.add_row(what, f"{peak / 1e6:.1f}", f"{peak / states:.1f}", cpu)
    console.print(table)


if __name__ == "__main__":
    main()
