"""Composes graphs from traced pieces. No torch: an unroll to another N is graph work.

Every instance of a piece shares that piece's initializers, so N costs nodes but no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edge_mdeq.bundle import Step

__all__ = [
    "CONFIDENCE",
    "IMAGE",
    "INJECTION",
    "INT8",
    "OUTPUT",
    "RESIDUAL",
    "Composer",
    "Pieces",
    "advance_model",
    "inject_model",
    "piece_models",
    "readout_model",
    "solve_model",
    "state_names",
]

IMAGE, INJECTION, OUTPUT, CONFIDENCE, RESIDUAL = (
    "image", "injection", "output", "confidence", "residual",
)  # fmt: skip
BATCH = "batch"
INT8 = "int8"  # every other precision lies in the pieces as they are
IR_VERSION = 10  # what ONNX Runtime 1.23 and TensorRT 10 read


@dataclass(frozen=True)
class Pieces:
    """Traced graphs. A state is n tensors (B, C_i, H_i, W_i), finest first.

    Attributes:
        opset: that all of them are written in.
        inject: image (B, H, W, 3) uint8 -> injection u.
        cell: u, state z -> f(z, u).
        advance: one per length that the solver's history grows through: solver state, f(z) -> next
            solver state, whose first n tensors are the next iterate; the last one is used for ever
            after.
        step: the same for a history that has its full size from the start, of zeros at first.
        residual: z, f(z) -> relative residual (B,).
        better: f(z), its residual, the best so far and its residual -> the better of the two and
            its residual; None where the last iterate is returned.
        readout: state -> answer [, confidence].
        int8_cell, int8_readout: the same with integer convolutions; None without them. The readout
            may be missing alone: then that in floating point is used.
    """

    opset: int
    inject: ir.Graph
    cell: ir.Graph
    advance: tuple[ir.Graph, ...]
    step: ir.Graph
    residual: ir.Graph
    readout: ir.Graph
    better: ir.Graph | None = None
    int8_cell: ir.Graph | None = None
    int8_readout: ir.Graph | None = None

    @property
    def scales(self) -> int:
        """n, the number of scales."""
        return len(self.cell.outputs)

    def all(self) -> dict[str, ir.Graph]:
        """Every piece by the short name that its initializers bear in a graph."""
        advance = {f"a{i}": graph for i, graph in enumerate(self.advance)}
        named = {"i": self.inject, "c": self.cell, **advance, "s": self.step, "r": self.residual}
        optional = {"b": self.better, "q": self.int8_cell, "p": self.int8_readout}
        there = {name: graph for name, graph in optional.items() if graph is not None}
        return named | {"o": self.readout} | there

    @staticmethod
    def of(opset: int, named: dict[str, ir.Graph]) -> Pieces:
        """The inverse of ``all``."""
        advance = tuple(named[f"a{i}"] for i in range(sum(name[0] == "a" for name in named)))
        inject, cell, step, residual, readout = (named[name] for name in "icsro")
        optional = (named.get(name) for name in "bqp")
        return Pieces(opset, inject, cell, advance, step, residual, readout, *optional)


class Composer:
    """Grows a graph by calling pieces on values."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def call(self, name: str, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """Append one instance of the piece that ``Pieces.all`` gives that name."""
        copy = self.pieces.all()[name].clone()
        if len(copy.inputs) != len(inputs):
            raise ValueError(f"piece {name!r} takes {len(copy.inputs)} values, got {len(inputs)}")
        bound = dict(zip(copy.inputs, inputs, strict=True))
        bound |= {
            value: self.share(name, value)
            for value in copy.initializers.values()
            if value.uses() or value in copy.outputs
        }
        outputs = [bound.get(value, value) for value in copy.outputs]
        nodes = list(copy)
        copy.outputs.clear()
        for formal, actual in bound.items():
            ir.convenience.replace_all_uses_with(formal, actual)
        copy.remove(nodes)
        for node in nodes:
            self.append(node)
        return outputs

    def append(self, node: ir.Node) -> None:
        """Take in a node, under a name that only its place decides."""
        index = len(self.nodes)
        node.name = f"n{index}"
        for k, value in enumerate(node.outputs):
            value.name = f"v{index}" if k == 0 else f"v{index}_{k}"
        self.nodes.append(node)

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

    def evaluate(self, u: ir.Value, z: Sequence[ir.Value], precision: str) -> list[ir.Value]:
        """f(z, u), in that precision."""
        return self.call("q" if precision == INT8 else "c", [u, *z])

    def read(self, value: Sequence[ir.Value], precision: str) -> list[ir.Value]:
        """The answer of a state, in that precision where there is a readout of it."""
        integer = precision == INT8 and self.pieces.int8_readout is not None
        return self.call("p" if integer else "o", value)

    def model(
        self, name: str, inputs: Sequence[ir.Value], outputs: Iterable[tuple[str, ir.Value]]
    ) -> ir.Model:
        """The finished graph, with its outputs named.

        An output that is an input, a constant or another output gets a value of its own.
        """
        named: list[ir.Value] = []
        for output, value in outputs:
            if value in (*inputs, *named, *self.initializers.values()):
                node = ir.node("Identity", [value])
                node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
                self.append(node)
                value = node.outputs[0]
            value.name, value.shape = output, batched(value.shape)
            named.append(value)
        graph = ir.Graph(
            inputs,
            named,
            nodes=self.nodes,
            initializers=[value for value in self.initializers.values() if value.uses()],
            opset_imports={"": self.pieces.opset},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="edge-mdeq")


class Best:
    """The value to return and its residual: of the last evaluation, or of the best so far."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer
        self.value: list[ir.Value] = []
        self.residual: ir.Value | None = None

    def add(self, z: Sequence[ir.Value], fz: Sequence[ir.Value], last: bool) -> None:
        """Take in an evaluation; without a best one to keep only the last is measured."""
        compares = self.composer.pieces.better is not None
        if not (last or compares):
            return
        (residual,) = self.composer.call("r", [*z, *fz])
        if self.residual is None:
            self.value, self.residual = list(fz), residual
        else:
            both = [*fz, residual, *self.value, self.residual]
            *self.value, self.residual = self.composer.call("b", both)

    def outputs(self, names: Sequence[str]) -> list[tuple[str, ir.Value]]:
        """The value under ``names``, and the residual."""
        assert self.residual is not None
        return [*zip(names, self.value, strict=True), (RESIDUAL, self.residual)]


def state_names(scales: int, prefix: str = "state") -> list[str]:
    """A name per scale."""
    return [f"{prefix}_{i}" for i in range(scales)]


def solve_model(pieces: Pieces, steps: int | Sequence[Step]) -> ir.Model:
    """``image, state_0.. -> output [, confidence], next_state_0.., residual`` in N evaluations.

    The returned state is f at the last (or best) evaluated iterate, and the residual is that
    iterate's. ``steps`` are N, or evaluations by precision in their order; the readout has the
    precision of the last.
    """
    if isinstance(steps, int):
        steps = (Step("fp32", steps),)
    precisions = [step.precision for step in steps for _ in range(step.evaluations)]
    composer, scales = Composer(pieces), pieces.scales
    image = fresh(pieces.inject.inputs[0], IMAGE)
    state = [fresh(v, n) for v, n in zip(pieces.cell.inputs[1:], state_names(scales), strict=True)]
    (u,) = composer.call("i", [image])
    solver_state: list[ir.Value] = list(state)
    best = Best(composer)
    for k, precision in enumerate(precisions):
        z = solver_state[:scales]
        fz = composer.evaluate(u, z, precision)
        last = k == len(precisions) - 1
        best.add(z, fz, last)
        if not last:
            kind = min(k, len(pieces.advance) - 1)
            solver_state = composer.call(f"a{kind}", [*solver_state, *fz])
    answers = composer.read(best.value, precisions[-1])
    outputs = list(zip((OUTPUT, CONFIDENCE), answers, strict=False))
    outputs += best.outputs(state_names(scales, "next_state"))
    return composer.model("solve", [image, *state], outputs)


def inject_model(pieces: Pieces) -> ir.Model:
    """``image -> injection``: once per frame."""
    composer = Composer(pieces)
    image = fresh(pieces.inject.inputs[0], IMAGE)
    (u,) = composer.call("i", [image])
    return composer.model("inject", [image], [(INJECTION, u)])


def advance_model(pieces: Pieces, evaluations: int, precision: str = "") -> ir.Model:
    """``injection, state_0.., history_0.. -> value_0.., next_state_0.., next_history_0..,
    residual``: N evaluations, again and again.

    ``value`` is f at the last (or best) of the N iterates, which the readout takes and the residual
    belongs to. ``next_state`` is where the solve goes on, with ``next_history``; for the plain
    iteration that is the value itself, and there is no ``value``. A history of zeros is an empty
    one: the solver starts anew from ``state``.
    """
    composer, scales = Composer(pieces), pieces.scales
    u = fresh(pieces.cell.inputs[0], INJECTION)
    history = pieces.step.inputs[scales:-scales]
    state = [fresh(v, n) for v, n in zip(pieces.cell.inputs[1:], state_names(scales), strict=True)]
    past = [fresh(value, f"history_{k}") for k, value in enumerate(history)]
    solver_state = [*state, *past]
    best = Best(composer)
    for k in range(evaluations):
        z = solver_state[:scales]
        fz = composer.evaluate(u, z, precision)
        best.add(z, fz, last=k == evaluations - 1)
        solver_state = composer.call("s", [*solver_state, *fz])
    following = solver_state[:scales]
    outputs: list[tuple[str, ir.Value]] = []
    if following != best.value:
        outputs += zip(state_names(scales, "value"), best.value, strict=True)
    outputs += zip(state_names(scales, "next_state"), following, strict=True)
    outputs += [(f"next_history_{k}", v) for k, v in enumerate(solver_state[scales:])]
    assert best.residual is not None
    outputs.append((RESIDUAL, best.residual))
    return composer.model("advance", [u, *state, *past], outputs)


def readout_model(pieces: Pieces, precision: str = "") -> ir.Model:
    """``state_0.. -> output [, confidence]``: when the host has seen enough."""
    composer, names = Composer(pieces), state_names(pieces.scales)
    state = [fresh(v, n) for v, n in zip(pieces.readout.inputs, names, strict=True)]
    answers = composer.read(state, precision)
    return composer.model("readout", state, zip((OUTPUT, CONFIDENCE), answers, strict=False))


def piece_models(pieces: Pieces) -> dict[str, ir.Model]:
    """Each piece as a model of its own, by its short name: what a further unroll starts from."""
    models = {}
    for name, graph in pieces.all().items():
        composer = Composer(pieces)
        inputs = [fresh(value, f"in_{k}") for k, value in enumerate(graph.inputs)]
        outputs = composer.call(name, inputs)
        models[name] = composer.model(
            name, inputs, [(f"out_{k}", value) for k, value in enumerate(outputs)]
        )
    return models


def fresh(value: ir.Value, name: str) -> ir.Value:
    """A graph input of the same type and shape; an open first dimension is the batch."""
    return ir.Value(name=name, shape=batched(value.shape), type=value.type)


def batched(shape: ir.Shape | None) -> ir.Shape | None:
    """``shape`` with one name for the batch: each piece was traced with another."""
    if shape is None or shape.is_static():
        return shape
    return ir.Shape([BATCH, *list(shape)[1:]])
