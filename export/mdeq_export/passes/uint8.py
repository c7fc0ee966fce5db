"""Class indices become uint8 by way of FP32.

TensorRT's documentation has conversions to uint8 from FP32 and FP16 only, and the parser of 8.5
refuses any other. 0 to 255 pass through FP32 unchanged.
"""

from __future__ import annotations

import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import cast

__all__ = ["FloatBeforeUint8"]

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class FloatBeforeUint8(GraphPass):
    """``Cast(integer, uint8)`` becomes ``Cast(Cast(integer, float), uint8)``."""

    def call(self, graph: ir.Graph) -> bool:
        nodes = direct(graph)
        for node in nodes:
            source = node.inputs[0]
            assert source is not None
            between = cast(source, ir.DataType.FLOAT)
            graph.insert_before(node, between)
            node.replace_input_with(0, between.outputs[0])
        return bool(nodes)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [node.name for node in direct(graph)]
        return f"integers are cast to uint8 directly: {left}" if left else None


def direct(graph: ir.Graph) -> list[ir.Node]:
    """Casts from an integer to uint8."""
    return [
        node
        for node in graph
        if node.op_type == "Cast"
        and node.outputs[0].dtype == ir.DataType.UINT8
        and node.inputs[0] is not None
        and node.inputs[0].dtype in INTEGERS
    ]
