"""Drives a solver: evaluates f, measures, stops, keeps the best. Never exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers.residual import relative_residual, select

__all__ = ["Solution", "Solver", "SolverState", "Status", "solve"]

State = tuple[Tensor, ...]


class SolverState(Protocol):
    """What ``advance`` maps to its successor; ``z`` is where f is evaluated next."""

    @property
    def z(self) -> State: ...


class Solver(Protocol):
    """A solver as pure functions; see the package docstring."""

    def init(self, z: State) -> Any: ...

    def advance(self, state: Any, fz: State) -> Any: ...


class Status(Enum):
    """How a solve ended."""

    CONVERGED = "converged"  # every sample's residual is at or below the tolerance
    MAX_EVALUATIONS = "max_evaluations"  # the evaluations ran out first, or no tolerance was given
    NON_FINITE = "non_finite"  # some sample's residual is NaN or infinite


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve.

    Attributes:
        value: f at the returned iterate, one (B, C_i, H_i, W_i) per scale.
        iterate: the iterate itself.
        residual: its relative residual, (B,).
        evaluations: evaluations of f until each sample met the tolerance, else all, (B,) int64.
        trace: residual of every evaluation, (evaluations, B).
        status: how it ended; whether that is an error is for the caller to decide.
    """

    value: State
    iterate: State
    residual: Tensor
    evaluations: Tensor
    trace: Tensor
    status: Status


def solve(
    f: Callable[[State], State],
    z0: State,
    solver: Solver,
    max_evaluations: int,
    tol: float = 0.0,
    best: bool = False,
) -> Solution:
    """Find z = f(z) in at most ``max_evaluations`` evaluations of f.

    Args:
        f: the map; one call is one evaluation.
        z0: where to start, one (B, C_i, H_i, W_i) per scale.
        solver: how to get from one iterate to the next.
        max_evaluations: at least 1.
        tol: stop when every sample's relative residual is at or below this; 0 never stops early,
            and then no value leaves the device during the solve.
        best: return, per sample, the iterate with the lowest residual instead of the last one.

    Raises:
        ConfigError: fewer than one evaluation.
    """
    if max_evaluations < 1:
        raise ConfigError(f"max_evaluations is {max_evaluations}, need at least 1")
    state = solver.init(z0)
    trace: list[Tensor] = []
    iterate = value = z0
    residual = evaluations = torch.empty(0)
    for count in range(1, max_evaluations + 1):
        z = state.z
        fz = f(z)
        now = relative_residual(z, fz)
        trace.append(now)
        if count == 1:
            iterate, value, residual = z, fz, now
            evaluations = torch.full_like(now, max_evaluations, dtype=torch.int64)
            met = torch.zeros_like(now, dtype=torch.bool)
        elif best:
            better = (now < residual) | residual.isnan()
            iterate, value = select(better, z, iterate), select(better, fz, value)
            residual = torch.where(better, now, residual)
        else:
            iterate, value, residual = z, fz, now
        newly = (now <= tol) & ~met
        evaluations = torch.where(newly, torch.full_like(evaluations, count), evaluations)
        met = met | newly
        if tol > 0 and bool(met.all()):
            break
        if count < max_evaluations:  # the last advance would only be thrown away
            state = solver.advance(state, fz)
    return Solution(
        value, iterate, residual, evaluations, torch.stack(trace), status_of(residual, tol)
    )


def status_of(residual: Tensor, tol: float) -> Status:
    """Classify the final residuals (B,)."""
    if not bool(residual.isfinite().all()):
        return Status.NON_FINITE
    if tol > 0 and bool((residual <= tol).all()):
        return Status.CONVERGED
    return Status.MAX_EVALUATIONS
