"""What an export was found to be: the record of the parity gate, part of the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from edge_mdeq.errors import ConfigError

__all__ = ["RungParity", "SolverCurve", "Tolerance", "Verification"]


@dataclass(frozen=True)
class Tolerance:
    """What the parity gate allows, from both starts and on every image.

    Raises ConfigError for what no graph could fail, or none could meet.

    Attributes:
        atol: largest difference of any element of a state, the residual, scores or a confidence.
        rtol: largest ``||graph - torch|| / ||torch||`` over all scales.
        min_agreement: smallest share of pixels (or images) with the same class.
    """

    atol: float = 1e-3
    rtol: float = 1e-4
    min_agreement: float = 0.999

    def __post_init__(self) -> None:  # written so that NaN is refused
        if not 0 <= self.atol < math.inf:
            raise ConfigError(f"atol is {self.atol:g}, must be 0 or positive, such as 1e-3")
        if not 0 <= self.rtol < 1:
            raise ConfigError(f"rtol is {self.rtol:g}, must be in [0, 1), such as 1e-4")
        if not 0 <= self.min_agreement <= 1:
            raise ConfigError(
                f"min_agreement is {self.min_agreement:g}, must be a share in [0, 1], such as 0.999"
            )


@dataclass(frozen=True)
class RungParity:
    """What the verification measured for one rung.

    Attributes:
        profile, precision, evaluations: which rung.
        state_max_abs: export error: largest absolute difference of any state element between the
            graph and the reference, same solver and N.
        state_rel: the same in norm, ``||graph - reference|| / ||reference||``.
        residual_max_rel: largest relative difference of the residuals, of 1e-3 where they are less.
        answer_agreement: share of pixels (or images) with the same class, graph against reference.
        solver_gap_state: ``||z_N - z*|| / ||z*||`` against the converged solve, mean over images.
        solver_gap_agreement: share of pixels (or images) with the class of the converged solve.
        residual: mean relative residual after N evaluations, cold.
        rounding: ``state_rel`` of torch in single precision against double, on the first image
            whose ``state_rel`` exceeds the tolerance; 0 if none does.
        step_rel: where ``rounding`` alone exceeds the tolerance, the solve is too sensitive to be
            compared as a whole: largest ``state_rel`` of a single step that starts from torch's
            state, on that image. The gate then judges this one.
        reference: "torch", or "parts" for a rung that was added without torch.
        outputs: largest absolute difference of every floating-point output of the graph, by its
            name: states, residual, and scores or a mask's confidence. Empty in older bundles.
    """

    profile: str
    precision: str
    evaluations: int
    state_max_abs: float
    state_rel: float
    residual_max_rel: float
    answer_agreement: float
    solver_gap_state: float
    solver_gap_agreement: float
    residual: float
    rounding: float = 0.0
    step_rel: float | None = None
    reference: Literal["torch", "parts"] = "torch"
    outputs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SolverCurve:
    """How a solver converges on these weights, from a cold start; entry k is of k + 1 evaluations.

    Attributes:
        solver, settings: as ``edge_mdeq.solvers.make_solver`` takes them.
        cost: of one evaluation with the solver's step, estimated; the plain iteration's is 1.
        residual: relative residual, mean over the images.
        worst: the largest of any image.
        disagreement: share of pixels (or images) with another class than the converged solve; empty
            for that one itself.
    """

    solver: str
    settings: dict[str, float]
    cost: float
    residual: tuple[float, ...]
    worst: tuple[float, ...]
    disagreement: tuple[float, ...]


@dataclass(frozen=True)
class Verification:
    """The parity gate: on what it ran, what it allowed, what it found.

    Attributes:
        images: how many images, and ``source`` which ("test://" are generated pictures).
        tolerances: what is allowed, by precision.
        reference_evaluations, reference_residual: how far the converged solve went.
        backend: what ran the graphs.
        rungs: one entry per rung.
        curves: one per solver that was measured, the exported one first.
        reference_curve: of the converged solve, with the lowest residual so far, as it returns the
            best iterate; None in older bundles.
        spectral_radius: of f's Jacobian at the equilibrium, the largest of the images looked at; at
            or above 1 the plain iteration need not converge.
    """

    images: int
    source: str
    tolerances: dict[str, Tolerance]
    reference_evaluations: int
    reference_residual: float
    backend: str
    rungs: tuple[RungParity, ...]
    curves: tuple[SolverCurve, ...] = ()
    reference_curve: SolverCurve | None = None
    spectral_radius: float | None = None
