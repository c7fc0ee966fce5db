"""What graphs cost, counted from the graphs themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

__all__ = ["conv_macs", "operators"]


def conv_macs(path: Path) -> int:
    """Multiply-adds of the convolutions of a graph; an open batch counts as one image."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            batch, _, height, width = shapes[node.output[0]]
            c_out, c_in, kh, kw = weights[node.input[1]]
            total += batch * height * width * c_out * c_in * kh * kw
    return total


def operators(path: Path) -> dict[str, int]:
    """How often each operator occurs, most frequent first."""
    graph = onnx.load(path, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())
