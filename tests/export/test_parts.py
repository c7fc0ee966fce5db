"""The parts of a solve, driven by a host loop, against the one graph that holds them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from writing import write

from edge_mdeq.bundle import Profile, Rung
from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers import Anderson, Broyden, FixedPoint, Solver
from edge_mdeq.weights import load_weights
from mdeq_export.compose import Pieces
from mdeq_export.images import scene
from mdeq_export.pieces import trace_pieces

Feeds = dict[str, NDArray[Any]]

SOLVERS: dict[str, Solver] = {
    "fixed point": FixedPoint(),
    "damped": FixedPoint(0.7),
    "anderson": Anderson(3),
    "mixed": Anderson(2, beta=0.8),
    "broyden": Broyden(2),
}
COUNTS = (1, 2, 4)
SCALES = 3


@dataclass
class Written:
    """The graphs of one profile, as a host sees them."""

    root: Path
    profile: Profile
    pieces: Pieces
    sessions: dict[str, ort.InferenceSession] = field(default_factory=dict)

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """One graph; what it takes and is not given is zero."""
        if graph not in self.sessions:
            path = str(self.root / graph)
            self.sessions[graph] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        session = self.sessions[graph]
        given = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()} | feeds
        given = {i.name: given[i.name] for i in session.get_inputs()}
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, given), strict=True))

    def advance(self, count: int, feeds: Feeds) -> Feeds:
        return self.run(graph_of(self.profile.parts[0].advance, count), feeds)

    def solve(self, count: int, feeds: Feeds) -> Feeds:
        return self.run(graph_of(self.profile.rungs, count), feeds)

    def inject(self, image: NDArray[np.uint8]) -> Feeds:
        return self.run(self.profile.parts[0].inject, {"image": image[None]})

    def readout(self, states: Feeds) -> Feeds:
        return self.run(self.profile.parts[0].readout, states)


def graph_of(rungs: tuple[Rung, ...], count: int) -> str:
    return next(rung.graph for rung in rungs if rung.evaluations == count)


def carried(answer: Feeds, history: bool = True) -> Feeds:
    """What the next call starts from, under the names of the inputs."""
    kinds = ("next_state", "next_history") if history else ("next_state",)
    return {n.removeprefix("next_"): v for n, v in answer.items() if n.startswith(kinds)}


def values(answer: Feeds) -> Feeds:
    """f at the evaluated iterate, under the names of the readout's inputs."""
    own = "value" if "value_0" in answer else "next_state"
    return {f"state_{i}": answer[f"{own}_{i}"] for i in range(SCALES)}


def distance(found: Feeds, expected: Feeds) -> float:
    """Relative, over all scales."""
    names = [f"state_{i}" for i in range(SCALES)]
    gap = sum(float(np.square(found[n] - expected[n]).sum()) for n in names)
    size = sum(float(np.square(expected[n]).sum()) for n in names)
    return float((gap / size) ** 0.5)


@pytest.fixture(scope="module", params=SOLVERS)
def written(
    request: pytest.FixtureRequest,
    segmenter_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Written:
    model, card = load_weights(segmenter_weights)
    pieces = trace_pieces(model.freeze(), card.input, SOLVERS[request.param])
    folder = tmp_path_factory.mktemp("parts")
    return Written(folder, write(pieces, COUNTS, folder), pieces)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return scene(5, 64, 96)


@pytest.fixture(params=["cold", "warm"])
def start(request: pytest.FixtureRequest, written: Written, image: NDArray[np.uint8]) -> Feeds:
    """Zeros, or the state that a solve of another picture ended in."""
    if request.param == "cold":
        return {}
    other = written.solve(4, {"image": scene(6, 64, 96)[None]})
    return carried(other, history=False)


@pytest.mark.parametrize("calls", [(1, 1, 1, 1), (2, 2), (1, 2, 1), (4,)])
def test_calls_that_carry_the_history_are_one_solve(
    written: Written, image: NDArray[np.uint8], start: Feeds, calls: tuple[int, ...]
) -> None:
    whole = written.solve(4, {"image": image[None]} | start)
    injection, given = written.inject(image), start
    for count in calls:
        answer = written.advance(count, injection | given)
        given = carried(answer)
    assert distance(values(answer), carried(whole)) < 1e-6
    np.testing.assert_allclose(answer["residual"], whole["residual"], rtol=1e-5)
    read = written.readout(values(answer))
    assert (read["output"] == whole["output"]).mean() > 0.9999
    np.testing.assert_allclose(read["confidence"], whole["confidence"], atol=1e-5)


def test_calls_that_restart_the_history_are_a_chain_of_solves(
    written: Written, image: NDArray[np.uint8], start: Feeds
) -> None:
    first = written.solve(2, {"image": image[None]} | start)
    whole = written.solve(2, {"image": image[None]} | carried(first))
    injection = written.inject(image)
    answer = written.advance(2, injection | start)
    answer = written.advance(2, injection | values(answer))  # and no history
    assert distance(values(answer), carried(whole)) < 1e-6


def test_the_history_matters(written: Written, image: NDArray[np.uint8]) -> None:
    """Otherwise carrying it and leaving it out would be the same, and tests of it worth nothing."""
    injection = written.inject(image)
    answer = written.advance(2, injection)
    on = written.advance(2, injection | carried(answer))
    anew = written.advance(2, injection | carried(answer, history=False))
    has_history = any(name.startswith("next_history") for name in answer)
    assert (distance(values(on), values(anew)) > 1e-5) == has_history
    assert has_history == (len(written.pieces.step.inputs) > 2 * SCALES)


def test_every_part_is_named_and_alone(written: Written) -> None:
    (parts,) = written.profile.parts
    assert [rung.evaluations for rung in parts.advance] == list(COUNTS)
    assert set(parts.pieces) == set(written.pieces.all())
    assert len(set(written.profile.files)) == len(written.profile.files)
    present = {p.relative_to(written.root).as_posix() for p in written.root.rglob("*.*")}
    assert present == set(written.profile.files)


def test_a_line_search_has_no_history_to_carry(segmenter_weights: Path) -> None:
    model, card = load_weights(segmenter_weights)
    with pytest.raises(ConfigError, match="line search"):
        trace_pieces(model.freeze(), card.input, Broyden(line_search=True))
