"""What the benchmark calls a frame, its graphs, and the same graphs alone."""

from __future__ import annotations

from pathlib import Path

import loop_overhead as bench
import numpy as np
import pytest

from mdeq_runtime import FixedIterations, Model, UntilTolerance
from mdeq_runtime.policies import Policy

pytestmark = pytest.mark.clock

PARTS = ["inject", "advance-k1", "advance-k1", "advance-k1", "readout"]


@pytest.mark.parametrize(
    ("policy", "graphs"),
    [
        (UntilTolerance(bench.NEVER, 3), PARTS),
        (FixedIterations(2), ["solve-k2"]),
        (FixedIterations(3), PARTS),  # two graphs would hold the weights twice
    ],
)
def test_a_frame_is_its_graphs_and_what_lies_between(
    segmenter_bundle: Path, policy: Policy, graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    bare = bench.bare

    def watched(session: object, runs: list[str]) -> float:
        ran.append([Path(run).stem for run in runs])
        return bare(session, runs)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "bare", watched)
    with Model(segmenter_bundle, threads=1) as model:
        rows = bench.measure(model, policy, model.manifest.input.size, 6)
    assert ran == [graphs] * (6 + bench.WARM_UP)
    taken, inside, alone, counts = rows.T
    assert rows.shape == (6, 4)
    assert (taken > inside).all()
    assert (inside > 0).all()
    assert 0.2 < np.median(alone / inside) < 5
    assert set(counts) == {policy.n if isinstance(policy, FixedIterations) else 3}
