"""FP16 inside a piece: its matrix products and what follows them. Everything else stays FP32.

The convolutions are where the time and the weights are, and hardware sums their products in FP32.
What FP16 breaks in an iterated net, the statistics of norms above all, is not touched. An operator
between the two has the precision of its data, so that adding to a state in FP32 is an FP32 addition
and costs no Cast.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import cast, constant, holds_graph

__all__ = ["Half"]

FP32, FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
MATRIX = frozenset({"Conv", "Gemm", "MatMul"})
FOLLOWING = frozenset(  # in FP16 if all their data already is
    {"Add", "ArgMax", "Concat", "Mul", "Relu", "Reshape", "Resize", "Shape", "Slice", "Transpose"}
)
STATISTICS = frozenset({"GroupNormalization", "InstanceNormalization", "ReduceMean", "Softmax"})
FP32_INPUTS = {"Resize": (1, 2)}  # region and scales, which ONNX has in FP32 only
LARGEST = float(np.finfo(np.float16).max)
ROUNDING = 2.0**-11  # of FP16, relative


class Half(GraphPass):
    """Convolutions and matrix products compute in FP16, with weights in FP16.

    Inputs and outputs keep their names, types and order. Norms with gain and bias, softmax, means
    and every operator that is not listed here compute in FP32, behind a Cast where they get FP16.
    Norms may be lowered or not, before or after. A weight that FP16 cannot hold is refused.
    """

    def requires(self, graph: ir.Graph) -> str | None:
        for node in graph:
            if holds_graph(node):
                return f"node {node.name!r} ({node.op_type}) holds a graph of its own"
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.dtype is None:
                    return f"the type of {value.name!r} at node {node.name!r} is unknown"
        for value in weights(choose(graph)):
            if problem := loss(numbers(value)):
                return f"{value.name!r} {problem}"
        return None

    def call(self, graph: ir.Graph) -> bool:
        halves = choose(graph)
        changed = {v for node in halves for v in node.outputs if v.dtype == FP32}
        rounded = {v: rounded_constant(graph, v) for v in weights(halves)}
        casts = Casts(graph)
        for node in list(graph):
            for index, value in enumerate(node.inputs):
                if value is None:
                    continue
                if node in halves and index not in FP32_INPUTS.get(node.op_type, ()):
                    if value.dtype == FP32 and value not in changed:
                        new = rounded[value] if value in rounded else casts.of(value, FP16)
                        node.replace_input_with(index, new)
                elif value in changed:
                    node.replace_input_with(index, casts.of(value, FP32))
        for index, value in enumerate(graph.outputs):
            if value in changed:
                name, value.name = value.name, f"{value.name}_half"
                graph.outputs[index] = casts.of(value, FP32)
                graph.outputs[index].name = name
        for value in changed:
            value.type = ir.TensorType(FP16)
        for value in rounded:
            if not value.uses() and not value.is_graph_output() and value.name is not None:
                del graph.initializers[value.name]
        dropped = drop_lossless_pairs(graph)
        return bool(changed or rounded or casts.made or dropped)

    def ensures(self, graph: ir.Graph) -> str | None:
        for node in graph:
            types = [value.dtype for value in node.inputs if value is not None]
            if node.op_type in MATRIX and FP32 in types:
                return f"{node.op_type} {node.name!r} has an FP32 input"
            if node.op_type in STATISTICS and FP16 in types:
                return f"{node.op_type} {node.name!r} has an FP16 input"
        for value in (*graph.inputs, *graph.outputs):
            if value.dtype == FP16:
                return f"input or output {value.name!r} is FP16"
        return None


def choose(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that shall compute in FP16, or already do."""
    halves: set[ir.Node] = set()
    for node in graph:
        data = [v for v in node.inputs if v is not None and v.const_value is None]
        follows = node.op_type in FOLLOWING and data
        if node.op_type in MATRIX or (
            follows and all(v.dtype == FP16 or v.producer() in halves for v in data)
        ):
            halves.add(node)
    return halves


def weights(halves: set[ir.Node]) -> list[ir.Value]:
    """The FP32 constants that ``halves`` take in FP16."""
    found = {
        value: None
        for node in halves
        for index, value in enumerate(node.inputs)
        if value is not None
        and value.const_value is not None
        and value.dtype == FP32
        and index not in FP32_INPUTS.get(node.op_type, ())
    }
    return list(found)


def numbers(value: ir.Value) -> NDArray[np.float32]:
    """What a constant holds."""
    assert value.const_value is not None
    return value.const_value.numpy()


def loss(array: NDArray[np.float32]) -> str | None:
    """What FP16 would make of ``array`` beyond rounding it, or None.

    Numbers may vanish only beside others so large that their rounding errors are larger.
    """
    size = np.abs(array)
    largest = float(size.max(initial=0))
    if not np.isfinite(array).all():
        return "holds inf or NaN"
    if largest > LARGEST:
        return f"holds {largest:g}, but FP16 ends at {LARGEST:g}: export it in FP32"
    lost = size[(size > ROUNDING * largest) & (array.astype(np.float16) == 0)]
    if lost.size:
        return f"holds {lost.max():g}, which FP16 turns into zero: export it in FP32"
    return None


def rounded_constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """``value`` in FP16, beside the FP32 one."""
    return constant(graph, f"{value.name}_half", numbers(value).astype(np.float16))


class Casts:
    """Makes each Cast once, right behind what it casts."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """``value`` as ``to``."""
        if (value, to) not in self.made:
            node, producer = cast(value, to), value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
            self.made[value, to] = node.outputs[0]
        return self.made[value, to]


def drop_lossless_pairs(graph: ir.Graph) -> bool:
    """FP16 -> FP32 -> FP16 is what it was; FP32 -> FP16 -> FP32 is not, and stays."""
    dropped = False
    for node in list(graph):
        if node.op_type != "Cast" or node.outputs[0].dtype != FP16:
            continue
        source = node.inputs[0]
        wider = source.producer() if source is not None else None
        if wider is None or wider.op_type != "Cast" or source is None or source.dtype != FP32:
            continue
        origin = wider.inputs[0]
        if origin is None or origin.dtype != FP16 or node.outputs[0].is_graph_output():
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], origin)
        graph.remove(node, safe=True)
        if not source.uses() and not source.is_graph_output():
            graph.remove(wider, safe=True)
        dropped = True
    return dropped
