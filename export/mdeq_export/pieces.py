"""The model in pieces, each traced once by ``torch.onnx.export``; the unrolling needs no torch."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ, State
from edge_mdeq.solvers import Solver, relative_residual
from mdeq_export.readouts import ReadMask, ReadScores

__all__ = ["OPSET", "Pieces", "trace_pieces"]

OPSET = 21  # the first with a GroupNormalization that counts groups as torch does


@dataclass(frozen=True)
class Pieces:
    """Traced graphs. A state is n tensors (B, C_i, H_i, W_i), finest first.

    Attributes:
        inject: image (B, H, W, 3) uint8 -> injection u.
        cell: u, state z -> f(z, u).
        advance: one per history length of the solver: solver state, f(z) -> next solver state,
            whose first n tensors are the next iterate; the last one is used for ever after.
        residual: z, f(z) -> relative residual (B,).
        readout: state -> answer [, confidence].
    """

    inject: ir.Graph
    cell: ir.Graph
    advance: tuple[ir.Graph, ...]
    residual: ir.Graph
    readout: ir.Graph

    def all(self) -> dict[str, ir.Graph]:
        """Every piece by a short name."""
        advance = {f"a{i}": graph for i, graph in enumerate(self.advance)}
        return {"i": self.inject, "c": self.cell, **advance, "r": self.residual, "o": self.readout}


class Inject(nn.Module):
    """Pixels to injection: the normalisation is part of the graph."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: MDEQ, config: InputConfig) -> None:
        super().__init__()
        self.inject = model.inject
        std = torch.tensor(config.std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -torch.tensor(config.mean).view(1, 3, 1, 1) / std)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.float().permute(0, 3, 1, 2)  # cast first: RTX cannot transpose uint8
        result: Tensor = self.inject(pixels * self.scale + self.shift)
        return result


class Evaluate(nn.Module):
    """One evaluation of f."""

    def __init__(self, model: MDEQ) -> None:
        super().__init__()
        self.cell = model.cell

    def forward(self, u: Tensor, z: State) -> State:
        result: State = self.cell(z, u)
        return result


class Advance(nn.Module):
    """One solver step, given f at its iterate."""

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.solver = solver

    def forward(self, state: object, fz: State) -> object:
        return self.solver.advance(state, fz)


class Residual(nn.Module):
    """The residual that every graph reports."""

    def forward(self, z: State, fz: State) -> Tensor:
        return relative_residual(z, fz)


def trace_pieces(model: MDEQ, config: InputConfig, solver: Solver, batch: int = 1) -> Pieces:
    """Trace a frozen model and a solver.

    Args:
        model: from ``MDEQ.freeze()``.
        config: input size (a multiple of the model's stride) and normalisation.
        solver: the solver to unroll.
        batch: B, static.
    """
    height, width = config.height, config.width
    image = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    inject = Inject(model, config)
    with torch.no_grad():
        u = inject(image)
    z, fz = model.zero_state(u), model.zero_state(u)  # distinct: the tracer merges equal inputs
    readout = (
        ReadMask(model, height, width) if model.config.task == "segmentation" else ReadScores(model)
    )
    return Pieces(
        inject=trace(inject, (image,)),
        cell=trace(Evaluate(model), (u, z)),
        advance=tuple(trace_advances(solver, z, fz)),
        residual=trace(Residual(), (z, fz)),
        readout=trace(readout, (z,)),
    )


def trace_advances(solver: Solver, z: State, fz: State) -> Iterator[ir.Graph]:
    """One graph per structure that the solver's state goes through, until it stops changing."""
    state, module = solver.init(z), Advance(solver)
    structure = None
    while pytree.tree_structure(state) != structure:
        structure = pytree.tree_structure(state)
        distinct = pytree.tree_map(torch.clone, state)  # see trace_pieces
        yield trace(module, (distinct, fz))
        state = solver.advance(state, fz)


def trace(module: nn.Module, args: tuple[object, ...]) -> ir.Graph:
    """Trace ``module`` with nested tuples of tensors, flattened in order."""
    with quiet():
        program = torch.onnx.export(
            module.eval(), args, dynamo=True, opset_version=OPSET, verbose=False, optimize=True
        )
    assert program is not None
    return program.model.graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about torchvision and its own deprecations; neither concerns a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
