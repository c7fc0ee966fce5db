"""What integers may cost: of the state, and of the task's metric.

The bound on the state is for refined rungs, which promise the equilibrium of single precision. A
state within a hundredth of the converged one answers like it: where single precision gets nearer
than that, a refined solve need not follow, since its last evaluations only shrink the error that
integers left by the spectral radius each.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_mdeq.bundle import Verification
from edge_mdeq.errors import ParityError

__all__ = [
    "METRIC_DROP",
    "REFINED_RATIO",
    "bound",
    "require_bearable",
    "require_metric",
]

REFINED_RATIO = 1.1  # of the state error in single precision after as many evaluations
NEAR = 0.01  # of the converged state's norm
METRIC_DROP = {"refined": 0.005, "int8": 0.01}


def bound(error: float, share: float = 1.0) -> float:
    """The state error up to which a refined solve is as good as one in single precision.

    ``share`` of what is allowed beyond that one's own error.
    """
    return max((1 + share * (REFINED_RATIO - 1)) * error, NEAR)


def require_bearable(report: Verification) -> None:
    """Hold every refined rung to its bound.

    Raises:
        ParityError: it ends further from the converged state than it may.
    """
    single = {
        (rung.profile, rung.evaluations): rung.solver_gap_state
        for rung in report.rungs
        if rung.precision == "fp32"
    }
    for rung in report.rungs:
        base = single.get((rung.profile, rung.evaluations))
        if rung.precision != "refined" or base is None:
            continue
        if not rung.solver_gap_state <= bound(base):  # NaN fails
            raise ParityError(
                f"{rung.profile}: {rung.evaluations} refined evaluations end "
                f"{rung.solver_gap_state:.2e} from the converged state, those in fp32 {base:.2e}; "
                f"allowed is {bound(base):.2e}. Calibrate on more of the images that it will see "
                "(--data), give --refine 2, or leave out --int8; nothing was written"
            )


def require_metric(scores: Mapping[str, float]) -> None:
    """Hold int8 and refined rungs to the metric of single precision.

    Args:
        scores: by precision, of as many evaluations.

    Raises:
        ParityError: one lost too much.
    """
    for precision, allowed in METRIC_DROP.items():
        if precision not in scores:
            continue
        drop = scores["fp32"] - scores[precision]
        if not drop <= allowed:
            advice = "give --refine 2, or calibrate" if precision == "refined" else "calibrate"
            raise ParityError(
                f"the metric is {scores[precision]:.4f} in {precision} and {scores['fp32']:.4f} in "
                f"fp32, {drop:.4f} less; allowed is {allowed}. To mend it, {advice} on more of the "
                "images that it will see (--data), or leave out --int8; nothing was written"
            )
