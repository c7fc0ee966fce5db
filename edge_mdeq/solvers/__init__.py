"""Fixed-point solvers for z = f(z), each written once: training runs them, export unrolls them.

A solver is two pure functions over a state whose structure never depends on data:
``init(z0)`` and ``advance(state, fz)``, where ``fz`` is f evaluated at ``state.z``. A history that
``init`` starts grows until it is full; ``init_full`` starts one that has its full size at once, so
that one graph can carry it from call to call. Evaluating f, measuring residuals, stopping and
keeping the best iterate are done around it: in ``driver``, whose memory is ``record``.
"""

from edge_mdeq.solvers.anderson import Anderson
from edge_mdeq.solvers.broyden import Broyden
from edge_mdeq.solvers.driver import STOP_MODES, Solution, Solver, SolverState, solve
from edge_mdeq.solvers.fixed_point import FixedPoint
from edge_mdeq.solvers.record import Status
from edge_mdeq.solvers.registry import SOLVERS, make_solver
from edge_mdeq.solvers.residual import relative_residual

__all__ = [
    "SOLVERS",
    "STOP_MODES",
    "Anderson",
    "Broyden",
    "FixedPoint",
    "Solution",
    "Solver",
    "SolverState",
    "Status",
    "make_solver",
    "relative_residual",
    "solve",
]
