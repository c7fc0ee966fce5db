"""What several passes make or look for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

__all__ = ["cast", "constant", "holds_graph", "infer_types", "known"]


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


def infer_types(graph: ir.Graph) -> dict[ir.Value, ir.DataType | None]:
    """The element type of every value by the operators' schemas; None where one does not say.

    ONNX's own inference stops at the first GroupNormalization without a known shape, and files
    hold no types of inner values.
    """
    types = {value: value.dtype for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        types.update(dict.fromkeys(node.outputs, made_type(node, graph.opset_imports[""], types)))
    return types


def made_type(
    node: ir.Node, opset: int, types: Mapping[ir.Value, ir.DataType | None]
) -> ir.DataType | None:
    """What a node gives: always the same type, or that of one of its inputs."""
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to") or 0)
    schema = onnx.defs.get_schema(node.op_type, opset)
    output = schema.outputs[0]
    if len(output.types) == 1:
        (name,) = output.types
        return ir.DataType[name.removeprefix("tensor(").removesuffix(")").upper()]
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        if formal.type_str == output.type_str and value is not None:
            return types.get(value)
    return None
