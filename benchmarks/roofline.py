"""How near one evaluation of f comes to what the machine can do, as a whole and by operator.

    python benchmarks/roofline.py [BUNDLE] [--entry imagenet-small] [--threads 0] [--rounds 20]
        [--json FILE]

Measured in the same run, in turn: a product of 2048-square matrices by torch.mm and by ONNX
Runtime's MatMul, a sum of two vectors in main memory and in the cache, and the cell. Then the
cell's operators from ONNX Runtime's profile: convolutions and products against torch.mm's rate, all
others against the bandwidth of the cache, where their tensors mostly lie. A bundle's int8 cell is
measured beside the other one where it has one; its operations count as those in single precision
would. Without a bundle the graph is lowered anew, with drawn weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from contenders.findings import roofline_claims
from filled import filled
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from edge_mdeq.bundle import open_bundle
from edge_mdeq.files import write_atomic
from edge_mdeq.solvers import make_solver
from mdeq_export.graphs import write_profile
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES
from mdeq_runtime.bench.machine import describe_machine, pinned
from mdeq_runtime.bench.statistics import Ratio, ratio

SIDE = 2048  # of the matrices
FAR, NEAR = 2**25, 2**18  # floats of a vector, in main memory and in the cache
PROFILED, WARM_UP = 15, 3  # runs
PRODUCTS = ("Conv", "FusedConv", "QLinearConv", "MatMul", "Gemm", "FusedMatMul", "FusedGemm")
CELL, INT8_CELL = "c", "q"  # as a bundle names its pieces
MM, MATMUL, FAR_SUM, NEAR_SUM = "torch.mm", "ONNX Runtime MatMul", "main memory", "cache"


@dataclass(frozen=True)
class Operators:
    """All operators of one kind in one evaluation.

    Attributes:
        name, count: such as "Conv", and how many there are.
        ms: that they take together.
        bytes: that they read and write, weights included.
        floating: operations; 0 for what is bound by memory.
    """

    name: str
    count: int
    ms: float
    bytes: int
    floating: int


def main() -> None:
    """Measure and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--entry", default="imagenet-small")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with pinned(args.threads) as cores, cells(args.bundle, args.entry) as graphs:
        torch.set_num_threads(cores.threads)
        sessions = {name: Running(path, cores.threads) for name, path in graphs.items()}
        work = flops(next(iter(graphs.values())))
        runs = {**references(cores.threads), **sessions}
        taken = take_turns(runs, args.rounds)
        profiled = {name: profile(path, cores.threads, work) for name, path in graphs.items()}
    found = {
        "machine": describe_machine(),
        "threads": cores.threads,
        "model": args.bundle.stem if args.bundle else args.entry,
        "gflop": work / 1e9,
        "product_gflop": 2 * SIDE**3 / 1e9,
        "milliseconds": {name: [1e3 * s for s in each] for name, each in taken.items()},
        "operators": {name: [vars(o) for o in each] for name, each in profiled.items()},
    }
    if args.json:
        write_atomic(args.json, json.dumps(found, indent=1).encode() + b"\n")
    report(taken, work, profiled, found["model"])
    for claim in roofline_claims(found):
        print(claim)


@contextmanager
def cells(bundle: Path | None, entry: str) -> Iterator[dict[str, Path]]:
    """The graph of one evaluation by precision, "cell, fp32" first."""
    if bundle is not None:
        opened = open_bundle(bundle)
        parts = opened.profile("ort-cpu").parts
        yield {
            f"cell, {part.precision}": opened.file(
                part.pieces[INT8_CELL if part.precision == "int8" else CELL]
            )
            for part in sorted(parts, key=lambda part: part.precision != "fp32")
        }
        return
    with tempfile.TemporaryDirectory() as folder:
        model, config = filled(entry)
        pieces = trace_pieces(model.freeze(), config, make_solver("fixed_point"))
        lowered = write_profile(pieces, PROFILES["ort-cpu"], (1,), Path(folder))
        yield {"cell, fp32": Path(folder) / lowered.parts[0].pieces[CELL]}


class Running:
    """A graph in ONNX Runtime on random values, ready to run."""

    def __init__(self, path: Path, threads: int, profiling: str = "") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # graphs take turns: threads of one must not wait busily while the next one runs
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profiling:
            options.enable_profiling = True
            options.profile_file_prefix = profiling
        self.session: Any = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        self.given = {
            value.name: rng.standard_normal(value.shape, np.float32)
            for value in self.session.get_inputs()
        }

    def __call__(self) -> None:
        self.session.run(None, self.given)


def references(threads: int) -> dict[str, Callable[[], Any]]:
    """What the machine can do: two products and two sums."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    c = torch.empty(SIDE, SIDE)
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (SIDE, SIDE)) for n in "abc"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "g", info[:2], info[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "product.onnx")
        product = Running(Path(folder) / "product.onnx", threads)
    far, near = ([torch.randn(n) for _ in range(3)] for n in (FAR, NEAR))
    return {
        MM: lambda: torch.mm(a, b, out=c),
        MATMUL: product,
        FAR_SUM: lambda: torch.add(far[0], far[1], out=far[2]),
        NEAR_SUM: lambda: [
            torch.add(near[0], near[1], out=near[2]) for _ in range(FAR // NEAR // 8)
        ],
    }


def take_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round; the first of two runs only warms the caches."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            started = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - started)
    return taken


def flops(path: Path) -> int:
    """Floating-point operations of a graph's convolutions and products, two per multiply-add."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output, *graph.input)
    }
    shapes |= {value.name: list(value.dims) for value in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += (
                2 * int(np.prod(shapes[node.output[0]])) * int(np.prod(shapes[node.input[1]][1:]))
            )
        elif node.op_type in ("MatMul", "Gemm"):
            total += 2 * int(np.prod(shapes[node.output[0]])) * int(shapes[node.input[0]][-1])
    return total


def profile(path: Path, threads: int, work: int) -> list[Operators]:
    """The operators of a graph, those that take longest first; of each kind the median run."""
    with tempfile.TemporaryDirectory() as folder:
        running = Running(path, threads, profiling=str(Path(folder) / "profile"))
        for _ in range(WARM_UP + PROFILED):
            running()
        events = json.loads(Path(running.session.end_profiling()).read_text())
    kinds: dict[str, list[tuple[float, int]]] = {}  # by operator: microseconds and bytes, in order
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            sizes = ("activation_size", "parameter_size", "output_size")
            moved = sum(int(event["args"].get(size, 0)) for size in sizes)
            kinds.setdefault(event["args"]["op_name"], []).append((event["dur"], moved))
    found = []
    products = {name: sum(us for us, _ in each) for name, each in kinds.items() if name in PRODUCTS}
    for name, each in kinds.items():
        count = len(each) // (WARM_UP + PROFILED)
        runs = np.array(each[count * WARM_UP :]).reshape(PROFILED, count, 2).sum(axis=1)
        share = products.get(name, 0.0) / (sum(products.values()) or 1.0)
        found.append(
            Operators(
                name, count, float(np.median(runs[:, 0])) / 1e3, int(runs[0, 1]), int(share * work)
            )
        )
    return sorted(found, key=lambda operators: -operators.ms)


def rate_of(taken: Sequence[float], work: float) -> float:
    """Units of work per second, at the median."""
    return work / float(np.median(taken))


def report(
    taken: dict[str, list[float]],
    work: int,
    profiled: dict[str, list[Operators]],
    model: str,
) -> None:
    """Print what the machine does, the whole evaluation against it, and the operators."""
    console, square = Console(width=110), 2 * SIDE**3
    moved = {FAR_SUM: 12 * FAR, NEAR_SUM: 12 * NEAR * (FAR // NEAR // 8)}
    rates = {name: rate_of(taken[name], size) / 1e9 for name, size in moved.items()}
    gemm = rate_of(taken[MM], square) / 1e9
    table = Table(title=f"one evaluation of {model}, {work / 1e9:.2f} GFLOP", title_justify="left")
    for column in ("what", "ms", "GFLOP/s or GB/s", "of torch.mm (95% of resampled rounds)"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, each in taken.items():
        ms = f"{1e3 * float(np.median(each)):.2f}"
        if name in moved:
            table.add_row(name, ms, f"{rates[name]:.1f}", "")
            continue
        size = work if name.startswith("cell") else square
        share = against(taken[MM], square, each, size)
        table.add_row(name, ms, f"{rate_of(each, size) / 1e9:.1f}", str(share))
    console.print(table)
    for name, operators in profiled.items():
        whole = sum(o.ms for o in operators)
        table = Table(title=f"{name}, profiled, {whole:.1f} ms", title_justify="left")
        for column in ("operator", "count", "ms", "of all", "MB", "rate", "of the roof"):
            table.add_column(column, justify="left" if column == "operator" else "right")
        for o in operators:
            if o.floating:
                rate, roof, unit = o.floating / o.ms / 1e6, gemm, "GFLOP/s"
            else:
                rate, roof, unit = o.bytes / o.ms / 1e6, rates[NEAR_SUM], "GB/s"
            table.add_row(
                o.name, str(o.count), f"{o.ms:.2f}", f"{o.ms / whole:.0%}", f"{o.bytes / 1e6:.1f}",
                f"{rate:.0f} {unit}", f"{rate / roof:.0%}",
            )  # fmt: skip
        console.print(table)


def against(roof: Sequence[float], roof_work: float, taken: Sequence[float], work: float) -> Ratio:
    """The share of one rate that another one reaches."""
    return ratio([s / roof_work for s in roof], [s / work for s in taken])


if __name__ == "__main__":
    main()
