"""The parity gate: do the graphs compute what torch computes, and what does a fixed N cost?

Two questions that must not be mixed: the *export error* (graph against torch at the same solver
and N) is a defect when it is large; the *solver gap* (N evaluations against the converged solve) is
a property of the weights, reported so that a user can choose N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_mdeq.bundle import RungParity, Verification
from edge_mdeq.config import InputConfig
from edge_mdeq.errors import ParityError
from edge_mdeq.model import MDEQ, State
from edge_mdeq.solvers import Anderson, Solver, solve
from mdeq_export.compose import IMAGE, OUTPUT, RESIDUAL, state_names
from mdeq_export.pieces import Inject
from mdeq_export.readouts import ReadMask, ReadScores

__all__ = ["Tolerance", "require_parity", "verify"]

REFERENCE_EVALUATIONS = 60
REFERENCE_TOL = 1e-4


@dataclass(frozen=True)
class Tolerance:
    """What the gate allows: largest state difference, smallest share of equal answers."""

    atol: float = 1e-4
    min_agreement: float = 0.999


@dataclass(frozen=True)
class Expected:
    """What torch computes for one image."""

    u: Tensor
    reference: State
    reference_answer: NDArray[np.generic]
    reference_residual: float


def verify(
    model: MDEQ,
    config: InputConfig,
    solver: Solver,
    graphs: dict[int, Path],
    images: NDArray[np.uint8],
    source: str,
    tolerance: Tolerance,
    progress: Callable[[str], None],
    best: bool = False,
) -> Verification:
    """Run every rung on ``images`` (count, H, W, 3) beside torch; measures, never raises.

    Args:
        model: the frozen model that was traced.
        config: its input.
        solver: the solver that the graphs unroll.
        graphs: the graph of each rung, by its number of evaluations.
        images: RGB uint8 at the input's size.
        source: where the images come from, for the record.
        tolerance: recorded beside what is found; see ``require_parity``.
        progress: told what is being done.
        best: whether the graphs return their best iterate.
    """
    inject, readout = Inject(model, config), reader(model, config)
    progress("converged reference solve")
    expected = [converge(model, inject, readout, image) for image in images]
    rungs = []
    for evaluations, path in sorted(graphs.items()):
        progress(f"parity of {path.name}")
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [
            compare(model, readout, solver, session, evaluations, image, goal, best)
            for image, goal in zip(images, expected, strict=True)
        ]
        rungs.append(combine(evaluations, found))
    return Verification(
        images=len(images),
        source=source,
        atol=tolerance.atol,
        min_agreement=tolerance.min_agreement,
        reference_evaluations=REFERENCE_EVALUATIONS,
        reference_residual=max(goal.reference_residual for goal in expected),
        backend=f"onnxruntime {ort.__version__}, CPU",
        rungs=tuple(rungs),
    )


def require_parity(report: Verification) -> None:
    """Raise ParityError if the export error of any rung exceeds the tolerance of ``report``."""
    for rung in report.rungs:
        # Written so that NaN fails.
        if not rung.state_max_abs <= report.atol:
            raise ParityError(
                f"solve-k{rung.evaluations} differs from torch by {rung.state_max_abs:.2e} in its "
                f"states, allowed is {report.atol:.0e} (--atol); nothing was written"
            )
        if not rung.answer_agreement >= report.min_agreement:
            raise ParityError(
                f"solve-k{rung.evaluations} agrees with torch on {rung.answer_agreement:.3%} of "
                f"the answers, required is {report.min_agreement:.1%}; nothing was written"
            )


def reader(model: MDEQ, config: InputConfig) -> Callable[[State], NDArray[np.generic]]:
    """The class indices of a state, by torch: (1, H, W) or (1,)."""
    mask, scores = ReadMask(model, config.height, config.width), ReadScores(model)

    def read(z: State) -> NDArray[np.generic]:
        answer = mask(z)[0] if model.config.task == "segmentation" else scores(z).argmax(dim=1)
        return np.asarray(answer.numpy())

    return read


@torch.no_grad()
def converge(
    model: MDEQ,
    inject: Inject,
    readout: Callable[[State], NDArray[np.generic]],
    image: NDArray[np.uint8],
) -> Expected:
    """The equilibrium of one image: Anderson for long, best iterate."""
    u = inject(torch.from_numpy(image[None]))
    goal = solve(
        model.bind(u), model.zero_state(u), Anderson(5), REFERENCE_EVALUATIONS, REFERENCE_TOL, True
    )
    return Expected(u, goal.value, readout(goal.value), float(goal.residual))


@torch.no_grad()
def compare(
    model: MDEQ,
    readout: Callable[[State], NDArray[np.generic]],
    solver: Solver,
    session: ort.InferenceSession,
    evaluations: int,
    image: NDArray[np.uint8],
    goal: Expected,
    best: bool,
) -> RungParity:
    """One rung on one image, from both starts that a device knows.

    The gate needs the warm one too: the first convolutions of f see nothing at a state of zero, and
    a fault in them would pass. The solver gap is the cold start's.
    """
    scales = len(goal.reference)
    names = [OUTPUT, RESIDUAL, *state_names(scales, "next_state")]
    state_errors, residual_errors, agreements = [], [], []
    for start in (goal.reference, model.zero_state(goal.u)):  # the cold one last
        expected = solve(model.bind(goal.u), start, solver, evaluations, best=best)
        states_in = (z.numpy() for z in start)
        feeds = {IMAGE: image[None], **dict(zip(state_names(scales), states_in, strict=True))}
        answer, residual, *states = session.run(names, feeds)
        answer = answer if model.config.task == "segmentation" else answer.argmax(axis=1)
        state_errors += [
            float(np.abs(found - want.numpy()).max())
            for found, want in zip(states, expected.value, strict=True)
        ]
        wanted = float(expected.residual)
        # At the equilibrium itself the residual is rounding: compare it with what matters.
        residual_errors.append(abs(float(residual[0]) - wanted) / max(wanted, REFERENCE_TOL))
        agreements.append(float((answer == readout(expected.value)).mean()))
    return RungParity(
        evaluations=evaluations,
        state_max_abs=float(np.max(state_errors)),
        residual_max_rel=float(np.max(residual_errors)),
        answer_agreement=float(np.min(agreements)),
        solver_gap_state=distance(states, goal.reference),
        solver_gap_agreement=float((answer == goal.reference_answer).mean()),
        residual=float(residual[0]),
    )


def distance(states: Sequence[NDArray[np.float32]], reference: State) -> float:
    """``||z - z*|| / ||z*||`` over all scales."""
    difference = sum(
        float(np.square(z - r.numpy()).sum()) for z, r in zip(states, reference, strict=True)
    )
    return float(np.sqrt(difference / sum(float(r.square().sum()) for r in reference)))


def combine(evaluations: int, found: list[RungParity]) -> RungParity:
    """Worst case of what the gate judges, mean of what it reports."""
    return RungParity(
        evaluations=evaluations,
        state_max_abs=float(np.max([r.state_max_abs for r in found])),
        residual_max_rel=float(np.max([r.residual_max_rel for r in found])),
        answer_agreement=float(np.mean([r.answer_agreement for r in found])),
        solver_gap_state=float(np.mean([r.solver_gap_state for r in found])),
        solver_gap_agreement=float(np.mean([r.solver_gap_agreement for r in found])),
        residual=float(np.mean([r.residual for r in found])),
    )
