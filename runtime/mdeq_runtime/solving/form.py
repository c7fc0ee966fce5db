"""Whether a fixed number of evaluations runs as whole graphs or in parts, if nobody has said."""

from __future__ import annotations

from edge_mdeq.bundle import Profile
from mdeq_runtime.backends import Backend, CopiesWeights, PredictsMemory
from mdeq_runtime.policies import FixedIterations
from mdeq_runtime.solving.fixed import fixed_chains

__all__ = ["saves_memory"]

WORTH_IT = 8_000_000  # bytes


def saves_memory(backend: Backend, profile: Profile, policy: FixedIterations, carry: bool) -> bool:
    """Whether to solve in parts, so that weights and nodes are held once.

    A second graph holds all weights a second time, and a chain of graphs pays for stem and readout
    with each. A single graph grows with its evaluations, by 1 MB each in ImageNet-small and by 11
    with integer kernels; parts take as long as it, or up to a fifth longer
    (``benchmarks/spinning.py``), so that it stays one while they would save little. Not where
    the weights are shared, where a graph returns its best iterate (parts know the last one), or
    where it mixes precisions.

    Raises:
        SessionError: the bundle's rungs cannot run the policy.
    """
    warm, cold = fixed_chains(profile.rungs, policy, carry)
    if not profile.parts or not isinstance(backend, CopiesWeights) or not backend.parts_will_do:
        return False
    rungs = {rung.graph: rung for rung in (*warm, *cold)}
    parts = profile.parts[0]
    if any(step.precision != parts.precision for rung in rungs.values() for step in rung.steps):
        return False
    if len(rungs) > 1:
        return True
    single = min(parts.advance, key=lambda rung: rung.evaluations)
    repeated = (parts.inject, single.graph, parts.readout)
    if not isinstance(backend, PredictsMemory) or not {*rungs, *repeated} <= profile.costs.keys():
        return False
    saved = backend.footprint(list(rungs)).graphs - backend.footprint(repeated).graphs
    return saved >= WORTH_IT
