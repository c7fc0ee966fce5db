"""What graphs are compared with: solves by torch of the model that was exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from edge_mdeq.config import InputConfig
from edge_mdeq.model import MDEQ, State
from edge_mdeq.solvers import Solution, Solver, make_solver, relative_residual, solve
from edge_mdeq.solvers.record import improves
from edge_mdeq.solvers.residual import select
from mdeq_export.answers import Answer
from mdeq_export.compose import CONFIDENCE, OUTPUT, RESIDUAL, state_names
from mdeq_export.pieces import Inject
from mdeq_export.readouts import ReadMask, ReadScores
from mdeq_export.verify import REFERENCE_EVALUATIONS, REFERENCE_TOL, StepPair

__all__ = ["REFERENCE_SETTINGS", "REFERENCE_SOLVER", "TorchReference"]

REFERENCE_SOLVER, REFERENCE_SETTINGS = "anderson", {"m": 5.0}

Array = NDArray[Any]


class TorchReference:
    """The frozen model under torch, with the solver that the graphs unroll.

    Args:
        model: from ``MDEQ.freeze()``.
        config: its input.
        solver: the solver.
        best: whether the iterate with the lowest residual is returned.
        goals: converged answers that are known already, by the bytes of their image.
    """

    name: Literal["torch", "parts"] = "torch"

    def __init__(
        self,
        model: MDEQ,
        config: InputConfig,
        solver: Solver,
        best: bool,
        goals: Mapping[bytes, Answer] | None = None,
    ) -> None:
        self.model, self.config, self.solver, self.best = model, config, solver, best
        self.goals = goals or {}
        self.segmentation = model.config.task == "segmentation"
        self.inject = Inject(model, config)
        self.mask, self.scores = ReadMask(model, config.height, config.width), ReadScores(model)

    def bind(self, images: NDArray[np.uint8]) -> TorchProblem:
        return TorchProblem(self, torch.from_numpy(images))

    def readout(self, z: State) -> dict[str, Array]:
        """What a graph's readout gives for a state, by the names of its outputs."""
        if self.segmentation:
            mask, confidence = self.mask(z)
            return {OUTPUT: mask.numpy(), CONFIDENCE: confidence.numpy()}
        return {OUTPUT: self.scores(z).numpy()}


class TorchProblem:
    """B images (B, H, W, 3) uint8 and their injection."""

    def __init__(self, reference: TorchReference, images: Tensor) -> None:
        self.reference, self.images = reference, images
        with torch.no_grad():
            self.u: Tensor = reference.inject(images)
            self.f = reference.model.bind(self.u)
        self.solved: list[tuple[State, dict[int, Answer]]] = []  # starts and what they led to

    def injection(self) -> Array:
        return np.asarray(self.u.numpy())

    @torch.no_grad()
    def converged(self) -> Answer:
        """Anderson for long, best iterate."""
        known = [self.reference.goals.get(image.numpy().tobytes()) for image in self.images]
        if None not in known:
            return joined([goal for goal in known if goal is not None])
        solver, tol = make_solver(REFERENCE_SOLVER, **REFERENCE_SETTINGS), REFERENCE_TOL
        goal = solve(self.f, self.state(None), solver, REFERENCE_EVALUATIONS, tol, best=True)
        return replace(self.answer(goal.value, goal.residual), trace=lowest_so_far(goal))

    @torch.no_grad()
    def solve(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, Answer]:
        wanted, z = set(counts), self.state(start)
        for known, answers in self.solved:
            same = all(torch.equal(a, b) for a, b in zip(known, z, strict=True))
            if same and wanted <= answers.keys():
                return {count: answers[count] for count in wanted}
        walk = self.walk(self.f, z, max(wanted, default=0))
        found = {
            count: self.answer(value, residual)
            for count, (value, residual) in enumerate(walk, 1)
            if count in wanted
        }
        self.solved.append((z, found))
        return found

    @torch.no_grad()
    def course(self, count: int) -> Iterator[Answer]:
        """The cold solve's answer after each of ``count`` evaluations; none is kept."""
        for value, residual in self.walk(self.f, self.state(None), count):
            yield self.answer(value, residual)

    @torch.no_grad()
    def rounding(self, start: list[Array] | None, counts: Iterable[int]) -> dict[int, float]:
        single = self.solve(start, counts)
        with InDouble():
            f = self.reference.model.bind(self.reference.inject(self.images))

        def exact(z: State) -> State:
            with InDouble():
                return f(z)

        z = tuple(x.double() for x in self.state(start))
        found = {}
        for count, (right, _) in enumerate(self.walk(exact, z, max(single, default=0)), 1):
            if count in single:
                own = [torch.from_numpy(x) for x in single[count].states]
                gap = sum((a - b).square().sum() for a, b in zip(own, right, strict=True))
                found[count] = float((gap / sum(b.square().sum() for b in right)) ** 0.5)
        return found

    @torch.no_grad()
    def steps(self, start: list[Array] | None, count: int) -> Iterator[StepPair]:
        """With the solver's full history, as an ``advance`` graph carries it."""
        solver = self.reference.solver
        state = solver.init_full(self.state(start))
        for _ in range(count):
            fz = self.f(state.z)
            following = solver.advance(state, fz)
            expected = named(following, "next_")
            values = zip(state_names(len(fz), "value"), fz, strict=True)
            expected |= {name: np.asarray(x.numpy()) for name, x in values}
            expected[RESIDUAL] = np.asarray(relative_residual(state.z, fz).numpy())
            yield StepPair(named(state, ""), expected)
            state = following

    def walk(
        self, f: Callable[[State], State], start: State, count: int
    ) -> Iterator[tuple[State, Tensor]]:
        """Evaluation by evaluation: the value to return and its residual."""
        solver, best = self.reference.solver, self.reference.best
        state = solver.init(start)
        value: State | None = None
        for k in range(count):
            fz = f(state.z)
            residual = relative_residual(state.z, fz)
            if value is None or not best:
                value, lowest = fz, residual
            else:
                better = improves(residual, lowest)
                value, lowest = select(better, fz, value), torch.where(better, residual, lowest)
            yield value, lowest
            if k < count - 1:
                state = solver.advance(state, fz)

    def state(self, start: list[Array] | None) -> State:
        if start is None:
            return self.reference.model.zero_state(self.u)
        return tuple(torch.from_numpy(z) for z in start)

    def answer(self, value: State, residual: Tensor) -> Answer:
        states, outputs = [z.numpy() for z in value], self.reference.readout(value)
        return Answer.read(states, residual.numpy(), outputs)


def lowest_so_far(goal: Solution) -> Array:
    """The residual of the best iterate after each evaluation, (K, B); a sample that ended stays."""
    lowest = np.fmin.accumulate(goal.trace.numpy(), axis=0)
    rows = np.arange(len(lowest))[:, None]
    return np.take_along_axis(lowest, np.minimum(rows, goal.evaluations.numpy() - 1), axis=0)


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers to several images as one."""
    if len(answers) == 1:
        return answers[0]
    states = zip(*(answer.states for answer in answers), strict=True)
    return Answer(
        [np.concatenate(scale) for scale in states],
        np.concatenate([answer.classes for answer in answers]),
        np.concatenate([answer.residual for answer in answers]),
        {name: np.concatenate([a.readout[name] for a in answers]) for name in answers[0].readout},
    )


class InDouble(TorchFunctionMode):
    """What torch computes in here is in double precision, with weights of single precision.

    Each is converted when it is used: a copy of imagenet-xl in double takes 680 MB.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def widened(x: Any) -> Any:
            return x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x

        return func(*pytree.tree_map(widened, args), **pytree.tree_map(widened, kwargs or {}))


def named(state: Any, prefix: str) -> dict[str, Array]:
    """A solver's state under the names of an ``advance`` graph."""
    scales = len(state.z)
    leaves = pytree.tree_leaves(state)
    names = state_names(scales, f"{prefix}state")
    names += [f"{prefix}history_{k}" for k in range(len(leaves) - scales)]
    return {name: np.asarray(x.numpy()) for name, x in zip(names, leaves, strict=True)}
