"""How one frame is solved under a policy: in one graph, or rung by rung until it is enough.

A solve is warm if it starts at the state that the last one left, and cold if it starts at zero. A
warm one that goes wrong is done again from zero, and the answer says why.
"""

from __future__ import annotations

from edge_mdeq.bundle import Profile
from edge_mdeq.errors import SessionError
from mdeq_runtime.backends import Backend
from mdeq_runtime.policies import FixedIterations, Policy
from mdeq_runtime.solving.base import NON_FINITE, Solved, Solver
from mdeq_runtime.solving.fixed import Fixed, fixed_chains, fixed_counts
from mdeq_runtime.solving.fixed_parts import FixedParts
from mdeq_runtime.solving.form import saves_memory
from mdeq_runtime.solving.stepped import Stepped

__all__ = ["NON_FINITE", "Solved", "Solver", "fixed_chains", "make_solver"]


def make_solver(
    backend: Backend,
    profile: Profile,
    policy: Policy,
    carry: bool,
    restart_above: float,
    in_parts: bool | None = None,
) -> Solver:
    """The solver for a policy, its graphs loaded.

    Args:
        backend: runs the graphs of ``profile``.
        profile: the bundle's, for that backend.
        policy: when to stop.
        carry: whether any solve may start from the last one's state.
        restart_above: residual above which a warm start is given up: after the solve with a fixed
            number of evaluations, after the first evaluation with any other policy.
        in_parts: whether a fixed number of evaluations is made by repeating one as well; None:
            where that saves memory, see ``form``.

    Raises:
        SessionError: counts that cannot be made of the bundle's rungs, or a policy that needs a
            solve in parts, which the bundle lacks.
    """
    if isinstance(policy, FixedIterations) and in_parts is None:
        in_parts = saves_memory(backend, profile, policy, carry)
    if isinstance(policy, FixedIterations) and not in_parts:
        return Fixed(backend, profile.rungs, policy, carry, restart_above)
    if not profile.parts:
        raise SessionError(
            f"{type(policy).__name__} needs the solve in parts (inject, advance, readout), which "
            "this bundle lacks; use FixedIterations, or export it again"
        )
    if isinstance(policy, FixedIterations):
        warm, cold = fixed_counts(profile.rungs, policy)
        return FixedParts(backend, profile.parts[0], warm if carry else cold, cold, restart_above)
    return Stepped(backend, profile.parts[0], policy, restart_above)
