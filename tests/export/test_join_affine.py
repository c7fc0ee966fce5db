"""Gains and biases in one node: the same numbers, in a form that costs one pass."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from lowering import feeds_for, run

from edge_mdeq.errors import ExportError
from mdeq_export.passes import ExactNorm, Half, JoinAffine, LowerGroupNorm, run_passes
from mdeq_export.pieces import OPSET

CHANNELS = 16
SHAPE = ("batch", CHANNELS, 6, 10)
FP32 = ir.TensorType(ir.DataType.FLOAT)


def graph_of(*operators: str, also: int | None = None, column: bool = True) -> ir.Graph:
    """x -> operators -> y, all with drawn constants; ``also``: that one's result is an output too.

    ``column``: gains and biases of "Mul" and "Add" are one per channel, not one for all.
    """
    rng = np.random.default_rng(0)
    initializers: list[ir.Value] = []

    def drawn(*shape: int) -> ir.Value:
        numbers = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        name = f"c{len(initializers)}"
        initializers.append(ir.val(name, const_value=ir.tensor(numbers, name=name)))
        return initializers[-1]

    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=FP32)
    value, nodes = x, []
    for operator in operators:
        inputs, attributes = [value], {}
        if operator == "Conv":
            inputs.append(drawn(CHANNELS, CHANNELS, 1, 1))
        elif operator == "GroupNormalization":
            inputs += [drawn(CHANNELS), drawn(CHANNELS)]
            attributes = {"num_groups": 4}
        elif operator in {"Mul", "Add"}:
            inputs.append(drawn(*((CHANNELS, 1, 1) if column else (1, 1, 1))))
        nodes.append(ir.node(operator, inputs, attributes))
        value = nodes[-1].outputs[0]
        value.shape, value.type = x.shape, FP32
    outputs = [value]
    value.name = "y"
    if also is not None:
        outputs.append(nodes[also].outputs[0])
        outputs[-1].name = "also"
    return ir.Graph(
        [x],
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": OPSET},
        name="affine",
    )


def operators_of(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def assert_same(graph: ir.Graph, batch: int = 2) -> None:
    """The pass runs once, and changes no output by more than a rounding."""
    feeds = feeds_for(graph, batch)
    before = run(graph, feeds)
    assert run_passes(graph, [JoinAffine()])
    assert not run_passes(graph, [JoinAffine()])
    for name, after in run(graph, feeds).items():
        np.testing.assert_allclose(after, before[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("operators", "also"),
    [
        (("Mul", "Add"), None),
        (("Mul", "Add", "Relu", "Conv"), None),
        (("Mul", "Add", "Relu", "Conv"), 1),
        (("Conv", "Mul", "Add", "Abs"), None),
    ],
)
def test_it_is_one_batch_normalisation(operators: tuple[str, ...], also: int | None) -> None:
    graph = graph_of(*operators, also=also)
    assert_same(graph)
    joined = " ".join(operators).replace("Mul Add", "BatchNormalization")
    assert operators_of(graph) == joined.split()


def test_the_numbers_do_not_change_at_all() -> None:
    """A variance of one and no epsilon: the gain is not scaled by anything."""
    graph = graph_of("Mul", "Add")
    feeds = feeds_for(graph, 2)
    before = run(graph, feeds)["y"]
    run_passes(graph, [JoinAffine()])
    after = run(graph, feeds)["y"]
    assert np.abs(after - before).max() <= np.spacing(np.abs(before).max())


@pytest.mark.parametrize("lowering", [LowerGroupNorm(), ExactNorm()])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_lowered_norm_has_gain_and_bias_in_one_node(
    lowering: LowerGroupNorm | ExactNorm, batch: int
) -> None:
    """A norm that is written out multiplies by what it computes: there nothing can be joined."""
    graph = graph_of("Conv", "Relu", "GroupNormalization", "Relu", "Conv")
    run_passes(graph, [lowering])
    if isinstance(lowering, ExactNorm):
        assert not run_passes(graph, [JoinAffine()])
        return
    assert_same(graph, batch)
    assert not {"Mul", "Add"} & set(operators_of(graph))


@pytest.mark.parametrize(
    "graph",
    [
        graph_of("Add", "Mul"),
        graph_of("Mul", "Abs", "Add"),
        graph_of("Mul", "Add", also=0),
        graph_of("Mul", "Add", column=False),
    ],
    ids=["the other order", "not adjacent", "the product is an output", "one number for all"],
)
def test_what_is_no_gain_and_bias_is_left_alone(graph: ir.Graph) -> None:
    before = operators_of(graph)
    assert not run_passes(graph, [JoinAffine()])
    assert operators_of(graph) == before


def test_constants_that_nobody_needs_any_more_are_gone() -> None:
    graph = graph_of("Abs", "Mul", "Add", "Conv")
    run_passes(graph, [JoinAffine()])
    assert all(value.uses() for value in graph.initializers.values())


def test_half_keeps_it_in_fp32_where_the_norm_is() -> None:
    graph = graph_of("Conv", "GroupNormalization")
    run_passes(graph, [LowerGroupNorm(), JoinAffine(), Half()])
    (joined,) = [node for node in graph if node.op_type == "BatchNormalization"]
    assert {value.dtype for value in joined.inputs if value is not None} == {ir.DataType.FLOAT}


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JoinAffine, "call", lambda self, graph: False)
    with pytest.raises(ExportError, match="pass JoinAffine left the graph broken"):
        run_passes(graph_of("Mul", "Add"), [JoinAffine()])
