"""What a finished graph holds: the operators of its profile, and integers as shapes only."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edge_mdeq.errors import ExportError
from mdeq_export.passes.values import holds_graph, infer_types
from mdeq_export.profiles import TargetProfile

__all__ = ["check_operators"]

INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
SHAPES = {  # inputs that are a shape, sizes, axes or indices by definition, or a bias in int8
    "DequantizeLinear": (0,),
    "Expand": (1,),
    "Gather": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}
MAKERS = frozenset({"ArgMax", "Shape"})
JOINS = frozenset({"Concat"})  # puts a shape together from a symbolic batch and constants


def check_operators(graph: ir.Graph | ir.Model | Path, profile: TargetProfile) -> None:
    """Check that a graph holds nothing that ``profile`` does not allow.

    Three rules: operators of the profile's list only; no graphs within the graph (Loop, If, Scan),
    whose count TensorRT gets wrong and whose bodies it keeps in high precision; and no arithmetic
    on int64 or int32, which TensorRT narrows or refuses. Integers may be constants, shapes, a bias
    on its way through DequantizeLinear, and class indices of ArgMax through one Cast. A computed
    Gather index is refused.

    Args:
        graph: a composed graph, or the file of one; it is not changed.
        profile: what it is for.

    Raises:
        ExportError: the graph breaks a rule; all offenders are named.
    """
    where = graph.name if isinstance(graph, Path) else "the graph"
    if isinstance(graph, Path):
        graph = ir.load(graph).graph
    elif isinstance(graph, ir.Model):
        graph = graph.graph
    loops = [describe(n) for n in graph if holds_graph(n)]
    foreign = [
        describe(n)
        for n in graph
        if (n.domain or n.op_type not in profile.operators) and not holds_graph(n)
    ]
    problems = []
    if loops:
        problems.append(f"holds graphs within it: {listed(loops)}")
    if foreign:
        problems.append(f"holds what {profile.name!r} does not allow: {listed(foreign)}")
    if not problems and (integers := integer_arithmetic(graph)):
        problems.append(f"computes with integers: {listed(integers)}")
    if problems:
        raise ExportError(f"{where} {', and '.join(problems)}")


def integer_arithmetic(graph: ir.Graph) -> list[str]:
    """The nodes that take or make integers other than as shapes, constants or class indices.

    Raises:
        ExportError: a node takes what nothing makes.
    """
    types = infer_types(graph)
    found = []
    for node in graph:
        made = [types[value] for value in node.outputs]
        if None in made:
            raise ExportError(f"the type of what {describe(node)} gives cannot be inferred")
        if (set(made) & INTEGERS and node.op_type not in MAKERS | JOINS) or any(
            value is not None and types.get(value) in INTEGERS and not is_shape(node, index, value)
            for index, value in enumerate(node.inputs)
        ):
            found.append(describe(node))
    return found


def is_shape(node: ir.Node, index: int, value: ir.Value) -> bool:
    """Whether an integer input of ``node`` is where integers belong."""
    made_by = producer.op_type if (producer := value.producer()) else None
    if node.op_type == "Cast":
        return made_by == "ArgMax"
    if node.op_type == "Gather" and value.const_value is None:
        return False
    return node.op_type in JOINS or index in SHAPES.get(node.op_type, ())


def describe(node: ir.Node) -> str:
    """An operator, and where it is."""
    domain = f"{node.domain}." if node.domain else ""
    return f"{domain}{node.op_type} ({node.name})"


def listed(items: list[str], most: int = 8) -> str:
    """The first few of many."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{more}"
