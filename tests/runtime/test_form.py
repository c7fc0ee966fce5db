"""Graphs or parts: weights are held once, whatever number of evaluations a policy asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streams import CALM, assert_same
from streams import blobs as picture

from mdeq_runtime import FixedIterations, Model, SessionSettings, UntilTolerance
from mdeq_runtime.backends.ort_cpu import OrtCpuBackend
from mdeq_runtime.solving.form import saves_memory

# The bundle has rungs of 1, 2 and 4 evaluations.
PARTS = {"inject", "advance-k1", "readout"}


def fixed(n: int, cold: int | None = None) -> SessionSettings:
    return replace(CALM, policy=FixedIterations(n, cold))


def loaded(model: Model) -> set[str]:
    return {Path(name).stem for name in model.backend.sessions}


@pytest.mark.parametrize(
    ("settings", "graphs"),
    [
        (fixed(1), {"solve-k1"}),
        (fixed(4), {"solve-k4"}),
        (fixed(2, cold=4), {"solve-k2"}),  # a cold start repeats the warm one's graph
        (fixed(2, cold=3), PARTS),  # would be two graphs
        (fixed(7), PARTS),  # would be three
        (CALM, {"solve-k2"}),
        (replace(CALM, policy=UntilTolerance()), PARTS),
    ],
)
def test_the_weights_are_in_one_graph_only(
    segmenter_bundle: Path, settings: SessionSettings, graphs: set[str]
) -> None:
    with Model(segmenter_bundle, settings, threads=1) as model:
        model.session()(picture(0))
        assert loaded(model) == graphs


def test_parts_answer_what_the_graphs_would(segmenter_bundle: Path) -> None:
    """Seven evaluations in parts, and four, two and one in graphs."""
    with Model(segmenter_bundle, fixed(7), threads=1) as model:
        parts = model.session()(picture(0))
    with Model(segmenter_bundle, fixed(4), threads=1) as model:
        session = model.session()
        session(picture(0))
        session.use(FixedIterations(2))
        session(picture(0))
        session.use(FixedIterations(1))
        graphs = session(picture(0))
        assert loaded(model) == {"solve-k4", "solve-k2", "solve-k1"}
    assert parts.iterations == 7
    assert_same(parts, graphs)


def test_where_parts_are_something_else_graphs_stay(segmenter_bundle: Path) -> None:
    """Rungs of another precision than the parts; no parts; a backend that says no."""

    class Shares:
        """A backend whose graphs do not hold copies."""

    with Model(segmenter_bundle, threads=1) as model:
        profile, policy = model.bundle.profile(model.profile), FixedIterations(7)
        assert saves_memory(model.backend, profile, policy, carry=True)
        assert not saves_memory(Shares(), profile, policy, carry=True)  # type: ignore[arg-type]
        assert not saves_memory(model.backend, replace(profile, parts=()), policy, carry=True)
        (parts,) = profile.parts
        other = replace(profile, parts=(replace(parts, precision="fp16"),))
        assert not saves_memory(model.backend, other, policy, carry=True)


def test_under_a_memory_limit_the_plan_decides(segmenter_bundle: Path) -> None:
    with Model(segmenter_bundle, fixed(7), threads=1, memory_limit="8GiB") as model:
        model.session()(picture(0))
        assert loaded(model) == {"solve-k4", "solve-k2", "solve-k1"}


def test_a_graph_that_outgrows_its_parts_makes_way_for_them(segmenter_bundle: Path) -> None:
    with Model(segmenter_bundle, threads=1) as model:
        backend, policy = model.backend, FixedIterations(4)
        assert isinstance(backend, OrtCpuBackend)
        profile = backend.profile
        assert not saves_memory(backend, profile, policy, carry=False), "a small one stays"
        graph = "graphs/ort-cpu/solve-k4.onnx"
        costs = profile.costs | {graph: replace(profile.costs[graph], packed=9_000_000)}
        backend.profile = replace(profile, costs=costs)
        assert saves_memory(backend, backend.profile, policy, carry=False)
        backend.profile = replace(profile, costs={})  # of an older bundle, which does not say
        assert not saves_memory(backend, backend.profile, policy, carry=False)
