"""Turns constants that a graph computes into initializers."""

from __future__ import annotations

import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import constant, known

__all__ = ["KnownConstants"]


class KnownConstants(GraphPass):
    """What ConstantOfShape makes of a known shape becomes an initializer.

    torch's exporter writes the ones and zeros of a norm without gain and bias that way.
    """

    def call(self, graph: ir.Graph) -> bool:
        modified = False
        for node in [node for node in graph if node.op_type == "ConstantOfShape"]:
            made = node.outputs[0]
            array = known(made)
            if array is None:
                continue
            fill = array.reshape(-1)[0].item() if array.size else 0
            shape = "x".join(map(str, array.shape))
            name = f"full_{fill:g}_{array.dtype.name}_{shape}"
            ir.convenience.replace_all_uses_with(made, constant(graph, name, array))
            graph.remove(node, safe=True)
            modified = True
        return modified

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [
            n.name
            for n in graph
            if n.op_type == "ConstantOfShape" and known(n.outputs[0]) is not None
        ]
        return f"constants are still computed: {left}" if left else None
