"""Adds maps of several resolutions at the coarsest first, and enlarges each sum by one step.

A scale of an MDEQ is the sum of its own map and of all coarser ones, each enlarged to its size.
Nearest neighbours only repeat numbers, so that ``up4(a) + up2(b) = up2(up2(a) + b)``: of the maps
at full size all but one are neither written nor read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from mdeq_export.passes.base import GraphPass
from mdeq_export.passes.values import constant, known

__all__ = ["SumUpsampled"]

# How torch's nearest upsampling is exported: pixel i of the result is pixel i // factor.
NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


class SumUpsampled(GraphPass):
    """A tree of Adds over maps that are enlarged by whole factors becomes a chain of both.

    Terms are added in another order, which moves the sum by a rounding. Where no factor is a
    multiple of another, or something else uses an enlarged map too, nothing is changed.

    ImageNet-small at 224, one thread: without it an evaluation takes 1.008 times as long (quartiles
    0.994 and 1.023): ``python benchmarks/lean_graphs.py --threads 1``.
    """

    def call(self, graph: ir.Graph) -> bool:
        sums = find(graph)
        for found in sums:
            rewrite(graph, found)
        return bool(sums)

    def ensures(self, graph: ir.Graph) -> str | None:
        left = [found.root.name for found in find(graph)]
        return f"maps are enlarged by more than one step in the sums {left}" if left else None


@dataclass(frozen=True, eq=False)
class Sum:
    """A tree of Adds.

    Attributes:
        root: the Add that gives the sum.
        nodes: the Adds, the Resizes of ``enlarged``; all that the rewritten sum replaces.
        plain: what is added as it is, in order.
        enlarged: maps by the factor that they are enlarged by, largest first; each divides the one
            before.
    """

    root: ir.Node
    nodes: tuple[ir.Node, ...]
    plain: tuple[ir.Value, ...]
    enlarged: dict[int, list[ir.Value]]


def find(graph: ir.Graph) -> list[Sum]:
    """The sums over maps that are enlarged by at least two factors."""
    sums = []
    for node in graph:
        if node.op_type != "Add" or is_inner(node):
            continue
        adds, terms = tree(node)
        resizes: list[ir.Node] = []
        plain: list[ir.Value] = []
        enlarged: dict[int, list[ir.Value]] = {}
        for term in terms:
            factor = enlarged_by(term)
            if factor is None:
                plain.append(term)
                continue
            resize = term.producer()
            assert resize is not None
            source = resize.inputs[0]
            assert source is not None
            resizes.append(resize)
            enlarged.setdefault(factor, []).append(source)
        factors = sorted(enlarged, reverse=True)
        steps = pairwise(factors)
        if len(factors) > 1 and all(large % small == 0 for large, small in steps):
            ordered = {factor: enlarged[factor] for factor in factors}
            sums.append(Sum(node, (*adds, *resizes), tuple(plain), ordered))
    return sums


def is_inner(node: ir.Node) -> bool:
    """Whether an Add's result only goes into another Add: it belongs to that one's tree."""
    value = node.outputs[0]
    return (
        not value.is_graph_output()
        and len(value.uses()) == 1
        and all(use.node.op_type == "Add" for use in value.uses())
    )


def tree(node: ir.Node) -> tuple[list[ir.Node], list[ir.Value]]:
    """The Adds that make up a sum, its root first, and what they add, in order."""
    adds, terms = [node], []
    for value in node.inputs:
        assert value is not None
        producer = value.producer()
        if producer is not None and producer.op_type == "Add" and is_inner(producer):
            more, further = tree(producer)
            adds += more
            terms += further
        else:
            terms.append(value)
    return adds, terms


def enlarged_by(value: ir.Value) -> int | None:
    """The factor, in height and width, of a nearest upsampling that only makes ``value``."""
    node = value.producer()
    if node is None or node.op_type != "Resize" or len(value.uses()) != 1:
        return None
    if value.is_graph_output() or value.shape is None or len(node.inputs) != 3:
        return None
    attributes = node.attributes
    if any(attributes.get_string(name) != wanted for name, wanted in NEAREST.items()):
        return None
    scales = known(node.inputs[2])
    if scales is None or scales.shape != (4,) or (scales[:2] != 1).any():
        return None
    factor = int(scales[2])
    return factor if (scales[2:] == factor).all() and factor > 1 else None


def rewrite(graph: ir.Graph, found: Sum) -> None:
    """Replace one sum."""
    new: list[ir.Node] = []

    def append(node: ir.Node, shape: ir.Shape | None, like: ir.Value) -> ir.Value:
        new.append(node)
        node.outputs[0].shape, node.outputs[0].type = shape, like.type
        return node.outputs[0]

    def add(terms: list[ir.Value]) -> ir.Value:
        total, *rest = terms
        for term in rest:
            total = append(ir.node("Add", [total, term]), term.shape, term)
        return total

    factors = [*found.enlarged, 1]
    total: list[ir.Value] = []
    for factor, finer in pairwise(factors):
        coarse, step = add([*found.enlarged[factor], *total]), factor // finer
        scales = constant(graph, f"enlarge_{step}", np.array([1, 1, step, step], np.float32))
        resize = ir.node("Resize", [coarse, None, scales], NEAREST)
        assert coarse.shape is not None
        batch, channels, height, width = coarse.shape
        assert isinstance(height, int)
        assert isinstance(width, int)
        shape = ir.Shape([batch, channels, step * height, step * width])
        total = [append(resize, shape, coarse)]
    result = add([*found.plain, *total])
    old, outputs = list(found.nodes), found.root.outputs
    ir.convenience.replace_nodes_and_values(graph, found.root, old, new, outputs, [result])
