"""What graphs take in ONNX Runtime on the CPU, predicted from what the manifest says of them.

Each figure is what a resident set grows by at its peak. The constants are upper bounds that were
fitted on ten bundles from 0.6 to 268 MB of weights; ``benchmarks/memory_plan.py`` measures others.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_mdeq.bundle import GraphCost
from mdeq_runtime.backends import Footprint

__all__ = ["predict"]

LIBRARY = 18_000_000  # its code that the first graph needs, and what it allocates once
PER_NODE = 5_400  # a node's kernel and its place in the graph
# Of the values that are alive at once. Convolutions keep them in blocks of channels, so there are
# copies in both orders; and what an arena got it keeps in pieces.
VALUES = 2.1
# Of the largest weight: while a session is made it is there in the file's order, in that of the
# convolution, and on its way into the arena.
LOADING = 2.2
# A node packs its integer kernel for itself, whoever else has the same one; output channels are
# filled up to a multiple of 16.
PACKED = 1.05


def predict(costs: Sequence[GraphCost], cached: bool) -> Footprint:
    """What sessions on these graphs take together; they take turns.

    Args:
        costs: of each graph.
        cached: whether they come from a graph cache, their weights in order.
    """
    values = VALUES * max(cost.values for cost in costs)
    loading = 0.0 if cached else LOADING * max(cost.largest_weight for cost in costs)
    return Footprint(
        library=LIBRARY,
        graphs=sum(
            cost.weights + int(PACKED * cost.packed) + PER_NODE * cost.nodes for cost in costs
        ),
        working=int(max(values, loading)),
    )
