"""What graphs are compared with: solves by torch of the model that was exported."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ, State
from edge_mdeq.solvers import Anderson, Solver, relative_residual, solve
from edge_mdeq.solvers.record import improves
from edge_mdeq.solvers.residual import select
from mdeq_export.compose import RESIDUAL, state_names
from mdeq_export.pieces import Inject
from mdeq_export.readouts import ReadMask, ReadScores
from mdeq_export.verify import REFERENCE_EVALUATIONS, REFERENCE_TOL, Answer, StepPair

__all__ = ["TorchReference"]

Array = NDArray[Any]


class TorchReference:
    """The frozen model under torch, with the solver that the graphs unroll.

    Args:
        model: from ``MDEQ.freeze()``.
        config: its input.
        solver: the solver.
        best: whether the iterate with the lowest residual is returned.
    """

    name: Literal["torch", "parts"] = "torch"

    def __init__(self, model: MDEQ, config: InputConfig, solver: Solver, best: bool) -> None:
        self.model, self.config, self.solver, self.best = model, config, solver, best
        self.segmentation = model.config.task == "segmentation"
        self.inject = Inject(model, config)
        self.mask, self.scores = ReadMask(model, config.height, config.width), ReadScores(model)

    def bind(self, images: NDArray[np.uint8]) -> TorchProblem:
        return TorchProblem(self, torch.from_numpy(images))

    def classes(self, z: State) -> Array:
        """The class indices of a state, (B, H, W) or (B,)."""
        answer = self.mask(z)[0] if self.segmentation else self.scores(z).argmax(dim=1)
        return np.asarray(answer.numpy())


class TorchProblem:
    """B images (B, H, W, 3) uint8 and their injection."""

    def __init__(self, reference: TorchReference, images: Tensor) -> None:
        self.reference, self.images = reference, images
        with torch.no_grad():
            self.u: Tensor = reference.inject(images)

    def injection(self) -> Array:
        return np.asarray(self.u.numpy())

    @torch.no_grad()
    def converged(self) -> Answer:
        """Anderson for long, best iterate."""
        model, solver = self.reference.model, Anderson(5)
        f, zero = model.bind(self.u), model.zero_state(self.u)
        goal = solve(f, zero, solver, REFERENCE_EVALUATIONS, REFERENCE_TOL, best=True)
        return self.answer(goal.value, goal.residual)

    @torch.no_grad()
    def solve(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, Answer]:
        wanted, model = set(counts), self.reference.model
        walk = self.walk(model, self.u, start, max(wanted, default=0))
        return {
            count: self.answer(value, residual)
            for count, (_, _, value, residual) in enumerate(walk, 1)
            if count in wanted
        }

    @torch.no_grad()
    def rounding(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, float]:
        wanted, model = set(counts), self.reference.model
        double = copy.deepcopy(model).double()
        last = max(wanted, default=0)
        exact = Inject(double, self.reference.config).double()(self.images)
        both = zip(
            self.walk(model, self.u, start, last),
            self.walk(double, exact, start, last),
            strict=True,
        )
        found = {}
        for count, ((_, _, single, _), (_, _, right, _)) in enumerate(both, 1):
            if count in wanted:
                gap = sum((a - b).square().sum() for a, b in zip(single, right, strict=True))
                found[count] = float((gap / sum(b.square().sum() for b in right)) ** 0.5)
        return found

    @torch.no_grad()
    def steps(self, start: list[Array] | None, count: int) -> Iterator[StepPair]:
        """With the solver's full history, as an ``advance`` graph carries it."""
        model, solver = self.reference.model, self.reference.solver
        f = model.bind(self.u)
        state = solver.init_full(self.state(start))
        for _ in range(count):
            fz = f(state.z)
            following = solver.advance(state, fz)
            expected = named(following, "next_")
            values = zip(state_names(len(fz), "value"), fz, strict=True)
            expected |= {name: np.asarray(x.numpy()) for name, x in values}
            expected[RESIDUAL] = np.asarray(relative_residual(state.z, fz).numpy())
            yield StepPair(named(state, ""), expected)
            state = following

    def walk(
        self, model: MDEQ, u: Tensor, start: list[Array] | None, count: int
    ) -> Iterator[tuple[State, State, State, Tensor]]:
        """Evaluation by evaluation: the iterate, f there, the value to return and its residual."""
        solver, best = self.reference.solver, self.reference.best
        f = model.bind(u)
        state = solver.init(tuple(z.to(u.dtype) for z in self.state(start)))
        value: State | None = None
        for k in range(count):
            fz = f(state.z)
            residual = relative_residual(state.z, fz)
            if value is None or not best:
                value, lowest = fz, residual
            else:
                better = improves(residual, lowest)
                value, lowest = select(better, fz, value), torch.where(better, residual, lowest)
            yield state.z, fz, value, lowest
            if k < count - 1:
                state = solver.advance(state, fz)

    def state(self, start: list[Array] | None) -> State:
        if start is None:
            return self.reference.model.zero_state(self.u)
        return tuple(torch.from_numpy(z) for z in start)

    def answer(self, value: State, residual: Tensor) -> Answer:
        classes = self.reference.classes(value)
        return Answer([z.numpy() for z in value], classes, residual.numpy())


def named(state: Any, prefix: str) -> dict[str, Array]:
    """A solver's state under the names of an ``advance`` graph."""
    scales = len(state.z)
    leaves = pytree.tree_leaves(state)
    names = state_names(scales, f"{prefix}state")
    names += [f"{prefix}history_{k}" for k in range(len(leaves) - scales)]
    return {name: np.asarray(x.numpy()) for name, x in zip(names, leaves, strict=True)}
