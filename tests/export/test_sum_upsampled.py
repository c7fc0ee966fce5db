"""Sums over enlarged maps: the same numbers, enlarged step by step."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from lowering import feeds_for, operators_of, run

from edge_mdeq.errors import ExportError
from mdeq_export.passes import SumUpsampled, run_passes
from mdeq_export.pieces import OPSET

FP32 = ir.TensorType(ir.DataType.FLOAT)
NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
BATCH, CHANNELS, SIZE = "batch", 3, 24


def fused(factors: list[int], mode: dict[str, str] = NEAREST, shared: bool = False) -> ir.Graph:
    """x_0 + x_1 + ..., each x_i smaller by its factor and enlarged by it; ``shared``: also an
    output."""
    inputs, nodes, terms = [], [], []
    initializers: dict[int, ir.Value] = {}

    def append(node: ir.Node) -> ir.Value:
        nodes.append(node)
        node.outputs[0].shape = ir.Shape([BATCH, CHANNELS, SIZE, SIZE])
        node.outputs[0].type = FP32
        return node.outputs[0]

    for k, factor in enumerate(factors):
        shape = ir.Shape([BATCH, CHANNELS, SIZE // factor, SIZE // factor])
        inputs.append(ir.Value(name=f"x{k}", shape=shape, type=FP32))
        if factor == 1:
            terms.append(inputs[-1])
            continue
        if factor not in initializers:
            scales = ir.tensor(np.array([1, 1, factor, factor], np.float32), name=f"s{factor}")
            initializers[factor] = ir.val(f"s{factor}", const_value=scales)
        terms.append(append(ir.node("Resize", [inputs[-1], None, initializers[factor]], mode)))
    total = terms[0]
    for term in terms[1:]:
        total = append(ir.node("Add", [total, term]))
    y = append(ir.node("Relu", [total]))
    y.name = "y"
    outputs = [y]
    if shared:
        outputs.append(next(term for term in terms if term.producer() is not None))
        outputs[-1].name = "also"
    return ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=list(initializers.values()),
        opset_imports={"": OPSET},
        name="fused",
    )


def factors_of(graph: ir.Graph) -> list[int]:
    """By how much each Resize enlarges, in order."""
    found = []
    for node in graph:
        if node.op_type == "Resize":
            scales = node.inputs[2]
            assert scales is not None
            assert scales.const_value is not None
            found.append(int(scales.const_value.numpy()[3]))
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("factors", "steps"),
    [
        ([1, 2, 4, 8], [2, 2, 2]),  # the finest scale of four
        ([1, 1, 2, 4], [2, 2]),  # an inner one
        ([8, 2, 1, 2], [4, 2]),  # two maps of one size, none of the size between
        ([4, 2], [2, 2]),  # nothing at full size
        ([12, 3, 1], [4, 3]),
    ],
)
def test_a_sum_is_enlarged_step_by_step(factors: list[int], steps: list[int], batch: int) -> None:
    graph = fused(factors)
    feeds = feeds_for(graph, batch)
    before = run(graph, feeds)["y"]
    assert run_passes(graph, [SumUpsampled()])
    assert not run_passes(graph, [SumUpsampled()])
    assert factors_of(graph) == steps
    assert operators_of(graph) == {"Resize", "Add", "Relu"}
    np.testing.assert_allclose(run(graph, feeds)["y"], before, atol=2e-6)


def test_every_pixel_comes_from_where_it_came_from() -> None:
    """Whole numbers are added exactly in any order: not one may differ."""
    graph = fused([1, 2, 4, 8])
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.integers(-1000, 1000, x.shape).astype(np.float32)
        for name, x in feeds_for(graph).items()
    }
    before = run(graph, feeds)["y"]
    run_passes(graph, [SumUpsampled()])
    np.testing.assert_array_equal(run(graph, feeds)["y"], before)


def test_less_is_written() -> None:
    """What Resizes and Adds give, in numbers: of the full size there is one of each."""
    written = []
    for graph_passes in ([], [SumUpsampled()]):
        graph = fused([1, 2, 4, 8])
        run_passes(graph, graph_passes)
        shapes = [node.outputs[0].shape for node in graph if node.op_type in {"Resize", "Add"}]
        written.append(sum(int(shape[2]) * int(shape[3]) for shape in shapes if shape is not None))
    assert written[0] == 6 * SIZE**2
    assert written[1] == 2 * (SIZE**2 + (SIZE // 2) ** 2 + (SIZE // 4) ** 2)


@pytest.mark.parametrize(
    "graph",
    [
        fused([1, 2]),
        fused([1, 2, 3]),
        fused([1, 2, 4], NEAREST | {"nearest_mode": "ceil"}),
        fused([1, 2, 4], NEAREST | {"mode": "linear"}),
        fused([1, 2, 4], shared=True),
    ],
    ids=["one factor", "2 does not divide 3", "other pixels", "not nearest", "used elsewhere too"],
)
def test_what_gains_nothing_or_would_not_be_the_same_is_left_alone(graph: ir.Graph) -> None:
    before = [node.op_type for node in graph]
    assert not run_passes(graph, [SumUpsampled()])
    assert [node.op_type for node in graph] == before


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SumUpsampled, "call", lambda self, graph: False)
    with pytest.raises(ExportError, match="pass SumUpsampled left the graph broken"):
        run_passes(fused([1, 2, 4]), [SumUpsampled()])
