"""Every graph compiled by NVIDIA's own compiler, without a GPU: time, plan size, builder's memory.

    python benchmarks/rtx_build.py [MODEL ...] [--target tensorrt-rtx] [--precision fp32]

MODEL is a folder of weights, or the name of a registered configuration, whose weights are drawn
then; by default the sample models and imagenet-small. TensorRT for RTX builds one plan for two
compute capabilities, in a child process like ``edge-mdeq engine``. "of weights" is the plan's size
beside that of the weights that the graph uses, in its precision. What is lowered for TensorRT 10
is compiled as well: its own compiler needs a GPU, but its operators are the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filled import filled
from rich.console import Console
from rich.table import Table

from edge_mdeq.config import InputConfig
from edge_mdeq.errors import EngineError
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from edge_mdeq.weights import load_weights
from mdeq_export.cost import graph_cost
from mdeq_export.graphs import write_profile
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import PROFILES
from mdeq_runtime.tensorrt.child import Event, Job
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.workshop import child

SAMPLES = Path(__file__).parent.parent / "samples" / "models"
MODELS = (str(SAMPLES / "camvid-nano"), str(SAMPLES / "clothing-small"), "imagenet-small")
TARGETS = ("tensorrt-rtx", "tensorrt-10")
PRECISIONS = ("fp32", "fp16")
COUNTS = (1, 4)
CAPABILITIES = ("SM86", "SM89")


@dataclass(frozen=True)
class Graph:
    """A graph to compile; ``weights`` are bytes of those that it uses, as external data or own."""

    model: str
    target: str
    precision: str
    path: Path
    weights: int


@dataclass(frozen=True)
class Built:
    """What a build gave and took."""

    layers: int
    seconds: float
    plan: int
    peak: int


def write_graphs(
    model: str, root: Path, targets: Sequence[str] = TARGETS, precisions: Sequence[str] = PRECISIONS
) -> Iterator[Graph]:
    """Lower a model's graphs for each target and precision: solve and advance, inject, readout."""
    traced, config = weights_of(model)
    pieces = trace_pieces(traced.freeze(), config, make_solver("fixed_point"))
    for target in targets:
        for precision in precisions:
            folder = root / precision
            profile = write_profile(pieces, PROFILES[target], COUNTS, folder, precision)
            for name in profile.graphs:
                yield Graph(Path(model).name, target, precision, folder / name, used(folder / name))


def weights_of(model: str) -> tuple[MDEQ, InputConfig]:
    """Trained weights if it is a folder, else drawn ones."""
    if Path(model).is_dir():
        loaded, card = load_weights(Path(model))
        return loaded, card.input
    return filled(model)


def used(path: Path) -> int:
    """Bytes of the weights of a graph."""
    cost = graph_cost(path)
    return cost.weights if cost is not None else 0


def compile_graph(graph: Graph, capabilities: tuple[str, ...] = CAPABILITIES) -> Built:
    """Compile a graph in a process of its own.

    Raises:
        EngineError: the parser or the compiler refuses it, in their words.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.engine"
        settings = BuildSettings(capabilities=capabilities)
        job = Job(str(graph.path), str(plan), str(plan) + ".json", None, True, settings)
        said: list[Event] = []
        with child(job) as (process, events):
            while (event := events.get()) is not None:
                said.append(event)
            process.wait()
        if not said or said[-1].kind != "built":
            words = "\n".join(e.text for e in said if e.kind in ("said", "error"))
            raise EngineError(f"{graph.target} {graph.precision} {graph.path.name}: {words}")
        took = said[-1].measured
        return Built(
            int(took["layers"]), took["seconds"], plan.stat().st_size, int(took["peak_bytes"])
        )


def table(built: dict[Graph, Built]) -> Table:
    """A row per graph."""
    made = Table(title=f"TensorRT for RTX, one plan for {' and '.join(CAPABILITIES)}")
    made.add_column("graph")
    for column in ("layers", "build s", "plan MB", "of weights", "builder's peak MB"):
        made.add_column(column, justify="right")
    for graph, found in built.items():
        made.add_row(
            f"{graph.model} {graph.target} {graph.precision} {graph.path.stem}",
            str(found.layers),
            f"{found.seconds:.1f}",
            f"{found.plan / 1e6:.1f}",
            f"{found.plan / graph.weights:.2f}" if graph.weights else "-",
            f"{found.peak / 1e6:.0f}",
        )
    return made


def main() -> None:
    """Compile everything that was asked for, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--workers", type=int, default=1, help="builds at the same time")
    args = parser.parse_args()
    console = Console()
    targets, precisions = args.target or TARGETS, args.precision or PRECISIONS
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        graphs = [
            graph
            for k, model in enumerate(args.models)
            for graph in write_graphs(model, Path(folder) / str(k), targets, precisions)
        ]
        with console.status("compiling"):
            built = dict(zip(graphs, pool.map(compile_graph, graphs), strict=True))
    console.print(table(built))


if __name__ == "__main__":
    main()
