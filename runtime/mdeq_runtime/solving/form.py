"""Whether a fixed number of evaluations runs as whole graphs or in parts, if nobody has said."""

from __future__ import annotations

from edge_mdeq.bundle import Profile
from mdeq_runtime.backends import Backend, CopiesWeights
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.solving.fixed import fixed_chains

__all__ = ["saves_memory"]


def saves_memory(backend: Backend, profile: Profile, policy: FixedIterations, carry: bool) -> bool:
    """Whether to solve in parts, so that weights are held once.

    A second graph holds all weights a second time, and a chain of graphs pays for stem and readout
    with each. One graph of any length stays one: its further nodes take 1 MB an evaluation, but
    in parts eight evaluations of ImageNet-small take 40% longer (``benchmarks/versus.py``). Not
    where the weights are shared, where a graph returns its best iterate (parts know the last one),
    or where it mixes precisions.

    Raises:
        SessionError: the bundle's rungs cannot run the policy.
    """
    warm, cold = fixed_chains(profile.rungs, policy, carry)
    if not profile.parts or not isinstance(backend, CopiesWeights) or not backend.parts_will_do:
        return False
    rungs = {rung.graph: rung for rung in (*warm, *cold)}
    precision = profile.parts[0].precision
    if any(step.precision != precision for rung in rungs.values() for step in rung.steps):
        return False
    return len(rungs) > 1
