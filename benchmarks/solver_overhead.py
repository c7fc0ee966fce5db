"""What the solver costs beside the cell: the fused graph of N evaluations against N cells alone.

    python benchmarks/solver_overhead.py [--entry imagenet-small] [--evaluations 16] [--runs 9]
        [--threads 0]

Drawn weights; ONNX Runtime on the CPU, all graphs in one process, in turn. The fused graph also
holds the injection and the readout, which are timed apart and subtracted for the second ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filled import filled
from graph_runs import runner
from rich.console import Console
from rich.table import Table

from edge_mdeq.bundle import Profile
from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from mdeq_export.graphs import write_profile
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES

SOLVERS: dict[str, tuple[str, dict[str, float]]] = {
    "fixed point": ("fixed_point", {}),
    "Anderson 5": ("anderson", {"m": 5}),
    "Broyden 8": ("broyden", {"m": 8}),
}


def exported(model: MDEQ, config: InputConfig, solver: str, count: int, root: Path) -> Profile:
    """One solver's graphs."""
    name, settings = SOLVERS[solver]
    pieces = trace_pieces(model.freeze(), config, make_solver(name, **settings))
    return write_profile(pieces, PROFILES["ort-cpu"], (count,), root)


def main() -> None:
    """Time everything in turn and print the ratios of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entry", default="imagenet-small")
    parser.add_argument("--evaluations", type=int, default=16)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    model, config = filled(args.entry)
    count = args.evaluations
    with tempfile.TemporaryDirectory() as folder:
        runners: dict[str, Callable[[], Any]] = {}
        for solver in SOLVERS:
            root = Path(folder) / solver.replace(" ", "-")
            profile = exported(model, config, solver, count, root)
            runners[solver] = runner(root / profile.rungs[0].graph, args.threads)
            parts = profile.parts[0]
        runners["cell"] = runner(root / parts.pieces["c"], args.threads)
        runners["inject"] = runner(root / parts.inject, args.threads)
        runners["readout"] = runner(root / parts.readout, args.threads)
        for run in runners.values():
            run()
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(args.runs):
            for name, run in runners.items():
                repeats = 1 if name in SOLVERS else count  # as much work, for as quiet a figure
                started = time.perf_counter()
                for _ in range(repeats):
                    run()
                taken[name].append((time.perf_counter() - started) / repeats)
    table = Table(
        title=f"{args.entry}, {count} evaluations, against {count} cells alone "
        f"({1e3 * statistics.median(taken['cell']):.1f} ms each); {args.runs} rounds",
        title_justify="left",
    )
    for column in ("solver", "ms", "whole graph / cells", "without injection and readout"):
        table.add_column(column, justify="left" if column == "solver" else "right")
    for solver in SOLVERS:
        rounds = list(zip(*(taken[n] for n in (solver, "cell", "inject", "readout")), strict=True))
        whole = [a / (count * c) for a, c, _, _ in rounds]
        alone = [(a - i - r) / (count * c) for a, c, i, r in rounds]
        table.add_row(
            solver,
            f"{1e3 * statistics.median(taken[solver]):.0f}",
            *(f"{statistics.median(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in (whole, alone)),
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
