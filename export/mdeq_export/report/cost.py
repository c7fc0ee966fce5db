"""What graphs cost, counted from the graphs themselves; an open batch counts as one image."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx

__all__ = ["conv_macs", "live_bytes", "operators"]


def conv_macs(path: Path) -> int:
    """Multiply-adds of the convolutions of a graph."""
    graph = inferred(path)
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    shapes = {name: shape for name, (shape, _) in types(graph).items()}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            batch, _, height, width = shapes[node.output[0]]
            c_out, c_in, kh, kw = weights[node.input[1]]
            total += batch * height * width * c_out * c_in * kh * kw
    return total


def live_bytes(path: Path) -> int:
    """The most that a graph's values take at once beside the weights, in the order of its nodes.

    What a runtime needs for them if it frees each after its last use and computes nothing in place;
    outputs stay to the end, inputs (the image and the state) are there from the start.
    """
    graph = inferred(path)
    sizes = {
        name: math.prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
        for name, (shape, kind) in types(graph).items()
    }
    kept = {value.name for value in (*graph.input, *graph.output)}
    last = {name: k for k, node in enumerate(graph.node) for name in (*node.input, *node.output)}
    ending: dict[int, list[str]] = {}
    for name, k in last.items():
        if name not in kept:
            ending.setdefault(k, []).append(name)
    live = most = sum(sizes[value.name] for value in graph.input)
    for k, node in enumerate(graph.node):
        live += sum(sizes.get(name, 0) for name in node.output)
        most = max(most, live)
        live -= sum(sizes.get(name, 0) for name in ending.get(k, []))
    return most


def inferred(path: Path) -> onnx.GraphProto:
    """A graph with the shapes of its values."""
    model = onnx.load(path, load_external_data=False)
    return onnx.shape_inference.infer_shapes(model).graph


def types(graph: onnx.GraphProto) -> dict[str, tuple[list[int], int]]:
    """Shape and element type of every value but the weights, by name."""
    tensors = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return {
        name: ([dim.dim_value or 1 for dim in tensor.shape.dim], tensor.elem_type)
        for name, tensor in tensors.items()
    }


def operators(path: Path) -> dict[str, int]:
    """How often each operator occurs, most frequent first."""
    graph = onnx.load(path, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())
