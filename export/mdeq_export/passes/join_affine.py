"""Makes one node of the gain and the bias of a norm, which a lowered norm multiplies and adds.

A multiplication and an addition of a map each read and write all of it. BatchNormalization with a
mean of 0 and a variance of 1 does both in one pass. (So does a depthwise 1x1 convolution, which
ONNX Runtime would even keep in its convolutions' layout; but what makes FP16 or integers of
convolutions would take it for one.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import constant, known

__all__ = ["JoinAffine"]


class JoinAffine(GraphPass):
    """``Mul`` by a constant per channel, then ``Add`` of one, become one node.

    Maps (B, C, H, W) in FP32 only. The numbers stay, but for what a fused multiplication and
    addition rounds less.

    ImageNet-small at 224, one thread: without it an evaluation takes 1.031 times as long (quartiles
    1.012 and 1.049): ``python benchmarks/lean_graphs.py --threads 1``. ONNX Runtime's kernel is not
    parallel: on many cores there is less to gain.
    """

    def call(self, graph: ir.Graph) -> bool:
        found = find(graph)
        for affine in found:
            rewrite(graph, affine)
        return bool(found)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [affine.add.name for affine in find(graph)]
        return f"gains and biases are applied apart: {left}" if left else None


@dataclass(frozen=True, eq=False)
class Affine:
    """``x * gain + bias``, both (C, 1, 1) constants."""

    x: ir.Value
    gain: ir.Value
    bias: ir.Value
    mul: ir.Node
    add: ir.Node


def find(graph: ir.Graph) -> list[Affine]:
    """All that can be joined, in order."""
    found = []
    for add in graph:
        if add.op_type != "Add":
            continue
        scaled, bias = add.inputs
        mul = scaled.producer() if scaled is not None else None
        if mul is None or mul.op_type != "Mul" or scaled is None or len(scaled.uses()) != 1:
            continue
        x, gain = mul.inputs
        if x is None or gain is None or bias is None or scaled.is_graph_output():
            continue
        if x.dtype == ir.DataType.FLOAT and is_column(gain, x) and is_column(bias, x):
            found.append(Affine(x, gain, bias, mul, add))
    return found


def is_column(value: ir.Value, x: ir.Value) -> bool:
    """Whether ``value`` is a known number per channel of the map ``x``."""
    numbers, shape = known(value), x.shape
    return (
        numbers is not None
        and shape is not None
        and len(shape) == 4
        and numbers.shape == (shape[1], 1, 1)
    )


def rewrite(graph: ir.Graph, affine: Affine) -> None:
    """Replace one Mul and one Add."""
    gain, bias = known(affine.gain), known(affine.bias)
    assert gain is not None
    assert bias is not None
    channels = len(gain)
    vectors = [
        constant(graph, f"{affine.gain.name}_vector", gain.reshape(channels)),
        constant(graph, f"{affine.bias.name}_vector", bias.reshape(channels)),
        constant(graph, f"zeros_{channels}", np.zeros(channels, np.float32)),
        constant(graph, f"ones_{channels}", np.ones(channels, np.float32)),
    ]
    node = ir.node("BatchNormalization", [affine.x, *vectors], {"epsilon": 0.0})
    old = affine.add.outputs[0]
    node.outputs[0].shape, node.outputs[0].type = old.shape, old.type
    nodes = [affine.mul, affine.add]
    ir.convenience.replace_nodes_and_values(graph, affine.add, nodes, [node], [old], node.outputs)
    for value in (affine.gain, affine.bias):
        if not value.uses() and value.name is not None:
            del graph.initializers[value.name]
