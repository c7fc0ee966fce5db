"""Fixed-point solvers for z = f(z), each written once: training runs them, export unrolls them.

A solver is two pure functions over a state whose structure never depends on data:
``init(z0)`` and ``advance(state, fz)``, where ``fz`` is f evaluated at ``state.z``. Evaluating f,
measuring residuals, stopping and keeping the best iterate are done around it, in ``driver``.
"""

from edge_mdeq.solvers.anderson import Anderson
from edge_mdeq.solvers.driver import Solution, Solver, SolverState, Status, solve
from edge_mdeq.solvers.fixed_point import FixedPoint
from edge_mdeq.solvers.registry import SOLVERS, make_solver
from edge_mdeq.solvers.residual import relative_residual

__all__ = [
    "SOLVERS",
    "Anderson",
    "FixedPoint",
    "Solution",
    "Solver",
    "SolverState",
    "Status",
    "make_solver",
    "relative_residual",
    "solve",
]
