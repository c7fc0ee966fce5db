"""Makes ONNX Runtime's CPU provider round where FP16 is written, for measuring what FP16 costs.

It has no convolution in FP16 there: it computes in FP32, and of the conversions that it puts around
an operator it removes those that only round. Such a graph looks better than it is on a GPU. A pair
of operators that does nothing, but which it has in FP16, stands in the way.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import constant, infer_types

__all__ = ["HoldRounding"]

AXIS = "hold_rounding"  # the name of a constant


class HoldRounding(GraphPass):
    """Behind every FP16 value an Unsqueeze and a Squeeze. For measurements, not for a bundle."""

    def call(self, graph: ir.Graph) -> bool:
        types = infer_types(graph)
        values = [
            value
            for node in graph
            for value in node.outputs
            if types[value] == ir.DataType.FLOAT16 and not held(value) and not holds(node)
        ]
        for value in values:
            axis = constant(graph, AXIS, np.zeros(1, np.int64))
            up = ir.node("Unsqueeze", [value, axis])
            down = ir.node("Squeeze", [up.outputs[0], axis])
            ir.convenience.replace_all_uses_with(value, down.outputs[0])
            up.replace_input_with(0, value)
            producer = value.producer()
            assert producer is not None
            graph.insert_after(producer, [up, down])
        return bool(values)


def holds(node: ir.Node) -> bool:
    """Whether this pass has made a node."""
    axis = node.inputs[1] if len(node.inputs) == 2 else None
    return axis is not None and axis.name == AXIS


def held(value: ir.Value) -> bool:
    """Whether a value is held already, or used by nobody."""
    return all(holds(use.node) for use in value.uses())
