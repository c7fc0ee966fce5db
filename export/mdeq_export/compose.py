"""Composes the unrolled solver from traced pieces. No torch: an unroll to another K is graph work.

Every instance of a piece shares that piece's initializers, so K costs nodes but no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mdeq_export.pieces import OPSET, Pieces

__all__ = ["CONFIDENCE", "IMAGE", "OUTPUT", "RESIDUAL", "next_name", "solve_model", "state_name"]

IMAGE, OUTPUT, CONFIDENCE, RESIDUAL = "image", "output", "confidence", "residual"
IR_VERSION = 10  # what ONNX Runtime 1.23 and TensorRT 10 read


def state_name(scale: int) -> str:
    """The graph input of a scale's state."""
    return f"state_{scale}"


def next_name(scale: int) -> str:
    """The graph output of a scale's state (inputs and outputs cannot share a name in ONNX)."""
    return f"next_state_{scale}"


class Composer:
    """Grows a graph by calling pieces on values."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def call(self, name: str, piece: ir.Graph, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """Append one instance of ``piece``; ``name`` prefixes what only this piece owns."""
        copy = piece.clone()
        if len(copy.inputs) != len(inputs):
            raise ValueError(f"piece {name!r} takes {len(copy.inputs)} values, got {len(inputs)}")
        bound = dict(zip(copy.inputs, inputs, strict=True))
        bound |= {
            value: self.share(name, value) for value in copy.initializers.values() if value.uses()
        }
        outputs = [bound.get(value, value) for value in copy.outputs]
        nodes = list(copy)
        copy.outputs.clear()
        for formal, actual in bound.items():
            ir.convenience.replace_all_uses_with(formal, actual)
        copy.remove(nodes)
        for node in nodes:
            index = len(self.nodes)
            node.name = f"n{index}"
            for k, value in enumerate(node.outputs):
                value.name = f"v{index}" if k == 0 else f"v{index}_{k}"
            self.nodes.append(node)
        return outputs

    def share(self, prefix: str, value: ir.Value) -> ir.Value:
        """The one initializer that all instances of a piece use."""
        name = f"{prefix}/{value.name}"
        if name not in self.initializers:
            tensor = value.const_value
            assert tensor is not None
            self.initializers[name] = ir.Value(
                name=name, shape=value.shape, type=value.type, const_value=tensor
            )
        return self.initializers[name]

    def graph(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """The finished graph."""
        return ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name="solve",
        )


def solve_model(pieces: Pieces, evaluations: int) -> ir.Model:
    """``image, state_0.. -> output [, confidence], next_state_0.., residual`` in N evaluations.

    The returned state is f at the last evaluated iterate, and the residual is that iterate's.
    """
    composer = Composer()
    image = copy_of(pieces.inject.inputs[0], IMAGE)
    state = [copy_of(value, state_name(i)) for i, value in enumerate(pieces.cell.inputs[1:])]
    scales = len(state)
    (u,) = composer.call("i", pieces.inject, [image])
    solver_state: list[ir.Value] = list(state)
    for k in range(evaluations):
        z = solver_state[:scales]
        fz = composer.call("c", pieces.cell, [u, *z])
        if k < evaluations - 1:
            kind = min(k, len(pieces.advance) - 1)
            solver_state = composer.call(f"a{kind}", pieces.advance[kind], [*solver_state, *fz])
    (residual,) = composer.call("r", pieces.residual, [*z, *fz])
    answers = composer.call("o", pieces.readout, fz)
    for value, name in zip(answers, (OUTPUT, CONFIDENCE), strict=False):
        value.name = name
    residual.name = RESIDUAL
    for i, value in enumerate(fz):
        value.name = next_name(i)
    graph = composer.graph([image, *state], [*answers, *fz, residual])
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="edge-mdeq")


def copy_of(value: ir.Value, name: str) -> ir.Value:
    """A fresh graph input of the same type and shape."""
    return ir.Value(name=name, shape=value.shape, type=value.type)
