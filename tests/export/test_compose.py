"""The composed graph against the torch solver that it unrolls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from writing import write_graphs

from edge_mdeq.config import ModelCard
from edge_mdeq.model import MDEQ
from edge_mdeq.solvers import Anderson, Broyden, FixedPoint, Solution, Solver, solve
from edge_mdeq.weights import load_weights
from mdeq_export.compose import Composer, Pieces, solve_model
from mdeq_export.images import scene
from mdeq_export.pieces import Inject, trace, trace_pieces
from mdeq_export.readouts import ReadMask

Feeds = dict[str, NDArray[Any]]

SOLVERS: dict[str, Solver] = {
    "fixed point": FixedPoint(),
    "damped": FixedPoint(0.7),
    "anderson": Anderson(3),
    "broyden": Broyden(2),
}
COUNTS = (1, 2, 4)
OPERATORS = {  # what TensorRT and ONNX Runtime both have; a new one should be a decision
    "Add", "ArgMax", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Exp",
    "InstanceNormalization", "Mul", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
    "Reshape", "Resize", "Sign", "Sqrt", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
BROYDEN_OPERATORS = {"Abs", "Greater", "Min", "Neg", "Reciprocal", "Split", "Where"}


@dataclass
class Unrolled:
    """A model, its card and its graphs for one solver."""

    model: MDEQ
    card: ModelCard
    solver: Solver
    pieces: Pieces
    graphs: dict[int, Path]
    weights_file: Path
    sessions: dict[int, ort.InferenceSession] = field(default_factory=dict)

    def run(self, count: int, image: NDArray[np.uint8], states: Feeds | None = None) -> Feeds:
        if count not in self.sessions:
            self.sessions[count] = ort.InferenceSession(
                str(self.graphs[count]), providers=["CPUExecutionProvider"]
            )
        session = self.sessions[count]
        feeds = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
        feeds |= {"image": image[None]} | (states or {})
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, feeds), strict=True))

    @torch.no_grad()
    def torch_solve(self, count: int, image: NDArray[np.uint8]) -> Solution:
        """With the weights as they were trained: nothing folded."""
        u = Inject(self.model, self.card.input)(torch.from_numpy(image[None]))
        return solve(self.model.bind(u), self.model.zero_state(u), self.solver, count)


def states_of(answer: Feeds) -> Feeds:
    """The returned states under the names of the inputs."""
    prefix = "next_"
    return {n.removeprefix(prefix): v for n, v in answer.items() if n.startswith(prefix)}


def load_graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def unroll(weights: Path, solver: Solver, counts: tuple[int, ...], folder: Path) -> Unrolled:
    model, card = load_weights(weights)
    pieces = trace_pieces(model.freeze(), card.input, solver)
    graphs, weights_file = write_graphs(pieces, counts, folder)
    return Unrolled(model, card, solver, pieces, graphs, weights_file)


@pytest.fixture(scope="module", params=SOLVERS)
def unrolled(
    request: pytest.FixtureRequest,
    segmenter_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Unrolled:
    folder = tmp_path_factory.mktemp("unrolled")
    return unroll(segmenter_weights, SOLVERS[request.param], (*COUNTS, 26), folder)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return scene(5, 64, 96)


@pytest.mark.parametrize("count", COUNTS)
def test_the_graph_computes_what_torch_solves(
    unrolled: Unrolled, image: NDArray[np.uint8], count: int
) -> None:
    found, expected = unrolled.run(count, image), unrolled.torch_solve(count, image)
    for state, value in zip(states_of(found).values(), expected.value, strict=True):
        np.testing.assert_allclose(state, value.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["residual"], expected.residual.numpy(), rtol=1e-3)
    with torch.no_grad():
        mask, confidence = ReadMask(unrolled.model, 64, 96)(expected.value)
    assert (found["output"] == mask.numpy()).mean() >= 0.999
    np.testing.assert_allclose(found["confidence"], confidence.numpy(), atol=1e-4)


def test_the_answers_are_worth_comparing(unrolled: Unrolled, image: NDArray[np.uint8]) -> None:
    """Several classes, states that differ between N and between images, a residual that falls."""
    one, four = unrolled.run(1, image), unrolled.run(4, image)
    other = unrolled.run(4, scene(6, 64, 96))
    assert len(np.unique(four["output"])) > 1
    for name, state in states_of(four).items():
        assert np.abs(state - states_of(one)[name]).max() > 1e-3
        assert np.abs(state - states_of(other)[name]).max() > 1e-3
    assert four["residual"][0] < one["residual"][0]


def test_the_graphs_are_valid_and_plain(unrolled: Unrolled) -> None:
    for count, path in unrolled.graphs.items():
        onnx.checker.check_model(str(path), full_check=True)
        graph = load_graph(path)
        operators = {node.op_type for node in graph.node}
        known = OPERATORS | (BROYDEN_OPERATORS if isinstance(unrolled.solver, Broyden) else set())
        assert operators <= known, operators - known
        assert not any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for node in graph.node
            for attribute in node.attribute
        )
        names = [f"state_{i}" for i in range(3)]
        assert [value.name for value in graph.input] == ["image", *names]
        assert [value.name for value in graph.output] == [
            "output", "confidence", *(f"next_{name}" for name in names), "residual",
        ]  # fmt: skip
        used = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= used
        made = [name for node in graph.node for name in node.output]
        assert len(made) == len(set(made))
        convolutions = sum(node.op_type == "Conv" for node in graph.node)
        cell = sum(1 for m in unrolled.model.cell.modules() if isinstance(m, torch.nn.Conv2d))
        outside = convolutions - count * cell
        readout = 2 + 1  # first convolution: both fine scales, the coarse one; and the last
        assert outside == 3 + readout, "stem and transform, and the readout, exactly once"


def test_depth_costs_nodes_but_no_weights(tmp_path: Path, unrolled: Unrolled) -> None:
    _, alone = write_graphs(unrolled.pieces, (2,), tmp_path)
    assert alone.read_bytes() == unrolled.weights_file.read_bytes()
    sizes = {count: path.stat().st_size for count, path in unrolled.graphs.items()}
    assert sizes[2] < sizes[26] < sizes[2] + 1_000_000
    small, large = (
        {t.name for t in load_graph(unrolled.graphs[k]).initializer if t.external_data}
        for k in (2, 26)
    )
    assert small == large


def test_going_on_from_the_returned_states_is_one_longer_solve(
    unrolled: Unrolled, image: NDArray[np.uint8]
) -> None:
    first = unrolled.run(2, image)
    second, four = unrolled.run(2, image, states_of(first)), unrolled.run(4, image)
    undamped = unrolled.solver == FixedPoint()
    differences = [
        float(np.abs(state - states_of(four)[name]).max())
        for name, state in states_of(second).items()
    ]
    # A damped or accelerated solve goes on from f, not from the iterate that it would mix.
    assert (max(differences) < 1e-4) == undamped
    if undamped:
        np.testing.assert_allclose(second["residual"], four["residual"], rtol=1e-3)


def test_the_residual_belongs_to_the_last_iterate(
    unrolled: Unrolled, image: NDArray[np.uint8]
) -> None:
    """From the states that one evaluation starts from and gives, by the formula."""
    before = states_of(unrolled.run(4, image))
    found = unrolled.run(1, image, before)
    after = states_of(found)
    gap = sum(float(np.square(after[n].astype(np.float64) - before[n]).sum()) for n in before)
    size = sum(float(np.square(after[n].astype(np.float64)).sum()) for n in before)
    assert found["residual"][0] == pytest.approx((gap / size) ** 0.5, rel=1e-3)


def test_another_unroll_needs_only_the_pieces(
    unrolled: Unrolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = unrolled.pieces

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    nodes = [len(list(solve_model(pieces, count).graph)) for count in (4, 5, 6)]
    assert nodes[2] - nodes[1] == nodes[1] - nodes[0] > 0
    assert nodes == [len(list(solve_model(pieces, count).graph)) for count in (4, 5, 6)]


def test_a_piece_called_with_the_wrong_number_of_values_is_refused() -> None:
    x = ir.Value(name="x")
    piece = ir.Graph([x], [x], nodes=[], opset_imports={"": 21})
    pieces = Pieces(21, *[piece] * 2, (piece,), *[piece] * 3)
    with pytest.raises(ValueError, match="'c' takes 1 values, got 2"):
        Composer(pieces).call("c", [ir.Value(name="a"), ir.Value(name="b")])


@pytest.mark.parametrize(
    ("solver", "steps"),
    [(FixedPoint(), 1), (Anderson(1), 1), (Anderson(3), 3), (Broyden(1), 3), (Broyden(4), 6)],
)
def test_one_step_is_traced_per_history_length(
    segmenter_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    solver: Solver,
    steps: int,
) -> None:
    traced: list[object] = []

    def note(module: torch.nn.Module, args: object, dynamic: bool) -> ir.Graph:
        traced.append(module)
        return ir.Graph([], [], nodes=[], opset_imports={"": 21})

    monkeypatch.setattr("mdeq_export.pieces.trace", note)
    model, card = load_weights(segmenter_weights)
    pieces: Pieces = trace_pieces(model.freeze(), card.input, solver)
    assert len(pieces.advance) == steps
    assert len(traced) == 4 + steps, "the last one is that of a full history, too"


def test_the_exporter_reads_its_operators_once_and_is_left_as_it_was() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from mdeq_export.pieces import operators_read_once

    own = vars(ONNXRegistry)["from_torchlib"]
    found = []
    for _ in range(2):
        with operators_read_once():
            found += [ONNXRegistry().from_torchlib(opset_version=18) for _ in range(2)]
        assert vars(ONNXRegistry)["from_torchlib"] is own
    assert all(registry is found[0] for registry in found)
    assert found[0].opset_version == 18
    assert ONNXRegistry().from_torchlib(opset_version=18) is not found[0]


def test_so_does_torch_s_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._export.utils as utils

    from mdeq_export.pieces import operators_read_once

    calls: list[None] = []
    read = lambda: calls.append(None)  # noqa: E731
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", read)
    for _ in range(2):
        with operators_read_once():
            utils._collect_all_valid_cia_ops()
        assert utils._materialize_cpp_cia_ops is read
    assert len(calls) == 1


@pytest.mark.parametrize("owner", ["torch.onnx._internal.exporter", "torch.onnx.elsewhere"])
def test_a_torch_that_has_them_elsewhere_is_left_alone(owner: str) -> None:
    from mdeq_export.pieces import once

    with once(owner, "read_operators"):
        assert not hasattr(torch.onnx._internal.exporter, "read_operators")


def test_the_classifier_gives_torch_scores(classifier_weights: Path, tmp_path: Path) -> None:
    read: Callable[[Any], Any]
    graphs = unroll(classifier_weights, FixedPoint(), (3,), tmp_path)
    picture = scene(1, 32, 32)
    found, expected = graphs.run(3, picture), graphs.torch_solve(3, picture)
    read = graphs.model.readout
    with torch.no_grad():
        scores = torch.softmax(read(expected.value), dim=1).numpy()
    assert "confidence" not in found
    np.testing.assert_allclose(found["output"], scores, atol=1e-5)


# Broyden: its history grows, then it starts anew


@pytest.fixture(scope="module", params=[2, 4])
def broyden(
    request: pytest.FixtureRequest,
    segmenter_weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Unrolled:
    folder = tmp_path_factory.mktemp("broyden")
    return unroll(segmenter_weights, Broyden(request.param), (1, 2, 3, 6, 8), folder)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8])
def test_broyden_s_graph_is_torch_s_solve_as_history_grows_and_starts_anew(
    broyden: Unrolled, image: NDArray[np.uint8], count: int
) -> None:
    """Each count's state is one step of the same solve; the eighth has dropped terms of m = 4."""
    found, expected = broyden.run(count, image), broyden.torch_solve(count, image)
    for state, value in zip(states_of(found).values(), expected.value, strict=True):
        np.testing.assert_allclose(state, value.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found["residual"], expected.residual.numpy(), rtol=1e-2)


class Positive(torch.nn.Module):
    """In place of f: every state without negative numbers is a fixed point."""

    def forward(self, u: torch.Tensor, z: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.relu(x) for x in z)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_solver_stays_at_a_fixed_point(
    unrolled: Unrolled, image: NDArray[np.uint8], tmp_path: Path, value: float
) -> None:
    """The residual is exactly zero, and with it every denominator of Anderson's and Broyden's."""
    inputs = unrolled.pieces.cell.inputs
    u, *z = (torch.zeros(tuple(int(d) for d in i.shape or ())) for i in inputs)
    pieces = replace(unrolled.pieces, cell=trace(Positive(), (u, tuple(z))))
    graphs, _ = write_graphs(pieces, (8,), tmp_path)
    still = Unrolled(unrolled.model, unrolled.card, unrolled.solver, pieces, graphs, tmp_path)
    start = {f"state_{i}": np.full(x.shape, value, np.float32) for i, x in enumerate(z)}
    found = still.run(8, image, start)
    states = tuple(torch.full_like(x, value) for x in z)
    solution = solve(lambda z: Positive()(u, z), states, unrolled.solver, 8)
    for (name, state), expected in zip(states_of(found).items(), solution.value, strict=True):
        np.testing.assert_allclose(state, start[name], rtol=1e-6)
        np.testing.assert_allclose(expected.numpy(), start[name], rtol=1e-6)
    assert found["residual"].tolist() == solution.residual.tolist() == [0.0]
