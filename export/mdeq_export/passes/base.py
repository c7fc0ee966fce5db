"""What a pass is, and the runner that holds it to its word."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import onnx_ir as ir

from edge_mdeq.errors import ExportError

__all__ = ["GraphPass", "run_passes"]


class GraphPass(ABC):
    """A rewrite of one graph in place: ``requires -> call -> ensures``."""

    def requires(self, graph: ir.Graph) -> str | None:
        """What stands in the way of running on ``graph``, or None."""
        return None

    @abstractmethod
    def call(self, graph: ir.Graph) -> bool:
        """Rewrite ``graph``; whether anything changed."""

    def ensures(self, graph: ir.Graph) -> str | None:
        """What is wrong with the rewritten graph, or None."""
        return None


def run_passes(graph: ir.Graph, passes: Sequence[GraphPass]) -> bool:
    """Run ``passes`` in order; whether any of them changed the graph.

    Raises:
        ExportError: a pass's contract was broken; the pass and the culprit are named.
    """
    modified = False
    for graph_pass in passes:
        name = type(graph_pass).__name__
        if problem := graph_pass.requires(graph):
            raise ExportError(f"pass {name} cannot run: {problem}")
        modified |= graph_pass.call(graph)
        if problem := graph_pass.ensures(graph):
            raise ExportError(f"pass {name} left the graph broken: {problem}")
    return modified
