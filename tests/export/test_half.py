"""What half precision touches, what it must not touch, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from lowering import interface_of, operators_of, proto_of, run
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edge_mdeq.errors import ExportError
from mdeq_export.passes import GraphPass, Half, HoldRounding, LowerGroupNorm, run_passes

SHAPE = (1, 8, 6, 10)
FP32, FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


def typed(node: ir.Node, dtype: ir.DataType = FP32, shape: Sequence[int] = SHAPE) -> ir.Value:
    """The output of a node, with type and shape."""
    value = node.outputs[0]
    value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return value


def constant(name: str, array: NDArray[np.float32]) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array, name=name))


def graph_of(inputs: list[ir.Value], outputs: list[ir.Value], nodes: list[ir.Node]) -> ir.Graph:
    used = {v: None for node in nodes for v in node.inputs if v is not None and v.const_value}
    for i, value in enumerate(outputs):
        value.name = f"y{i}"
    return ir.Graph(
        inputs, outputs, nodes=nodes, initializers=list(used), opset_imports={"": 21}, name="piece"
    )


def taken(name: str = "x", dtype: ir.DataType = FP32) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(SHAPE), type=ir.TensorType(dtype))


def conv(x: ir.Value, kernel: NDArray[np.float32] | None = None, name: str = "kernel") -> ir.Node:
    """A 1x1 convolution; the identity without a kernel."""
    if kernel is None:
        kernel = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    node = ir.node("Conv", [x, constant(name, kernel)], name="conv")
    typed(node)
    return node


def conv_and_norm() -> ir.Graph:
    """x -> convolution -> norm -> y."""
    first = conv(taken())
    gain, bias = constant("gain", np.full(8, 2, np.float32)), constant("bias", np.ones(8, "f"))
    inputs = [first.outputs[0], gain, bias]
    norm = ir.node("GroupNormalization", inputs, {"num_groups": 4}, name="norm")
    return graph_of([first.inputs[0]], [typed(norm)], [first, norm])  # type: ignore[list-item]


def conv_only(kernel: NDArray[np.float32]) -> ir.Graph:
    node = conv(x := taken(), kernel)
    return graph_of([x], [node.outputs[0]], [node])


def casts(graph: ir.Graph) -> list[tuple[ir.DataType | None, ir.DataType | None]]:
    """From and to, in order."""
    return [
        (node.inputs[0].dtype, node.outputs[0].dtype)
        for node in graph
        if node.op_type == "Cast" and node.inputs[0] is not None
    ]


def reference(graph: ir.Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX's own evaluator makes of it: each operator in the precision that is declared.

    ONNX Runtime's CPU provider computes FP16 operators in FP32, and would hide a mistake here.
    """
    (found,) = ReferenceEvaluator(proto_of(graph)).run(None, {"x": x})
    return np.asarray(found)


# The statistics of norms


@pytest.fixture
def large() -> NDArray[np.float32]:
    """Numbers that FP16 holds, but not their squares."""
    x = np.random.default_rng(0).normal(0, 400, SHAPE).astype(np.float32)
    assert np.abs(x).max() < np.finfo(np.float16).max < np.square(x).mean()
    return x


@pytest.mark.parametrize(
    "passes", [[Half()], [LowerGroupNorm(), Half()], [Half(), LowerGroupNorm()]]
)
def test_statistics_stay_fp32(passes: list[GraphPass], large: NDArray[np.float32]) -> None:
    graph = conv_and_norm()
    run_passes(graph, passes)
    rows = large.astype(np.float64).reshape(1, 4, -1)
    normal = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    expected = 2 * normal.reshape(SHAPE) + 1
    np.testing.assert_allclose(reference(graph, large), expected, atol=5e-3)
    np.testing.assert_allclose(run(graph, {"x": large})["y0"], expected, atol=5e-3)


def test_statistics_in_fp16_would_overflow(large: NDArray[np.float32]) -> None:
    """So the test above can fail."""
    graph = conv_and_norm()
    run_passes(graph, [LowerGroupNorm(), Half()])
    for node in list(graph):
        if node.op_type == "Cast" and node.outputs[0].dtype == FP32 and node.inputs[0]:
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            graph.remove(node)
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and value.dtype == FP32:
                half = value.const_value.numpy().astype(np.float16)
                name = f"{value.name}_fp16"
                if name not in graph.initializers:
                    graph.register_initializer(ir.val(name, const_value=ir.tensor(half, name=name)))
                node.replace_input_with(index, graph.initializers[name])
        for value in node.outputs:
            value.type = ir.TensorType(FP16)
    with np.errstate(over="ignore"):
        (found,) = ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10))).run(
            None, {"x": large}
        )
    assert np.ptp(found) < 0.1, "divided by an infinite variance"


# What runs in which precision


def test_the_interface_stays_and_the_inside_is_half() -> None:
    graph = conv_and_norm()
    before = interface_of(graph)
    assert run_passes(graph, [Half()])
    assert interface_of(graph) == before
    assert casts(graph) == [(FP32, FP16), (FP16, FP32)]
    assert not run_passes(graph, [Half()])


def test_what_follows_a_convolution_is_half_and_an_fp32_addend_is_not_rounded() -> None:
    u = taken("u")
    first = conv(x := taken())
    relu = ir.node("Relu", [first.outputs[0]])
    plus = ir.node("Add", [typed(relu), u])
    softmax = ir.node("Softmax", [first.outputs[0]], {"axis": 1})
    graph = graph_of([x, u], [typed(plus), typed(softmax)], [first, relu, plus, softmax])
    run_passes(graph, [Half()])
    types = {node.op_type: node.outputs[0].dtype for node in graph if node.op_type != "Cast"}
    assert types == {"Conv": FP16, "Relu": FP16, "Add": FP32, "Softmax": FP32}
    assert casts(graph) == [(FP32, FP16), (FP16, FP32), (FP16, FP32)]


def test_the_scales_of_a_resize_stay_fp32() -> None:
    first = conv(x := taken())
    scales = constant("scales", np.array([1, 1, 2, 2], np.float32))
    resize = ir.node("Resize", [first.outputs[0], None, scales], {"mode": "nearest"})
    graph = graph_of([x], [typed(resize, shape=(1, 8, 12, 20))], [first, resize])
    data = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    before = reference(graph, data)
    run_passes(graph, [Half()])
    assert [resize.inputs[0].dtype, resize.inputs[2].dtype] == [FP16, FP32]  # type: ignore[union-attr]
    np.testing.assert_array_equal(reference(graph, data), before.astype(np.float16))


def test_uint8_comes_in_and_class_indices_go_out_as_they_were() -> None:
    pixels = taken("pixels", ir.DataType.UINT8)
    floats = ir.node("Cast", [pixels], {"to": FP32})
    first = conv(typed(floats))
    classes = ir.node("ArgMax", [first.outputs[0]], {"axis": 1, "keepdims": 0})
    indices = typed(classes, ir.DataType.INT64, (1, 6, 10))
    narrow = ir.node("Cast", [indices], {"to": ir.DataType.UINT8})
    mask = typed(narrow, ir.DataType.UINT8, (1, 6, 10))
    graph = graph_of([pixels], [mask], [floats, first, classes, narrow])
    image = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    before = run(graph, {"pixels": image})["y0"]
    run_passes(graph, [Half()])
    assert casts(graph) == [
        (ir.DataType.UINT8, FP32), (FP32, FP16), (ir.DataType.INT64, ir.DataType.UINT8),
    ]  # fmt: skip
    np.testing.assert_array_equal(run(graph, {"pixels": image})["y0"], before)


def test_an_output_that_is_also_used_inside_is_cast_for_the_outside_only() -> None:
    first = conv(x := taken())
    second = conv(first.outputs[0], name="second")
    graph = graph_of([x], [first.outputs[0], second.outputs[0]], [first, second])
    before = interface_of(graph)
    run_passes(graph, [Half()])
    assert interface_of(graph) == before
    assert casts(graph) == [(FP32, FP16), (FP16, FP32), (FP16, FP32)]
    names = [value.name for node in graph for value in node.outputs]
    assert len(set(names)) == len(names)


def test_a_piece_without_matrix_products_is_left_alone() -> None:
    x = taken()
    root = ir.node("Sqrt", [x])
    graph = graph_of([x], [typed(root)], [root])
    assert not run_passes(graph, [Half()])
    assert operators_of(graph) == {"Sqrt"}


# Pairs of casts


def test_a_detour_through_fp32_is_dropped() -> None:
    node = conv(x := taken())
    nodes, value = [node], node.outputs[0]
    for dtype in (FP16, FP32, FP16, FP32):
        nodes.append(ir.node("Cast", [value], {"to": dtype}))
        value = typed(nodes[-1], dtype)
    root = ir.node("Sqrt", [value])
    graph = graph_of([x], [typed(root)], [*nodes, root])
    run_passes(graph, [Half()])
    assert casts(graph) == [(FP32, FP16), (FP16, FP32)]


def test_a_rounding_to_fp16_is_kept() -> None:
    root = ir.node("Sqrt", [x := taken()])
    rounded = ir.node("Cast", [typed(root)], {"to": FP16})
    back = ir.node("Cast", [typed(rounded, FP16)], {"to": FP32})
    node = conv(typed(back))
    graph = graph_of([x], [typed(node)], [root, rounded, back, node])
    run_passes(graph, [Half()])
    assert casts(graph)[0] == (FP32, FP16)
    run_passes(graph, [HoldRounding()])  # or ONNX Runtime drops them, on the CPU
    data = np.full(SHAPE, 2, np.float32)
    expected = np.float32(np.float16(np.sqrt(np.float32(2))))
    np.testing.assert_array_equal(run(graph, {"x": data})["y0"], expected)

    only = ir.node("Sqrt", [x := taken()])
    rounded = ir.node("Cast", [typed(only)], {"to": FP16})
    back = ir.node("Cast", [typed(rounded, FP16)], {"to": FP32})
    end = ir.node("Sqrt", [typed(back)])
    graph = graph_of([x], [typed(end)], [only, rounded, back, end])
    assert not run_passes(graph, [Half()])
    assert casts(graph) == [(FP32, FP16), (FP16, FP32)]


# Weights that FP16 cannot hold


def spoiled(value: float, elsewhere: float = 1.0) -> ir.Graph:
    """A convolution, with one weight of ``value`` among others."""
    kernel = np.full((8, 8, 1, 1), elsewhere, np.float32)
    kernel[3, 2] = value
    return conv_only(kernel)


@pytest.mark.parametrize(
    ("value", "elsewhere", "words"),
    [
        (7e4, 1.0, "7"),
        (-65520.0, 1.0, "FP16 ends at 65504: export it in FP32"),
        (float("inf"), 1.0, "holds inf or NaN"),
        (float("nan"), 1.0, "holds inf or NaN"),
        (1e-8, 0.0, "FP16 turns into zero: export it in FP32"),
        (-1e-8, 1e-8, "FP16 turns into zero"),
        (2e-8, 1e-5, "FP16 turns into zero"),
    ],
)
def test_a_weight_that_fp16_cannot_hold_is_refused_by_name(
    value: float, elsewhere: float, words: str
) -> None:
    graph = spoiled(value, elsewhere)
    with pytest.raises(ExportError, match=rf"pass Half cannot run: 'kernel' holds.*|{words}") as e:
        run_passes(graph, [Half()])
    assert words in str(e.value)
    assert "'kernel'" in str(e.value)
    assert operators_of(graph) == {"Conv"}
    assert list(graph.initializers) == ["kernel"]


@pytest.mark.parametrize(("value", "elsewhere"), [(65504, 1), (1e-8, 1), (0, 0), (6e-8, 1e-6)])
def test_weights_within_the_range_are_rounded(value: float, elsewhere: float) -> None:
    """Also those that vanish beside others whose rounding errors are larger than they are."""
    graph = spoiled(value, elsewhere)
    run_passes(graph, [Half()])
    kernel = next(node for node in graph if node.op_type == "Conv").inputs[1]
    assert kernel is not None
    assert kernel.const_value is not None
    original = np.full((8, 8, 1, 1), elsewhere, np.float32)
    original[3, 2] = value
    np.testing.assert_array_equal(kernel.const_value.numpy(), original.astype(np.float16))


def test_constants_that_stay_fp32_may_be_of_any_size() -> None:
    first = conv(x := taken())
    relu = ir.node("Sqrt", [first.outputs[0]])
    large = ir.node("Mul", [typed(relu), constant("large", np.array(1e20, np.float32))])
    graph = graph_of([x], [typed(large)], [first, relu, large])
    run_passes(graph, [Half()])
    data = np.full(SHAPE, 4, np.float32)
    np.testing.assert_allclose(run(graph, {"x": data})["y0"], np.float32(2e20))


# Broken contracts


def test_a_value_of_unknown_type_is_refused_by_name() -> None:
    first = conv(x := taken())
    relu = ir.node("Relu", [first.outputs[0]], name="relu")
    relu.outputs[0].name = "lost"
    end = ir.node("Relu", [relu.outputs[0]])
    graph = graph_of([x], [typed(end)], [first, relu, end])
    with pytest.raises(ExportError, match="type of 'lost' at node 'relu' is unknown"):
        run_passes(graph, [Half()])


def test_a_node_with_a_graph_of_its_own_is_refused() -> None:
    first = conv(x := taken())
    body = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    loop = ir.node("If", [x], {"then_branch": body}, name="branch")
    graph = graph_of([x], [first.outputs[0]], [first, loop])
    typed(loop)
    with pytest.raises(ExportError, match=r"node 'branch' \(If\) holds a graph"):
        run_passes(graph, [Half()])


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Half, "call", lambda self, graph: False)
    with pytest.raises(ExportError, match="left the graph broken: Conv 'conv' has an FP32 input"):
        run_passes(conv_and_norm(), [Half()])
