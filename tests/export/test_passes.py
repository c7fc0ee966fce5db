"""Each pass: whether it says truly that it changed something, and whether the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edge_mdeq.errors import ExportError
from mdeq_export.passes import Anonymise, DropIdentity, GraphPass, LowerGroupNorm, run_passes
from mdeq_export.pieces import OPSET

SHAPE = (2, 8, 6, 10)
GROUPS = 4


def value(name: str, shape: tuple[int | str, ...] = SHAPE) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def constant(name: str, array: NDArray[np.float32]) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def make_graph(shape: tuple[int | str, ...] = SHAPE, epsilon: float | None = None) -> ir.Graph:
    """x -> Identity -> GroupNormalization -> Relu -> Identity -> y, with traces of its maker."""
    rng = np.random.default_rng(0)
    gain = constant("gain", rng.uniform(0.5, 1.5, 8).astype(np.float32))
    bias = constant("bias", rng.uniform(-1, 1, 8).astype(np.float32))
    x = value("x", shape)
    first = ir.node("Identity", [x], name="first")
    first.outputs[0].shape, first.outputs[0].type = x.shape, x.type
    attributes: dict[str, int | float] = {"num_groups": GROUPS}
    if epsilon is not None:
        attributes["epsilon"] = epsilon
    norm = ir.node("GroupNormalization", [first.outputs[0], gain, bias], attributes, name="norm")
    norm.outputs[0].shape, norm.outputs[0].type = x.shape, x.type
    relu = ir.node("Relu", [norm.outputs[0]], name="relu")
    last = ir.node("Identity", [relu.outputs[0]], name="last")
    y = last.outputs[0]
    y.name, y.shape, y.type = "y", x.shape, x.type
    relu.outputs[0].shape, relu.outputs[0].type = x.shape, x.type
    norm.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/someone/model.py"
    x.metadata_props["made"] = "by someone"
    gain.doc_string = "on this machine"
    graph = ir.Graph(
        [x],
        [y],
        nodes=[first, norm, relu, last],
        initializers=[gain, bias],
        opset_imports={"": OPSET},
        name="dirty",
        doc_string="from /home/someone",
    )
    graph.metadata_props["path"] = "/home/someone"
    return graph


def evaluate(graph: ir.Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes, without rewriting the graph itself."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = ir.to_proto(ir.Model(graph.clone(), ir_version=10))
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(found)


def reference(x: NDArray[np.float32], graph: ir.Graph, epsilon: float) -> NDArray[np.float64]:
    """Group norm and ReLU by their definition, in float64."""
    gain, bias = (graph.initializers[name].const_value for name in ("gain", "bias"))
    assert gain is not None
    assert bias is not None
    rows = x.astype(np.float64).reshape(x.shape[0], GROUPS, -1)
    centred = rows - rows.mean(axis=2, keepdims=True)
    normal = centred / np.sqrt(rows.var(axis=2, keepdims=True) + epsilon)
    scaled = normal.reshape(x.shape) * gain.numpy()[:, None, None] + bias.numpy()[:, None, None]
    return np.asarray(np.maximum(scaled, 0))


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(3, 2, SHAPE).astype(np.float32)


@pytest.mark.parametrize("graph_pass", [Anonymise(), DropIdentity(), LowerGroupNorm()])
def test_a_pass_says_whether_it_changed_anything_and_keeps_the_numbers(
    graph_pass: GraphPass, x: NDArray[np.float32]
) -> None:
    graph = make_graph()
    before = evaluate(graph, x)
    assert run_passes(graph, [graph_pass]) is True
    assert run_passes(graph, [graph_pass]) is False
    np.testing.assert_allclose(evaluate(graph, x), before, atol=1e-6)


def test_anonymise_leaves_no_trace_in_the_serialised_graph() -> None:
    graph = make_graph()
    assert b"someone" in ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    Anonymise().call(graph)
    raw = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    for trace in (b"someone", b"/home", b"this machine"):
        assert trace not in raw


def test_drop_identity_keeps_what_the_graph_takes_and_gives() -> None:
    graph = make_graph()
    DropIdentity().call(graph)
    assert [node.op_type for node in graph] == ["GroupNormalization", "Relu"]
    assert graph.inputs[0].name == "x"
    assert graph.outputs[0].producer() is list(graph)[-1]


def test_drop_identity_passes_an_input_through_to_an_output() -> None:
    x = value("x")
    node = ir.node("Identity", [x])
    graph = ir.Graph([x], list(node.outputs), nodes=[node], opset_imports={"": OPSET})
    assert DropIdentity().call(graph)
    assert graph.outputs[0] is x


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_a_lowered_group_norm_is_group_norm(epsilon: float | None, x: NDArray[np.float32]) -> None:
    """With its own epsilon, and with the default of ONNX when it names none."""
    graph = make_graph(epsilon=epsilon)
    LowerGroupNorm().call(graph)
    operators = {node.op_type for node in graph}
    assert "GroupNormalization" not in operators
    assert "InstanceNormalization" in operators
    expected = reference(x, graph, 1e-5 if epsilon is None else epsilon)
    np.testing.assert_allclose(evaluate(graph, x), expected, atol=1e-5)


def test_group_norms_of_different_shapes_in_one_graph_do_not_share_constants(
    x: NDArray[np.float32],
) -> None:
    rng = np.random.default_rng(2)
    graph_input, current = value("x"), None
    nodes, initializers = [], []
    for index, groups in enumerate((2, 8)):
        gain = constant(f"gain{index}", rng.uniform(0.5, 1.5, 8).astype(np.float32))
        bias = constant(f"bias{index}", rng.uniform(-1, 1, 8).astype(np.float32))
        node = ir.node(
            "GroupNormalization", [current or graph_input, gain, bias], {"num_groups": groups}
        )
        current = node.outputs[0]
        current.name, current.shape, current.type = f"y{index}", ir.Shape(SHAPE), graph_input.type
        nodes.append(node)
        initializers += [gain, bias]
    assert current is not None
    graph = ir.Graph(
        [graph_input], [current], nodes=nodes, initializers=initializers, opset_imports={"": OPSET}
    )
    before = evaluate(graph, x)
    LowerGroupNorm().call(graph)
    np.testing.assert_allclose(evaluate(graph, x), before, atol=1e-5)


def without_gain_and_bias() -> ir.Graph:
    """As torch exports two norms without them: ones and zeros are made, and shared."""
    x = value("x")
    shape = ir.val("shape", const_value=ir.tensor(np.array([8], np.int64), name="shape"))
    made = [
        ir.node("ConstantOfShape", [shape], {"value": ir.tensor(np.array([n], np.float32))})
        for n in (1, 0)
    ]
    gain, bias = (node.outputs[0] for node in made)
    norms, current = [], x
    for name in ("first", "second"):
        inputs = [current, gain, bias]
        norms.append(ir.node("GroupNormalization", inputs, {"num_groups": GROUPS}, name=name))
        current = norms[-1].outputs[0]
        current.name, current.shape, current.type = f"{name}_out", x.shape, x.type
    return ir.Graph(
        [x], [current], nodes=[*made, *norms], initializers=[shape], opset_imports={"": OPSET}
    )


def test_a_group_norm_without_gain_and_bias_is_normalised_only(x: NDArray[np.float32]) -> None:
    graph = without_gain_and_bias()
    before = evaluate(graph, x)
    assert run_passes(graph, [LowerGroupNorm()])
    assert [node.op_type for node in graph] == ["Reshape", "InstanceNormalization", "Reshape"] * 2
    np.testing.assert_allclose(evaluate(graph, x), before, atol=1e-5)


def test_a_group_norm_whose_gain_is_computed_is_refused_by_name() -> None:
    graph = without_gain_and_bias()
    norm = next(node for node in graph if node.name == "second")
    gain = norm.inputs[1]
    assert gain is not None
    norm.replace_input_with(1, ir.node("Exp", [gain], graph=graph).outputs[0])
    with pytest.raises(ExportError, match=r"gain or bias of 'second' is computed"):
        run_passes(graph, [LowerGroupNorm()])


def test_a_group_norm_without_a_static_shape_is_refused_by_name() -> None:
    graph = make_graph(shape=("batch", 8, "height", 10))
    with pytest.raises(ExportError, match=r"LowerGroupNorm cannot run: .*'norm'"):
        run_passes(graph, [LowerGroupNorm()])
    assert any(node.op_type == "GroupNormalization" for node in graph)


@pytest.mark.parametrize("kind", [Anonymise, DropIdentity, LowerGroupNorm])
def test_a_pass_that_does_nothing_is_caught_by_what_it_ensures(
    kind: type[GraphPass], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "call", lambda self, graph: False)
    with pytest.raises(ExportError, match=f"pass {kind.__name__} left the graph broken"):
        run_passes(make_graph(), [kind()])


def test_passes_run_in_order_and_report_any_change() -> None:
    seen: list[str] = []

    class Note(GraphPass):
        def __init__(self, name: str, changes: bool) -> None:
            self.name, self.changes = name, changes

        def call(self, graph: ir.Graph) -> bool:
            seen.append(self.name)
            return self.changes

    assert run_passes(make_graph(), [Note("a", True), Note("b", False)])
    assert not run_passes(make_graph(), [Note("c", False)])
    assert seen == ["a", "b", "c"]
