"""Declares an older opset, for runtimes that do not know the one that pieces are traced at.

What an operator was in the older opset is looked up in ONNX's own schemas, not remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import holds_graph

__all__ = ["SetOpset"]

OLDEST = 17  # what SAME and REDUCTIONS were checked down to
# Operators that have changed between opsets 17 and 21 by further types, or by attributes whose
# default is what the operator did before; the schemas say which, and are asked for every node.
SAME = frozenset(
    {"Cast", "ConstantOfShape", "DequantizeLinear", "QuantizeLinear"}
    | {"Flatten", "Identity", "IsNaN", "Reshape", "Resize", "Shape"}
    | {"Split", "Squeeze", "Transpose", "Unsqueeze"}
)
REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"})
AXES = "axes"  # an attribute before opset 18, then the second input


@dataclass(frozen=True)
class SetOpset(GraphPass):
    """Rewrites a graph from its opset to the older ``target``, or refuses.

    Attributes:
        target: the opset to declare, 17 or later.
    """

    target: int

    def requires(self, graph: ir.Graph) -> str | None:
        present = opset_of(graph)
        if not OLDEST <= self.target <= present:
            return f"opset {present} cannot become {self.target}, only {OLDEST} to {present}"
        for node in graph:
            if problem := self.obstacle(node, present):
                return f"node {node.name!r} ({node.op_type}) {problem}"
        return None

    def obstacle(self, node: ir.Node, present: int) -> str | None:
        """Why a node cannot be had in the target opset, or None."""
        if holds_graph(node):
            return "holds a graph of its own"
        now, then = schema(node, present), schema(node, self.target)
        if now is None:
            return f"is unknown to opset {present}"
        if then is None:
            return f"does not exist in opset {self.target}"
        if now.since_version == then.since_version:
            return None
        if node.op_type not in SAME | REDUCTIONS:
            return f"was another operator in opset {self.target}, and how to rewrite it is unknown"
        for name in node.attributes:
            if name not in then.attributes and not at_default(node, name, now):
                return f"has the attribute {name!r}, which opset {self.target} lacks"
        if moves_axes(node, then):
            axes = node.inputs[1]
            if axes is None or axes.const_value is None or axes.const_value.size == 0:
                return f"has no constant axes, as opset {self.target} needs"
            return misfit(node.inputs[:1], then)
        return misfit(node.inputs, then)

    def call(self, graph: ir.Graph) -> bool:
        present = opset_of(graph)
        if present == self.target:
            return False
        for node in graph:
            then = schema(node, self.target)
            assert then is not None
            if moves_axes(node, then):
                axes_to_attribute(node)
            for name in [name for name in node.attributes if name not in then.attributes]:
                del node.attributes[name]
        graph.opset_imports[""] = self.target
        return True

    def ensures(self, graph: ir.Graph) -> str | None:
        if opset_of(graph) != self.target:
            return f"the opset is {opset_of(graph)}"
        for node in graph:
            then = schema(node, self.target)
            if then is None or set(node.attributes) - set(then.attributes):
                return f"node {node.name!r} is no {node.op_type} of opset {self.target}"
            if problem := misfit(node.inputs, then):
                return f"node {node.name!r} ({node.op_type}) {problem}"
        return None


def opset_of(graph: ir.Graph) -> int:
    """The version of ONNX's own operators that a graph declares."""
    return graph.opset_imports.get("", 0)


def schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """What ``node`` is in ``opset``, or None if there is no such operator."""
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None


def at_default(node: ir.Node, name: str, now: onnx.defs.OpSchema) -> bool:
    """Whether an attribute says nothing that its absence would not say."""
    default = now.attributes[name].default_value
    return bool(default.name) and node.attributes[name].value == ir.from_proto(default).value


def moves_axes(node: ir.Node, then: onnx.defs.OpSchema) -> bool:
    """Whether a node has axes as an input that are an attribute in an older opset."""
    return node.op_type in REDUCTIONS and AXES in then.attributes and len(node.inputs) > 1


def misfit(inputs: Sequence[ir.Value | None], then: onnx.defs.OpSchema) -> str | None:
    """What of a node's inputs an older schema does not take, or None."""
    if len(inputs) > then.max_input:
        return f"has {len(inputs)} inputs, but at most {then.max_input} were possible"
    for index, value in enumerate(inputs):
        formal = then.inputs[min(index, len(then.inputs) - 1)]  # the last one may be repeated
        if value is None or value.dtype is None:
            continue
        if f"tensor({value.dtype.name.lower()})" not in formal.types:
            return f"takes {value.dtype.name} as {formal.name!r}, which was not possible"
    return None


def axes_to_attribute(node: ir.Node) -> None:
    """The second input of a reduction becomes an attribute."""
    axes = node.inputs[1]
    assert axes is not None
    assert axes.const_value is not None
    node.attributes[AXES] = ir.AttrInt64s(AXES, [int(i) for i in axes.const_value.numpy()])
    node.resize_inputs(1)
