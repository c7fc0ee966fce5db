"""How solvers converge on given weights, and which one to export: found by measuring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from edge_mdeq.bundle import SolverCurve
from edge_mdeq.config import InputConfig
from edge_mdeq.errors import ConfigError, ConvergenceError
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import make_solver
from edge_mdeq.spectral import spectral_radius
from mdeq_export.answers import Answer
from mdeq_export.reference import REFERENCE_SETTINGS, REFERENCE_SOLVER, TorchReference

__all__ = [
    "CANDIDATES",
    "Choice",
    "Goal",
    "choose",
    "equilibria",
    "largest_radius",
    "measure",
    "reference_curve",
]

Progress = Callable[[str], None]

CANDIDATES: tuple[tuple[str, dict[str, float]], ...] = (
    ("fixed_point", {}),
    ("fixed_point", {"tau": 0.7}),
    ("anderson", {"m": 2.0}),
    ("anderson", {"m": 3.0}),
    ("anderson", {"m": 5.0}),
    ("broyden", {"m": 4.0}),
    ("broyden", {"m": 8.0}),
)
LIMIT = 26  # evaluations; the published solves take as many
DIVERGED = 1e9  # the relative residual that stands for all larger ones
RADIUS_IMAGES = 2
RADIUS_ITERATIONS = 60

# What a pass over the state costs, in floating-point operations per element. It waits for memory
# where a convolution computes: ONNX Runtime does some 200 GFLOP/s of convolution on two cores and
# passes over three tensors at some 2 G elements/s.
PASS = 64


@dataclass(frozen=True)
class Goal:
    """When N evaluations are enough.

    Attributes:
        tol: largest relative residual of any image; None asks for none.
        max_drop: largest share of pixels (or images) with another class than the converged solve,
            which bounds what accuracy can fall by; None asks for none.
    """

    tol: float | None = 1e-2
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.tol is not None and not 0 < self.tol < 1:
            raise ConfigError(
                f"f_tol is {self.tol:g}, must be in (0, 1): relative to a cold start's residual"
            )
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise ConfigError(
                f"max_metric_drop is {self.max_drop:g}, must be a share in [0, 1), such as 0.01"
            )

    def met(self, curve: SolverCurve) -> int | None:
        """The fewest evaluations after which ``curve`` is good enough, and stays so."""
        enough = None
        for count in range(len(curve.worst), 0, -1):
            residual, drop = curve.worst[count - 1], curve.disagreement[count - 1]
            # Written so that NaN is not enough.
            if self.tol is not None and not residual <= self.tol:
                break
            if self.max_drop is not None and not drop <= self.max_drop:
                break
            enough = count
        return enough

    def __str__(self) -> str:
        parts = []
        if self.tol is not None:
            parts.append(f"a residual of {self.tol:g}")
        if self.max_drop is not None:
            parts.append(f"{self.max_drop:.2%} of other answers than the converged solve")
        return " and ".join(parts)


@dataclass(frozen=True)
class Choice:
    """The cheapest solver that meets the goal.

    Attributes:
        curve: of the solver.
        evaluations: N that it needs.
        curves: of all that were measured, the chosen one first.
    """

    curve: SolverCurve
    evaluations: int
    curves: tuple[SolverCurve, ...]


def equilibria(model: MDEQ, config: InputConfig, images: NDArray[np.uint8]) -> list[Answer]:
    """The converged answer to each of ``images`` (count, H, W, 3) RGB, whatever the solver.

    Args:
        model: from ``MDEQ.freeze()``.
        config: its input.
        images: RGB uint8 at the input's size.
    """
    reference = TorchReference(model, config, make_solver("anderson"), best=True)
    return [reference.bind(image[None]).converged() for image in images]


def measure(
    model: MDEQ,
    config: InputConfig,
    solver: str,
    settings: dict[str, float],
    images: NDArray[np.uint8],
    goals: Sequence[Answer],
    best: bool = False,
    limit: int = LIMIT,
) -> SolverCurve:
    """The curve of one solver on ``images`` (count, H, W, 3) RGB, one at a time and cold.

    Args:
        model: from ``MDEQ.freeze()``.
        config: its input.
        solver, settings: as ``make_solver`` takes them.
        images: RGB uint8 at the input's size.
        goals: from ``equilibria``.
        best: measure the best iterate so far, not the last.
        limit: evaluations.
    """
    reference = TorchReference(model, config, make_solver(solver, **settings), best)
    residuals, others = [], []
    for image, goal in zip(images, goals, strict=True):
        points = [
            (float(answer.residual[0]), float((answer.classes != goal.classes).mean()))
            for answer in reference.bind(image[None]).course(limit)
        ]
        residuals.append([residual for residual, _ in points])
        others.append([share for _, share in points])
    shares = recorded(np.array(others).mean(axis=0))
    return curve_of(model, config, solver, settings, np.array(residuals), shares)


def reference_curve(model: MDEQ, config: InputConfig, goals: Sequence[Answer]) -> SolverCurve:
    """How the solves went whose ends are ``goals``, from ``equilibria`` of the same model.

    One that ended before the others keeps its residual.
    """
    traces = [goal.trace[:, 0] for goal in goals if goal.trace is not None]
    length = max(len(trace) for trace in traces)
    rates = np.stack([np.pad(trace, (0, length - len(trace)), mode="edge") for trace in traces])
    return curve_of(model, config, REFERENCE_SOLVER, REFERENCE_SETTINGS, rates, ())


def curve_of(
    model: MDEQ,
    config: InputConfig,
    solver: str,
    settings: dict[str, float],
    rates: NDArray[np.float64],
    disagreement: tuple[float, ...],
) -> SolverCurve:
    """A curve of relative residuals ``rates`` (images, evaluations)."""
    return SolverCurve(
        solver=solver,
        settings=settings,
        cost=round(1 + overhead(model, config, solver, settings), 3),
        residual=recorded(rates.mean(axis=0)),
        worst=recorded(rates.max(axis=0)),
        disagreement=disagreement,
    )


def recorded(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Four digits of each; a manifest holds neither NaN nor infinity, which become ``DIVERGED``."""
    finite = np.nan_to_num(values, nan=DIVERGED, posinf=DIVERGED)
    return tuple(float(f"{value:.4g}") for value in np.minimum(finite, DIVERGED))


def choose(curves: Sequence[SolverCurve], goal: Goal, radius: float) -> Choice:
    """The cheapest of ``curves`` that meets ``goal``; of equally cheap ones the first.

    Args:
        curves: of every candidate.
        goal: what is asked for.
        radius: the spectral radius, for the message.

    Raises:
        ConvergenceError: none does.
    """
    met = [(goal.met(curve), curve) for curve in curves]
    able = [(count * curve.cost, count, curve) for count, curve in met if count is not None]
    if not able:
        raise ConvergenceError(refusal(curves, goal, radius))
    _, count, chosen = min(able, key=lambda item: item[0])
    others = tuple(curve for curve in curves if curve is not chosen)
    return Choice(chosen, count, (chosen, *others))


def refusal(curves: Sequence[SolverCurve], goal: Goal, radius: float) -> str:
    """Why nothing is exported, and what to do."""
    asked = "worst" if goal.tol is not None else "disagreement"
    nearest = min(curves, key=lambda curve: getattr(curve, asked)[-1])
    limit = len(curves[0].worst)
    if all(curve.worst[-1] >= 1 for curve in curves):
        found = f"the iteration diverges under every solver within {limit} evaluations"
    else:
        found = (
            f"no solver meets {goal} within {limit} evaluations; {nearest.solver} comes nearest, "
            f"with a residual of {nearest.worst[-1]:.2g} and "
            f"{nearest.disagreement[-1]:.2%} of other answers"
        )
    return (
        f"{found} (spectral radius {radius:.2f}; below 1 the plain iteration converges). Shape the "
        "weights with `edge-mdeq tune`, train with more Jacobian regularisation, ask for less "
        "(--f-tol, --max-metric-drop), or name a solver to export all the same"
    )


def largest_radius(
    model: MDEQ, config: InputConfig, images: NDArray[np.uint8], goals: Sequence[Answer]
) -> float:
    """The largest spectral radius of f at the equilibria of the first of ``images``."""
    reference = TorchReference(model, config, make_solver("fixed_point"), best=False)
    radii = []
    for image, goal in list(zip(images, goals, strict=True))[:RADIUS_IMAGES]:
        u = reference.bind(image[None]).u
        with torch.no_grad():
            f = model.bind(u)
            states = tuple(torch.from_numpy(z) for z in goal.states)
            radii.append(float(spectral_radius(f, states, RADIUS_ITERATIONS).value))
    return float(np.max(radii))


def overhead(model: MDEQ, config: InputConfig, solver: str, settings: dict[str, float]) -> float:
    """What a solver's step costs beside an evaluation of f, estimated by counting."""
    m = int(settings.get("m", {"anderson": 5, "broyden": 8}.get(solver, 0)))
    passes = {
        "fixed_point": 0 if settings.get("tau", 1.0) == 1.0 else 3,
        "anderson": m * (m + 1) + 3 * m,  # inner products of all pairs, differences, the mix
        "broyden": 6 * m + 12,  # two products with B, and the new terms
    }[solver]
    shapes = model.config.state_shapes(1, config.height, config.width)
    elements = sum(int(np.prod(shape)) for shape in shapes)
    return passes * elements * PASS / cell_flops(model, config)


@torch.no_grad()
def cell_flops(model: MDEQ, config: InputConfig) -> float:
    """Floating-point operations of one evaluation of f, counted by torch without computing."""
    cell = copy.deepcopy(model.cell).to("meta")
    shapes = model.config.state_shapes(1, config.height, config.width)
    u, *z = (torch.empty(shape, device="meta") for shape in (shapes[0], *shapes))
    with FlopCounterMode(display=False) as counter:
        cell(tuple(z), u)
    return float(counter.get_total_flops())
