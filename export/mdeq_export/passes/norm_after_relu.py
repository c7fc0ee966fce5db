"""Writes out the GroupNormalizations behind a Relu, so that their statistics are summed exactly.

A Relu gives many zeros, all equally far from the mean. ONNX Runtime's InstanceNormalization adds
one square after the other, here the same number thousands of times, which rounds the same way each
time: the variance is off by 1e-5 of itself, and an evaluation of f seven times less exact than
torch's. Summed row by row first, nothing repeats for long.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.group_norm import obstacle
from mdeq_export.passes.values import cast, constant, known

__all__ = ["NormAfterRelu"]


class NormAfterRelu(GraphPass):
    """(B, C, H, W) -> (B, G, C/G*H, W); mean over rows, then over their means; the variance too.

    Other norms are left as they are: the kernel is faster, and exact enough for what has no zeros.
    Statistics are FP32, whatever the type of the input.
    """

    def requires(self, graph: ir.Graph) -> str | None:
        return next((problem for node in found(graph) if (problem := obstacle(node))), None)

    def call(self, graph: ir.Graph) -> bool:
        nodes = found(graph)
        for node in nodes:
            write_out(graph, node)
        return bool(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [node.name for node in found(graph)]
        return f"norms behind a Relu remain: {left}" if left else None


def found(graph: ir.Graph) -> list[ir.Node]:
    """The norms whose input is a Relu's output."""
    return [node for node in graph if node.op_type == "GroupNormalization" and behind_relu(node)]


def behind_relu(node: ir.Node) -> bool:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Relu"


def write_out(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one node."""
    x, gain, bias = node.inputs
    assert x is not None
    assert x.shape is not None
    assert gain is not None
    assert bias is not None
    _, channels, height, width = x.shape
    assert isinstance(channels, int)
    groups = node.attributes.get_int("num_groups")
    assert groups is not None
    weight, shift = known(gain), known(bias)
    assert weight is not None
    assert shift is not None
    half = x.dtype == ir.DataType.FLOAT16

    new: list[ir.Node] = []

    def append(operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        new.append(ir.node(operator, inputs, attributes))
        new[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return new[-1].outputs[0]

    def fixed(name: str, numbers: object, kind: type = np.int64) -> ir.Value:
        return constant(graph, name, np.asarray(numbers, kind))

    def mean(value: ir.Value) -> ir.Value:
        rows = append("ReduceMean", value, fixed("axis_3", [3]), keepdims=1)
        return append("ReduceMean", rows, fixed("axis_2", [2]), keepdims=1)

    if half:
        new.append(cast(x, ir.DataType.FLOAT))
        x = new[-1].outputs[0]
    rows = append("Reshape", x, fixed(f"rows_{groups}_{width}", [0, groups, -1, width]))
    centred = append("Sub", rows, mean(rows))
    variance = mean(append("Mul", centred, centred))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    variance = append("Add", variance, fixed(f"epsilon_{epsilon:g}", epsilon, np.float32))
    scale = append("Reciprocal", append("Sqrt", variance))
    # one factor a channel, so that the map is multiplied once
    by_group = weight.reshape(1, groups, channels // groups, 1)
    scale = append("Mul", scale, fixed(f"{gain.name}_by_group", by_group, np.float32))
    scale = append("Reshape", scale, fixed(f"channels_{channels}", [0, channels, 1, 1]))
    shape = fixed(f"shape_{channels}_{height}_{width}", [0, channels, height, width])
    result = append("Mul", append("Reshape", centred, shape), scale)
    if shift.any():
        column = fixed(f"{bias.name}_column", shift.reshape(-1, 1, 1), np.float32)
        result = append("Add", result, column)
    if half:
        new.append(cast(result, ir.DataType.FLOAT16))
        result = new[-1].outputs[0]
    result.shape = node.outputs[0].shape
    made = {id(v): v.producer() for v in (gain, bias)}
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, [result])
    for producer in made.values():  # a ConstantOfShape that nothing else needs
        if producer is not None and producer.graph is not None and not producer.outputs[0].uses():
            graph.remove(producer, safe=True)
