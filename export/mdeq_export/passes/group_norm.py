"""Lowers GroupNormalization to InstanceNormalization, scale and bias.

ONNX Runtime's CPU provider has a kernel for InstanceNormalization and decomposes
GroupNormalization into nine small operators; TensorRT before 10.9 does not parse the latter.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass

__all__ = ["LowerGroupNorm"]


class LowerGroupNorm(GraphPass):
    """(B, C, H, W) -> (B, G, C/G*H*W), normalise rows, back, times gain, plus bias.

    A norm without gain and bias, whose ones and zeros torch's exporter has made by ConstantOfShape,
    is normalised only.
    """

    def requires(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.op_type == "GroupNormalization":
                shape = node.inputs[0].shape if node.inputs[0] is not None else None
                if shape is None or not shape.is_static():
                    return f"the input of {node.name!r} has no static shape, but {shape}"
                if any(known(value) is None for value in node.inputs[1:]):
                    return f"gain or bias of {node.name!r} is computed, not constant"
        return None

    def call(self, graph: ir.Graph) -> bool:
        nodes = [node for node in graph if node.op_type == "GroupNormalization"]
        for node in nodes:
            lower(graph, node)
        return bool(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [node.name for node in graph if node.op_type == "GroupNormalization"]
        return f"GroupNormalization remains: {left}" if left else None


def lower(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one node."""
    x, gain, bias = node.inputs
    assert x is not None
    assert x.shape is not None
    assert gain is not None
    assert bias is not None
    batch, channels, height, width = x.shape.numpy()
    groups = node.attributes.get_int("num_groups")
    assert groups is not None
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    dtype = np.float32

    rows = constant(graph, f"rows_{groups}", np.array([batch, groups, -1], np.int64))
    shape = constant(
        graph, f"shape_{channels}_{height}_{width}", np.array(x.shape.numpy(), np.int64)
    )
    ones = constant(graph, f"ones_{groups}", np.ones(groups, dtype))
    zeros = constant(graph, f"zeros_{groups}", np.zeros(groups, dtype))
    flat = ir.node("Reshape", [x, rows])
    normal = ir.node("InstanceNormalization", [flat.outputs[0], ones, zeros], {"epsilon": epsilon})
    back = ir.node("Reshape", [normal.outputs[0], shape])
    new, result = [flat, normal, back], back.outputs[0]
    for operator, factor, neutral in (("Mul", gain, 1.0), ("Add", bias, 0.0)):
        array = known(factor)
        assert array is not None
        if (array == neutral).all():
            continue
        column = array.reshape(-1, 1, 1)  # broadcasts over a map
        new.append(ir.node(operator, [result, constant(graph, f"{factor.name}_chw", column)]))
        result = new[-1].outputs[0]
    result.shape, result.type = x.shape, x.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, [result])
    for made in {id(n): n for n in (gain.producer(), bias.producer()) if n is not None}.values():
        if not made.outputs[0].uses():
            graph.remove(made)


def known(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of an initializer, or of what ConstantOfShape makes; None for anything else."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "ConstantOfShape" or node.inputs[0] is None:
        return None
    shape, fill = node.inputs[0].const_value, node.attributes.get_tensor("value")
    if shape is None or fill is None:
        return None
    return np.full(shape.numpy(), fill.numpy().item(), fill.numpy().dtype)


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of ``graph``, made at its first use."""
    if name not in graph.initializers:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
    return graph.initializers[name]
