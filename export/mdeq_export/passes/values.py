"""What several passes make or look for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["cast", "constant", "holds_graph"]


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer of ``graph``, made at its first use."""
    if name not in graph.initializers:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(value)
    return graph.initializers[name]


def cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    """A Cast of ``value``, in no graph yet; its output has type and shape."""
    node = ir.node("Cast", [value], {"to": to})
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(to)
    return node


def holds_graph(node: ir.Node) -> bool:
    """Whether a node holds a graph, as Loop, If and Scan do."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())
