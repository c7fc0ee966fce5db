"""NVIDIA's own parser and compiler take every graph, for two generations of GPUs.

The graphs of the sample models and of ImageNet-small in the lowering for RTX; those of the smallest
in both precisions, and in the lowering for TensorRT before 10.9, too. Not all of them in depth:
four evaluations have no operator that one has not. The table at the end of the run has times and
sizes; ``benchmarks/rtx_build.py`` prints it for everything.
"""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from quick_exports import traced_once
from rtx_build import COUNTS, MODELS, PRECISIONS, Built, compile_graph, table, write_graphs
from terminal import TABLE

from edge_mdeq.errors import EngineError
from mdeq_runtime.tensorrt.versions import installed

pytestmark = pytest.mark.skipif(
    not installed(("tensorrt_rtx",)),
    reason=f"TensorRT for RTX is not installed, or there is none for {platform.machine()}",
)
Key = tuple[str, str, str, str]  # model, target, precision, name of the graph
ONE, FOUR = ({f"{form}-k{count}" for form in ("solve", "advance")} for count in COUNTS)
SHORT = {*ONE, "inject", "readout"}
DEEP = {*SHORT, *FOUR}
NANO, CLASSIFIER, LARGE = MODELS
CASES = {
    **{(NANO, "tensorrt-rtx", precision): DEEP for precision in PRECISIONS},
    (NANO, "tensorrt-10", "fp32"): SHORT,
    (NANO, "tensorrt-10", "fp16"): {*SHORT, "solve-k4"},
    (CLASSIFIER, "tensorrt-rtx", "fp32"): SHORT,
    (LARGE, "tensorrt-rtx", "fp32"): DEEP,
}


@pytest.fixture(scope="module")
def compiled(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[Key, tuple[Built | EngineError, int]]:
    """What became of each graph, and the bytes of its weights."""
    root = tmp_path_factory.mktemp("rtx")
    with traced_once():
        graphs = [
            graph
            for k, ((model, target, precision), names) in enumerate(CASES.items())
            for graph in write_graphs(model, root / str(k), (target,), (precision,))
            if graph.path.stem in names
        ]

    def attempt(index: int) -> Built | EngineError:
        try:
            return compile_graph(graphs[index])
        except EngineError as error:
            return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(graphs, pool.map(attempt, range(len(graphs))), strict=True))
    done = {graph: built for graph, built in found.items() if isinstance(built, Built)}
    request.config.stash[TABLE] = table(done)
    return {
        (graph.model, graph.target, graph.precision, graph.path.stem): (built, graph.weights)
        for graph, built in found.items()
    }


@pytest.mark.parametrize(
    ("model", "target", "precision", "name"),
    [(Path(m).name, *case, name) for (m, *case), names in CASES.items() for name in sorted(names)],
)
def test_the_real_compiler_takes_it(
    compiled: dict[Key, tuple[Built | EngineError, int]],
    model: str,
    target: str,
    precision: str,
    name: str,
) -> None:
    built, weights = compiled[model, target, precision, name]
    assert isinstance(built, Built), built
    assert built.layers > 0
    assert built.plan > weights


def test_depth_costs_a_plan_next_to_nothing(
    compiled: dict[Key, tuple[Built | EngineError, int]],
) -> None:
    """Its weights are shared by all evaluations; three further ones are a tenth of it."""
    one, four = (
        compiled["imagenet-small", "tensorrt-rtx", "fp32", f"advance-k{n}"] for n in COUNTS
    )
    assert isinstance(one[0], Built)
    assert isinstance(four[0], Built)
    assert four[0].plan < 1.1 * one[0].plan
    assert four[0].plan < 1.6 * four[1]
    assert four[0].peak < 700e6
