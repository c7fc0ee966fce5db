"""What a finished graph may hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edge_mdeq.errors import ExportError
from mdeq_export.operators import check_operators
from mdeq_export.profiles import PROFILES

PROFILE = PROFILES["tensorrt-10"]
SHAPE = ("batch", 4, 6)
FP32, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class Maker:
    """A graph, node by node. No inner value has a type, as in a written file."""

    def __init__(self) -> None:
        self.x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(FP32))
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def node(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(ir.node(operator, inputs, attributes, name=name))
        self.nodes[-1].outputs[0].name = f"{name}_out"
        return self.nodes[-1].outputs[0]

    def constant(self, numbers: Any, dtype: Any = np.int64) -> ir.Value:
        name = f"c{len(self.constants)}"
        array = np.array(numbers, dtype)
        self.constants.append(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self.constants[-1]

    def graph(self, output: ir.Value, dtype: ir.DataType = FP32) -> ir.Graph:
        output.type = ir.TensorType(dtype)
        return ir.Graph(
            [self.x],
            [output],
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": 20},
            name="made",
        )


def allowed() -> ir.Graph:
    """A symbolic batch in a shape, constant shapes and axes, class indices to uint8."""
    m = Maker()
    batch = m.node("Shape", m.x, start=0, end=1)
    shape = m.node("Concat", batch, m.constant([4, 2, 3]), axis=0)
    maps = m.node("Reshape", m.x, shape)
    size = m.node("Concat", batch, m.constant([4, 4, 6]), axis=0)
    large = m.node("Resize", maps, None, None, size, mode="nearest")
    classes = m.node("ArgMax", large, axis=1, keepdims=0)
    floats = m.node("Cast", classes, to=FP32)
    return m.graph(m.node("Cast", floats, to=ir.DataType.UINT8), ir.DataType.UINT8)


def test_shapes_constants_and_class_indices_are_allowed(tmp_path: Path) -> None:
    graph = allowed()
    check_operators(graph, PROFILE)
    model = ir.Model(graph, ir_version=10)
    check_operators(model, PROFILE)
    ir.save(model, tmp_path / "made.onnx")
    check_operators(tmp_path / "made.onnx", PROFILE)
    assert all(value.dtype is None for n in list(graph)[:-1] for value in n.outputs), "unchanged"


def test_class_indices_may_go_to_uint8_at_once() -> None:
    m = Maker()
    classes = m.node("ArgMax", m.x, axis=1)
    mask = m.graph(m.node("Cast", classes, to=ir.DataType.UINT8), ir.DataType.UINT8)
    check_operators(mask, PROFILES["ort-cpu"])


def test_all_operators_outside_the_list_are_named(tmp_path: Path) -> None:
    m = Maker()
    graph = m.graph(m.node("Erf", m.node("Gelu", m.x)))
    words = r"holds what 'tensorrt-10' does not allow: Gelu \(gelu0\), Erf \(erf1\)"
    with pytest.raises(ExportError, match=rf"the graph {words}"):
        check_operators(graph, PROFILE)
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "solve-k4.onnx")
    with pytest.raises(ExportError, match=rf"solve-k4.onnx {words}"):
        check_operators(tmp_path / "solve-k4.onnx", PROFILE)


def test_a_profile_allows_one_kind_of_norm() -> None:
    m = Maker()
    vector = m.constant(np.ones(4), np.float32)
    graph = m.graph(m.node("InstanceNormalization", m.x, vector, vector))
    check_operators(graph, PROFILE)
    with pytest.raises(ExportError, match=r"'tensorrt-rtx' does not allow: InstanceNorm"):
        check_operators(graph, PROFILES["tensorrt-rtx"])


def test_operators_of_other_domains_are_outside_the_list() -> None:
    m = Maker()
    m.nodes.append(ir.node("Conv", [m.x], domain="com.microsoft", name="fused"))
    graph = m.graph(m.nodes[-1].outputs[0])
    graph.opset_imports["com.microsoft"] = 1
    with pytest.raises(ExportError, match=r"com.microsoft.Conv \(fused\)"):
        check_operators(graph, PROFILE)


@pytest.mark.parametrize(
    ("operator", "attribute"), [("Loop", "body"), ("If", "then_branch"), ("Scan", "body")]
)
def test_graphs_within_the_graph_are_refused(operator: str, attribute: str) -> None:
    m = Maker()
    body = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    graph = m.graph(m.node(operator, m.x, **{attribute: body}))
    with pytest.raises(ExportError, match=rf"holds graphs within it: {operator}"):
        check_operators(graph, PROFILE)


def test_many_offenders_are_counted() -> None:
    m = Maker()
    value = m.x
    for _ in range(11):
        value = m.node("Erf", value)
    with pytest.raises(ExportError, match=r"Erf \(erf7\) and 3 more"):
        check_operators(m.graph(value), PROFILE)


def arithmetic(operator: str, computed: bool) -> ir.Graph:
    """Integers from a shape, or constants alone, through an operator and into a Reshape."""
    m = Maker()
    first = m.node("Shape", m.x) if computed else m.constant([1, 2, 12])
    changed = m.node(operator, first, m.constant([1, 1, 1]))
    return m.graph(m.node("Reshape", m.x, changed))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Min"])
@pytest.mark.parametrize("computed", [False, True])
def test_integer_arithmetic_is_refused(operator: str, computed: bool) -> None:
    with pytest.raises(ExportError, match=rf"computes with integers: {operator} "):
        check_operators(arithmetic(operator, computed), PROFILE)


def comparison(m: Maker) -> ir.Value:
    small = m.node("Less", m.node("ArgMax", m.x, axis=1), m.constant(2))
    return m.node("Where", small, m.constant(1.0, np.float32), m.constant(0.0, np.float32))


def selection(m: Maker) -> ir.Value:
    other = m.node("Less", m.x, m.constant(0.0, np.float32))
    return m.node("Cast", m.node("Where", other, m.constant(1), m.constant(2)), to=FP32)


def from_float(m: Maker) -> ir.Value:
    return m.node("Cast", m.node("Cast", m.x, to=ir.DataType.INT32), to=FP32)


def from_shape(m: Maker) -> ir.Value:
    return m.node("Cast", m.node("Shape", m.x), to=FP32)


def arithmetic_on_classes(m: Maker) -> ir.Value:
    return m.node("Cast", m.node("Neg", m.node("ArgMax", m.x, axis=1)), to=FP32)


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (comparison, "Less"),
        (selection, "Where"),
        (from_float, "Cast"),
        (from_shape, "Cast"),
        (arithmetic_on_classes, "Neg"),
    ],
)
def test_integers_on_the_path_of_data_are_refused(make: Any, culprit: str) -> None:
    m = Maker()
    with pytest.raises(ExportError, match=rf"computes with integers: {culprit}"):
        check_operators(m.graph(make(m)), PROFILE)


def test_a_gather_needs_constant_indices_and_data_that_are_no_integers() -> None:
    wider = replace(PROFILE, operators=PROFILE.operators | {"Gather", "Slice"})
    m = Maker()
    picked = m.node("Gather", m.x, m.constant([0, 1]), axis=1)
    ends = (m.constant([0]), m.constant([1]), m.constant([1]))
    check_operators(m.graph(m.node("Slice", picked, *ends)), wider)

    m = Maker()
    best = m.node("ArgMax", m.x, axis=1, keepdims=0)
    with pytest.raises(ExportError, match=r"computes with integers: Gather"):
        check_operators(m.graph(m.node("Gather", m.x, best, axis=1)), wider)

    m = Maker()
    height = m.node("Gather", m.node("Shape", m.x), m.constant([1]))
    with pytest.raises(ExportError, match=r"computes with integers: Gather"):
        check_operators(m.graph(m.node("Expand", m.x, height)), wider)


def test_a_graph_whose_types_cannot_be_inferred_is_refused() -> None:
    m = Maker()
    unknown = ir.Value(name="ghost")
    graph = m.graph(m.node("Relu", m.node("Relu", unknown)))
    with pytest.raises(ExportError, match=r"Relu \(relu0\) gives cannot be inferred"):
        check_operators(graph, PROFILE)
