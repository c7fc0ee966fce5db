"""The model in pieces, each traced once by ``torch.onnx.export``; the unrolling needs no torch."""

from __future__ import annotations

import contextlib
import functools
import logging
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ, State
from edge_mdeq.solvers import Solver, relative_residual
from edge_mdeq.solvers.record import improves
from edge_mdeq.solvers.residual import select
from mdeq_export.compose import Pieces
from mdeq_export.readouts import ReadScores, TiledReadMask

__all__ = ["OPSET", "trace_pieces"]

OPSET = 21  # the first with a GroupNormalization that counts groups as torch does


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


class Better(nn.Module):
    """Which of two evaluations to return, per sample."""

    def forward(
        self, fz: State, residual: Tensor, best: State, lowest: Tensor
    ) -> tuple[State, Tensor]:
        better = improves(residual, lowest)
        return select(better, fz, best), torch.where(better, residual, lowest)


class Residual(nn.Module):
    """The residual that every graph reports."""

    def forward(self, z: State, fz: State) -> Tensor:
        return relative_residual(z, fz)


def trace_pieces(
    model: MDEQ,
    config: InputConfig,
    solver: Solver,
    batch: int = 1,
    dynamic_batch: bool = False,
    best: bool = False,
) -> Pieces:
    """Trace a frozen model and a solver.

    Args:
        model: from ``MDEQ.freeze()``.
        config: input size (a multiple of the model's stride) and normalisation.
        solver: the solver to unroll.
        batch: B.
        dynamic_batch: leave B open instead.
        best: return the iterate with the lowest residual instead of the last.

    Raises:
        ConfigError: the solver's history has no fixed size (Broyden's line search).
    """
    height, width = config.height, config.width
    if dynamic_batch:
        batch = 2  # torch takes a dimension of one for a constant
    image = torch.zeros(batch, height, width, 3, dtype=torch.uint8)
    inject = Inject(model, config)
    with torch.no_grad():
        u = inject(image)
    z, fz = model.zero_state(u), model.zero_state(u)  # distinct: the tracer merges equal inputs
    segmentation = model.config.task == "segmentation"
    readout = TiledReadMask(model, height, width) if segmentation else ReadScores(model)

    def graph(module: nn.Module, *args: object) -> ir.Graph:
        distinct = pytree.tree_map(torch.clone, args)
        return trace(module, distinct, dynamic_batch)

    full = solver.init_full(z)  # refuses what cannot be carried before anything is traced
    residual = torch.zeros(batch)
    states = list(histories(solver, z, fz))
    advance = tuple(graph(Advance(solver), state, fz) for state in states)
    grown = shapes(states[-1]) == shapes(full)
    return Pieces(
        OPSET,
        inject=graph(inject, image),
        cell=graph(Evaluate(model), u, z),
        advance=advance,
        step=advance[-1] if grown else graph(Advance(solver), full, fz),
        residual=graph(Residual(), z, fz),
        readout=graph(readout, z),
        better=graph(Better(), fz, residual, z, residual) if best else None,
    )


def histories(solver: Solver, z: State, fz: State) -> Iterator[object]:
    """A state per structure that the solver goes through, until it stops changing."""
    state, structure = solver.init(z), None
    while pytree.tree_structure(state) != structure:
        structure = pytree.tree_structure(state)
        yield state
        state = solver.advance(state, fz)


def shapes(state: object) -> object:
    """A solver's state with the shape of each tensor in its place."""
    return pytree.tree_map(lambda x: tuple(x.shape), state)


def trace(module: nn.Module, args: tuple[object, ...], dynamic_batch: bool = False) -> ir.Graph:
    """Trace ``module`` with nested tuples of tensors, flattened in order."""
    dynamic = pytree.tree_map(lambda x: {0: torch.export.Dim.DYNAMIC}, args)
    with quiet(), operators_read_once():
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            optimize=True,
            dynamic_shapes=dynamic if dynamic_batch else None,
        )
    assert program is not None
    return program.model.graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about torchvision, its own deprecations and what it could not optimise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """torch parses its exporter's 500 operators and lists its composite ones for every graph anew.

    That takes more than half of its time, and there is no public way to keep them.
    """
    registry = "torch.onnx._internal.exporter._registration:ONNXRegistry"
    with once(registry, "from_torchlib"), once("torch._export.utils", "_materialize_cpp_cia_ops"):
        yield


@contextlib.contextmanager
def once(owner: str, name: str) -> Iterator[None]:
    """Within, a function of torch's is called once for the same arguments.

    Where a version of torch has it elsewhere this does nothing, and tracing takes longer.
    """
    try:
        there = pkgutil.resolve_name(owner)
        own = vars(there)[name]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    setattr(there, name, staticmethod(functools.partial(first, getattr(there, name))))
    try:
        yield
    finally:
        setattr(there, name, own)


@functools.cache
def first(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What ``function`` gave the first time: operators, to which none of our own are added."""
    return function(*arguments, **named)
