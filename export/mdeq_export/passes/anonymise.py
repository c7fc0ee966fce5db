"""Removes what tells of the machine and the source files that a graph was traced on."""

from __future__ import annotations

import onnx_ir as ir

from mdeq_export.passes.base import GraphPass

__all__ = ["Anonymise"]


class Anonymise(GraphPass):
    """Clears metadata and doc strings; torch writes absolute source paths into every node."""

    def call(self, graph: ir.Graph) -> bool:
        modified = False
        values = [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            values.extend(node.outputs)
        for item in (graph, *graph, *values):
            if item.metadata_props or item.doc_string:
                item.metadata_props.clear()
                item.doc_string = None
                modified = True
        return modified

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if node.metadata_props:
                return f"node {node.name!r} still has metadata"
        return None
