"""Writes out the GroupNormalizations that ONNX Runtime's kernel does not compute exactly.

Its InstanceNormalization adds one square after the other. A Relu gives many zeros, all equally far
from the mean: the same number thousands of times, which rounds the same way each time, and the
variance is off by 1e-5 of itself. So it is where there are very many numbers of any kind: in a
model of Cityscapes' size a group has a million, and an evaluation of f is 60 times less exact than
torch's. Summed row by row first, nothing is added for long.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.group_norm import Norm, map_shape, obstacle
from mdeq_export.passes.values import cast, constant, known

__all__ = ["ExactNorm"]

LARGE = 2**16  # numbers in a group; the kernel's error there is that of ten evaluations' rounding


class ExactNorm(GraphPass):
    """(B, C, H, W) -> (B, G, C/G*H, W); mean over rows, then over their means; the variance too.

    Other norms are left as they are: the kernel is faster, and exact enough for them.
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
        return f"norms behind a Relu or of large groups remain: {left}" if left else None


def found(graph: ir.Graph) -> list[ir.Node]:
    """The norms whose input is a Relu's output, or whose groups are large."""
    return [
        node
        for node in graph
        if node.op_type == "GroupNormalization" and (behind_relu(node) or is_large(node))
    ]


def behind_relu(node: ir.Node) -> bool:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Relu"


def is_large(node: ir.Node) -> bool:
    """Whether a group has many numbers; of one that cannot be read nobody knows."""
    if obstacle(node):
        return False
    norm = Norm.of(node)
    return norm.channels // norm.groups * norm.height * norm.width >= LARGE


def write_out(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one node."""
    norm = Norm.of(node)
    groups, channels = norm.groups, norm.channels
    weight, shift = known(norm.gain), known(norm.bias)
    assert weight is not None
    assert shift is not None

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

    x = norm.x
    if norm.half:
        new.append(cast(x, ir.DataType.FLOAT))
        x = new[-1].outputs[0]
    rows = append("Reshape", x, fixed(f"rows_{groups}_{norm.width}", [0, groups, -1, norm.width]))
    centred = append("Sub", rows, mean(rows))
    variance = mean(append("Mul", centred, centred))
    epsilon = fixed(f"epsilon_{norm.epsilon:g}", norm.epsilon, np.float32)
    scale = append("Reciprocal", append("Sqrt", append("Add", variance, epsilon)))
    # one factor a channel, so that the map is multiplied once
    by_group = weight.reshape(1, groups, channels // groups, 1)
    scale = append("Mul", scale, fixed(f"{norm.gain.name}_by_group", by_group, np.float32))
    scale = append("Reshape", scale, fixed(f"channels_{channels}", [0, channels, 1, 1]))
    result = append("Mul", append("Reshape", centred, map_shape(graph, norm)), scale)
    if shift.any():
        column = fixed(f"{norm.bias.name}_column", shift.reshape(-1, 1, 1), np.float32)
        result = append("Add", result, column)
    if norm.half:
        new.append(cast(result, ir.DataType.FLOAT16))
    new[-1].outputs[0].shape = norm.shape
    norm.replace(graph, node, new)
