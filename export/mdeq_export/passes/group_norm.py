"""Lowers GroupNormalization to InstanceNormalization, scale and bias.

ONNX Runtime's CPU provider has a kernel for InstanceNormalization and decomposes
GroupNormalization into nine small operators; TensorRT before 10.9 does not parse the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import cast, constant, known

__all__ = ["LowerGroupNorm"]

TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
SINGLE = 1  # stash_type: the statistics are FP32, whatever the type of the input


class LowerGroupNorm(GraphPass):
    """(B, C, H, W) -> (B, G, C/G*H*W), normalise rows, back, times gain, plus bias.

    B may be symbolic: the reshapes copy it. As in ONNX's definition, an FP16 input is normalised in
    FP32 and scaled in FP16. A norm without gain and bias, whose ones and zeros torch's exporter has
    made by ConstantOfShape, is normalised only.
    """

    def requires(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_type == "GroupNormalization" and (problem := obstacle(node)):
                return problem
        return None

    def call(self, graph: ir.Graph) -> bool:
        nodes = [node for node in graph if node.op_type == "GroupNormalization"]
        for node in nodes:
            lower(graph, node)
        return bool(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [node.name for node in graph if node.op_type == "GroupNormalization"]
        return f"GroupNormalization remains: {left}" if left else None


def obstacle(node: ir.Node) -> str | None:
    """Why a norm cannot be lowered, or None."""
    x = node.inputs[0]
    shape = x.shape if x is not None else None
    if shape is None or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        return f"the input of {node.name!r} has no static shape but for its batch: {shape}"
    if x is None or x.dtype not in TYPES:
        return f"the input of {node.name!r} is of type {x.dtype if x else None}, not FP32 or FP16"
    if node.attributes.get_int("stash_type", SINGLE) != SINGLE:
        return f"the statistics of {node.name!r} are not to be FP32"
    if any(known(value) is None for value in node.inputs[1:]):
        return f"gain or bias of {node.name!r} is computed, not constant"
    return None


@dataclass(frozen=True)
class Norm:
    """A GroupNormalization that has no ``obstacle``.

    Attributes:
        x: its input (B, channels, height, width), FP16 if ``half`` else FP32.
        gain, bias: (channels,), known numbers.
        groups, epsilon: as ONNX defines them.
    """

    x: ir.Value
    gain: ir.Value
    bias: ir.Value
    shape: ir.Shape
    channels: int
    height: int
    width: int
    groups: int
    epsilon: float
    half: bool

    @staticmethod
    def of(node: ir.Node) -> Norm:
        """Read a node."""
        x, gain, bias = node.inputs
        assert x is not None
        assert x.shape is not None
        assert gain is not None
        assert bias is not None
        _, channels, height, width = x.shape
        assert isinstance(channels, int)
        assert isinstance(height, int)
        assert isinstance(width, int)
        groups = node.attributes.get_int("num_groups")
        assert groups is not None
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        half = x.dtype == ir.DataType.FLOAT16
        return Norm(x, gain, bias, x.shape, channels, height, width, groups, epsilon, half)

    def replace(self, graph: ir.Graph, node: ir.Node, new: list[ir.Node]) -> None:
        """Put ``new``, whose last output is the result, in the place of ``node``."""
        made = {id(n): n for n in (self.gain.producer(), self.bias.producer()) if n is not None}
        result = new[-1].outputs[0]
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, [result])
        for producer in made.values():  # a ConstantOfShape that nothing else needs
            if not producer.outputs[0].uses():
                graph.remove(producer, safe=True)


def map_shape(graph: ir.Graph, norm: Norm) -> ir.Value:
    """The constant that reshapes to (B, channels, height, width); 0 copies B."""
    sizes = (norm.channels, norm.height, norm.width)
    name = f"shape_{'_'.join(map(str, sizes))}"
    return constant(graph, name, np.array([0, *sizes], np.int64))


def lower(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one node."""
    norm = Norm.of(node)
    groups = norm.groups
    rows = constant(graph, f"rows_{groups}", np.array([0, groups, -1], np.int64))  # 0 copies B
    shape = map_shape(graph, norm)
    ones = constant(graph, f"ones_{groups}", np.ones(groups, np.float32))
    zeros = constant(graph, f"zeros_{groups}", np.zeros(groups, np.float32))
    size = norm.channels // groups * norm.height * norm.width
    flat_shape = ir.Shape([norm.shape[0], groups, size])

    new: list[ir.Node] = []

    def append(operator: str, inputs: list[ir.Value], shape: ir.Shape, **attributes: float) -> None:
        new.append(ir.node(operator, inputs, attributes))
        result = new[-1].outputs[0]
        result.shape, result.type = shape, inputs[0].type

    append("Reshape", [norm.x, rows], flat_shape)
    if norm.half:
        new.append(cast(new[-1].outputs[0], ir.DataType.FLOAT))
    flat = [new[-1].outputs[0], ones, zeros]
    append("InstanceNormalization", flat, flat_shape, epsilon=norm.epsilon)
    append("Reshape", [new[-1].outputs[0], shape], norm.shape)
    if norm.half:
        new.append(cast(new[-1].outputs[0], ir.DataType.FLOAT16))
    for operator, factor, neutral in (("Mul", norm.gain, 1.0), ("Add", norm.bias, 0.0)):
        array = known(factor)
        assert array is not None
        if (array == neutral).all():
            continue
        column = constant(graph, f"{factor.name}_chw", array.reshape(-1, 1, 1))
        append(operator, [new[-1].outputs[0], column], norm.shape)  # broadcasts over a map
    norm.replace(graph, node, new)
