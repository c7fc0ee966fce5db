"""What each pass gains: an evaluation of f with it and without, beside torch.mm and a ResNet-50.

    python benchmarks/lean_graphs.py [--entry imagenet-small] [--threads 2] [--rounds 30]

Drawn weights, batch 1, fp32, ONNX Runtime on the CPU. Everything runs in turn in one process, in an
order that is reversed every other round. The share of torch.mm is the rate of the convolutions' own
multiplications and additions, over that of a 2048-square product in the same rounds: whatever else
an evaluation does only lowers it. A warm frame is stem, two evaluations and readout. With one
thread its own processor time is taken, which other work on the machine moves little.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from filled import filled
from graph_runs import runner
from peers import resnet
from rich.console import Console
from rich.table import Table
from torch import nn

from edge_mdeq.solvers import make_solver
from mdeq_export.compose import Pieces, piece_models, solve_model
from mdeq_export.cost import conv_macs
from mdeq_export.passes import Anonymise, DropIdentity, GraphPass, run_passes
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES

SQUARE = 2048
PASSES = PROFILES["ort-cpu"].passes
FOR_SPEED = ("LowerGroupNorm", "SumUpsampled", "JoinAffine")
EVALUATIONS = 2  # of a warm frame

Run = Callable[[], Any]


def main() -> None:
    """Time everything in turn, print medians, shares and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entry", default="imagenet-small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    model, config = filled(args.entry)
    pieces = trace_pieces(model.freeze(), config, make_solver("fixed_point"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        variants: dict[str, Sequence[GraphPass]] = {"all passes": PASSES}
        variants |= {f"without {name}": without(name) for name in FOR_SPEED}
        variants["as traced"] = (Anonymise(), DropIdentity())
        runs: dict[str, Run] = {}
        for name, passes in variants.items():
            path = root / f"{name.replace(' ', '-')}.onnx"
            ir.save(piece_models(lowered(pieces, passes))["c"], path)
            runs[name] = runner(path, args.threads, stop_spinning=True)
        operations = 2 * conv_macs(root / "all-passes.onnx")
        ir.save(solve_model(lowered(pieces, PASSES), EVALUATIONS), root / "frame.onnx")
        runs["warm frame"] = runner(root / "frame.onnx", args.threads, stop_spinning=True)
        runs["ResNet-50"] = runner(
            resnet50(root, config.height, config.width), args.threads, stop_spinning=True
        )
        runs["torch.mm"] = product()
        for run in runs.values():
            run()
            run()
        clock = time.thread_time if args.threads == 1 else time.perf_counter
        taken = timed(runs, args.rounds, clock)
    title = f"{args.entry}, {operations / 1e9:.2f} GFLOP of convolutions, {args.threads} threads"
    Console(width=120).print(table(title, taken, operations))


def without(name: str) -> tuple[GraphPass, ...]:
    """The passes of ``ort-cpu`` but one."""
    return tuple(one for one in PASSES if type(one).__name__ != name)


def lowered(pieces: Pieces, passes: Sequence[GraphPass]) -> Pieces:
    """A copy of ``pieces`` after ``passes``."""
    named = {name: graph.clone() for name, graph in pieces.all().items()}
    for graph in named.values():
        run_passes(graph, passes)
    return Pieces.of(pieces.opset, named)


def resnet50(root: Path, height: int, width: int) -> Path:
    """The peer, exported."""
    path = root / "resnet50.onnx"
    network: nn.Module = resnet(50).eval()
    image = torch.zeros(1, 3, height, width)
    torch.onnx.export(network, (image,), str(path), dynamo=True, opset_version=21, verbose=False)
    return path


def product() -> Run:
    """A product of two square matrices by torch."""
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    return lambda: torch.mm(a, b)


def timed(runs: dict[str, Run], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each, round by round."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            started = clock()
            runs[name]()
            taken[name].append(clock() - started)
    return taken


def table(title: str, taken: dict[str, list[float]], operations: int) -> Table:
    """Medians, each with its quartiles."""
    shown = Table(title=title, title_justify="left")
    for column in ("", "ms", "of all passes' time", "of torch.mm's rate", "of ResNet-50's time"):
        shown.add_column(column, justify="right" if column else "left")
    rate = [2 * SQUARE**3 / t for t in taken["torch.mm"]]
    for name, times in taken.items():
        is_cell = name not in {"warm frame", "ResNet-50", "torch.mm"}
        shares = [operations / t / r for t, r in zip(times, rate, strict=True)]
        shown.add_row(
            name,
            spread([1e3 * t for t in times], 1),
            spread(ratios(times, taken["all passes"]), 3) if is_cell else "",
            spread(shares, 3) if is_cell else "",
            "" if name == "torch.mm" else spread(ratios(times, taken["ResNet-50"]), 3),
        )
    shown.caption = f"torch.mm: {statistics.median(rate) / 1e9:.0f} GFLOP/s; median (quartiles)"
    return shown


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """``median (lower quartile to upper quartile)``."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[math.ceil(3 * len(ordered) / 4) - 1]
    return f"{statistics.median(ordered):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
