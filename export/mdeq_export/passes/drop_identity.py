"""Removes Identity nodes: values that a piece only passes through need no copy."""

from __future__ import annotations

import onnx_ir as ir

from mdeq_export.passes.base import GraphPass

__all__ = ["DropIdentity"]


class DropIdentity(GraphPass):
    """``y = Identity(x)`` becomes x, also where y is an output of the piece."""

    def call(self, graph: ir.Graph) -> bool:
        identities = [node for node in graph if node.op_type == "Identity"]
        for node in identities:
            source, value = node.inputs[0], node.outputs[0]
            assert source is not None
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = source
            ir.convenience.replace_all_uses_with(value, source)
            graph.remove(node, safe=True)
        return bool(identities)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [node.name for node in graph if node.op_type == "Identity"]
        return f"Identity nodes remain: {left}" if left else None
