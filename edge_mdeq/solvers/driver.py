"""Drives a solver: evaluates f and asks the record when to stop. Never exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.record import Point, Record, Status

__all__ = ["STOP_MODES", "Solution", "Solver", "SolverState", "solve"]

State = tuple[Tensor, ...]

STOP_MODES = ("rel", "abs")


class SolverState(Protocol):
    """What ``advance`` maps to its successor; ``z`` is where f is evaluated next."""

    @property
    def z(self) -> State: ...


class Solver(Protocol):
    """A solver as pure functions; see the package docstring."""

    def init(self, z: State) -> Any: ...

    def init_full(self, z: State) -> Any: ...

    def advance(self, state: Any, fz: State) -> Any: ...


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve.

    Attributes:
        value: f at the returned iterate, one (B, C_i, H_i, W_i) per scale.
        iterate: the iterate itself.
        residual: its relative residual, (B,).
        absolute: its absolute residual, (B,).
        evaluations: evaluations of f until the sample ended: met the tolerance, was stopped by a
            guard, or all of them, (B,) int64.
        trace: relative residual of every evaluation, (evaluations, B).
        codes: ``Status.code`` of every sample, (B,) int64.
    """

    value: State
    iterate: State
    residual: Tensor
    absolute: Tensor
    evaluations: Tensor
    trace: Tensor
    codes: Tensor

    @property
    def statuses(self) -> list[Status]:
        """How each sample ended; whether that is an error is for the caller to decide."""
        return [list(Status)[code] for code in self.codes.tolist()]

    @property
    def status(self) -> Status:
        """The worst of ``statuses``: CONVERGED only if every sample is."""
        return list(Status)[int(self.codes.max())]


def solve(
    f: Callable[[State], State],
    z0: State,
    solver: Solver,
    max_evaluations: int,
    tol: float = 0.0,
    best: bool = False,
    stop_mode: str = "rel",
) -> Solution:
    """Find z = f(z) in at most ``max_evaluations`` evaluations of f, every sample on its own.

    Args:
        f: the map; one call is one evaluation.
        z0: where to start, one (B, C_i, H_i, W_i) per scale.
        solver: how to get from one iterate to the next.
        max_evaluations: at least 1.
        tol: a sample is held once its residual is at or below this, and the solve ends when all
            samples have ended. One that diverges, stalls or stops being finite ends too (published
            guards, see ``record``), and unless it stalled its best finite iterate is returned.
            0 runs all evaluations without guards, as an exported graph does, and no value leaves
            the device.
        best: return, per sample, the iterate with the lowest residual instead of the last one.
        stop_mode: which residual ``tol`` and ``best`` mean: "rel", ``||f(z) - z|| / ||f(z)||``, or
            "abs", ``||f(z) - z||``.

    Raises:
        ConfigError: fewer than one evaluation, a negative tolerance, an unknown stop mode.
    """
    if max_evaluations < 1:
        raise ConfigError(f"max_evaluations is {max_evaluations}, need at least 1")
    if not tol >= 0:
        raise ConfigError(f"tol is {tol}, must be 0 (no tolerance) or positive")
    if stop_mode not in STOP_MODES:
        raise ConfigError(f"unknown stop mode {stop_mode!r}, known: {', '.join(STOP_MODES)}")
    state = solver.init(z0)
    fz = f(state.z)
    record = Record(Point.measure(state.z, fz), tol, best, stop_mode == "abs")
    for _ in range(max_evaluations - 1):
        if tol > 0 and not bool(record.running.any()):
            break
        state = solver.advance(state, fz)
        fz = f(state.z)
        record.add(Point.measure(state.z, fz))
    point = record.chosen()
    return Solution(
        value=point.value,
        iterate=point.iterate,
        residual=point.relative,
        absolute=point.absolute,
        evaluations=record.evaluations,
        trace=torch.stack(record.trace),
        codes=record.final_codes(),
    )
