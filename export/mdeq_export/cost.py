"""What graphs cost, counted from the graphs themselves; an open batch counts as one image."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx

from edge_mdeq.bundle import GraphCost, Profile

__all__ = ["conv_macs", "counted", "graph_cost", "live_bytes", "operators"]


def counted(profile: Profile, root: Path) -> Profile:
    """``profile`` with the costs of its graphs, which lie below ``root``.

    Those with operators whose shapes onnx cannot infer are left out.
    """
    costs = {name: graph_cost(root / name) for name in profile.graphs}
    return replace(profile, costs={name: cost for name, cost in costs.items() if cost is not None})


def graph_cost(path: Path) -> GraphCost | None:
    """Nodes, weights and values of a graph; None where the shape of a value is not known."""
    graph = inferred(path)
    sizes = value_bytes(graph)
    if any(name not in sizes for node in graph.node for name in node.output if name):
        return None
    weights = weight_bytes(graph)
    return GraphCost(
        nodes=len(graph.node),
        weights=sum(weights.values()),
        largest_weight=max(weights.values(), default=0),
        values=most_live(graph),
        packed=sum(weights[stored] for stored in integer_kernels(graph)),
    )


def weight_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of every weight, by name."""
    return {t.name: math.prod(t.dims) * bytes_of(t.data_type) for t in graph.initializer}


def integer_kernels(graph: onnx.GraphProto) -> list[str]:
    """The 8-bit kernel of every node that has one, as often as there are nodes with it."""
    stored = unscaled(graph)
    return [stored[name] for node in graph.node for name in node.input[1:2] if name in stored]


def unscaled(graph: onnx.GraphProto) -> dict[str, str]:
    """Integer weights by the name of what DequantizeLinear makes of them.

    No runtime ever does: it computes with the integers.
    """
    weights = {tensor.name for tensor in graph.initializer}
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }


def live_bytes(path: Path) -> int:
    """The most that a graph's values take at once beside the weights, inputs and outputs included.

    What a runtime needs for them if it frees each after its last use and computes nothing in place.
    """
    graph = inferred(path)
    sizes = value_bytes(graph)
    return most_live(graph) + sum(sizes[v.name] for v in (*graph.input, *graph.output))


def most_live(graph: onnx.GraphProto) -> int:
    """The same without inputs, outputs and weights in floating point, in the order of the nodes."""
    sizes, kept = value_bytes(graph), {value.name for value in (*graph.input, *graph.output)}
    kept |= unscaled(graph).keys()
    made = {name for node in graph.node for name in node.output} - kept
    last = {name: k for k, node in enumerate(graph.node) for name in (*node.input, *node.output)}
    ending = Counter[int]()
    for name in made:
        ending[last[name]] += sizes.get(name, 0)
    live = most = 0
    for k, node in enumerate(graph.node):
        live += sum(sizes.get(name, 0) for name in node.output if name in made)
        most = max(most, live)
        live -= ending[k]
    return most


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


def operators(path: Path) -> dict[str, int]:
    """How often each operator occurs, most frequent first."""
    graph = onnx.load(path, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def inferred(path: Path) -> onnx.GraphProto:
    """A graph with the shapes of its values.

    onnx does not infer through opset 21's GroupNormalization; a Relu, of the same shape, stands in.
    """
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            stand_in = onnx.helper.make_node("Relu", node.input[:1], node.output, node.name)
            node.CopyFrom(stand_in)
    return onnx.shape_inference.infer_shapes(model).graph


def types(graph: onnx.GraphProto) -> dict[str, tuple[list[int], int]]:
    """Shape and element type of every value whose shape is known, weights among them, by name."""
    tensors = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return {
        name: ([dim.dim_value or 1 for dim in tensor.shape.dim], tensor.elem_type)
        for name, tensor in tensors.items()
        if tensor.HasField("shape")
    }


def value_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    """Bytes of every value whose shape is known, by name."""
    return {name: math.prod(shape) * bytes_of(kind) for name, (shape, kind) in types(graph).items()}


def bytes_of(kind: int) -> int:
    """Of an element of a type of onnx's."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
