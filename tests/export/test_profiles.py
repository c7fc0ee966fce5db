"""The pieces of real models through every profile: the operators, and the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from lowering import feeds_for, interface_of, operators_of, proto_of, run
from torch import nn
from torch.utils._pytree import tree_map

from edge_mdeq.errors import ConfigError
from edge_mdeq.solvers import Anderson, Broyden, FixedPoint, Solver
from edge_mdeq.weights import load_weights
from mdeq_export.compose import Pieces, solve_model
from mdeq_export.operators import check_operators
from mdeq_export.passes import Half, HoldRounding, LowerGroupNorm, run_passes
from mdeq_export.pieces import Advance, trace, trace_pieces
from mdeq_export.profiles import PROFILES, TargetProfile, lookup_profile
from mdeq_export.readouts import ReadScores, TiledReadMask

SOLVERS: dict[str, Solver] = {
    "fixed point": FixedPoint(),
    "damped": FixedPoint(0.7),
    "anderson": Anderson(3),
    "broyden": Broyden(2),
}
MODEL = ("i", "c", "o")  # the pieces that may be half precision
EPSILON = 2.0**-11  # of FP16: what rounding once moves a number, relative to it
EVERY = list(PROFILES.values())
DISTINCT = list(  # ort-cuda lowers as ort-cpu does, and tensorrt-rtx as tensorrt-11
    {(p.opset, *(type(one) for one in p.passes)): p for p in reversed(EVERY)}.values()
)
IN_GRAPH = [profile for profile in DISTINCT if profile.half == "graph"]
names = pytest.mark.parametrize("profile", DISTINCT, ids=lambda p: p.name)
half_names = pytest.mark.parametrize("profile", IN_GRAPH, ids=lambda p: p.name)


@pytest.fixture(scope="module")
def solvers(segmenter_weights: Path) -> dict[str, Pieces]:
    """The segmenter's pieces with each solver; the best iterate is returned."""
    model, card = load_weights(segmenter_weights)
    return {
        name: trace_pieces(model.freeze(), card.input, solver, best=True)
        for name, solver in SOLVERS.items()
    }


@pytest.fixture(scope="module")
def traced(solvers: dict[str, Pieces]) -> Pieces:
    """... with the plain iteration."""
    return solvers["fixed point"]


@pytest.fixture(scope="module")
def scores(classifier_weights: Path) -> ir.Graph:
    """A classifier's readout."""
    model, card = load_weights(classifier_weights)
    shapes = card.model.state_shapes(1, card.input.height, card.input.width)
    return trace(ReadScores(model.freeze()), (tuple(torch.zeros(shape) for shape in shapes),))


@pytest.fixture(scope="module")
def tiled(segmenter_weights: Path) -> ir.Graph:
    """A segmenter's readout in three tiles, with a symbolic batch."""
    model, card = load_weights(segmenter_weights)
    height, width = card.input.height, card.input.width
    states = tuple(torch.zeros(s) for s in card.model.state_shapes(2, height, width))
    readout = TiledReadMask(model.freeze(), height, width, tiles=3)
    return trace(readout, (states,), dynamic_batch=True)


def lower(pieces: Pieces, profile: TargetProfile, half: bool = False) -> Pieces:
    """A copy of ``pieces`` after the profile's passes."""
    lowered = {name: graph.clone() for name, graph in pieces.all().items()}
    for name, graph in lowered.items():
        run_passes(graph, profile.half_passes if half and name in MODEL else profile.passes)
    return Pieces.of(profile.opset, lowered)


# The table


def test_the_profiles_are_the_ones_that_runtimes_need() -> None:
    found = {p.name: (p.opset, "GroupNormalization" in p.operators, p.half, p.int8) for p in EVERY}
    assert found == {
        "ort-cpu": (21, False, "graph", "asymmetric uint8"),
        "ort-cuda": (17, False, "graph", "asymmetric uint8"),
        "tensorrt-8": (17, False, "flag", "symmetric int8"),
        "tensorrt-10": (20, False, "graph", "symmetric int8"),
        "tensorrt-11": (21, True, "graph", "symmetric int8"),
        "tensorrt-rtx": (21, True, "graph", "symmetric int8"),
    }
    assert all(name == profile.name for name, profile in PROFILES.items())


def test_a_profile_is_found_by_name() -> None:
    assert lookup_profile("tensorrt-10") is PROFILES["tensorrt-10"]


def test_an_unknown_profile_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'tensorrt-12', known: ort-cpu.*mean 'tensorrt-1"):
        lookup_profile("tensorrt-12")
    with pytest.raises(ConfigError, match=r"known: .*tensorrt-rtx$"):
        lookup_profile("coreml")


def test_half_precision_is_a_further_pass_unless_the_builder_does_it() -> None:
    for profile in EVERY:
        further = profile.half_passes[len(profile.passes) :]
        assert profile.half_passes[: len(profile.passes)] == profile.passes
        assert [type(p) for p in further] == ([] if profile.name == "tensorrt-8" else [Half])


# The pieces, lowered


def check_lowered(original: ir.Graph, graph: ir.Graph, profile: TargetProfile) -> None:
    """A lowered piece is allowed in its profile and computes what was traced.

    What a solver only passes through, such as its history, is a graph input and bears its name.
    """
    assert graph.opset_imports[""] == profile.opset
    assert [dtype for _, dtype in interface_of(graph)] == [t for _, t in interface_of(original)]
    check_operators(graph, profile)
    feeds = feeds_for(original)
    found, expected = run(graph, feeds).values(), run(original, feeds).values()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert not run_passes(graph, profile.passes), "a second time nothing is left to do"


@names
def test_a_lowered_model_computes_what_was_traced(
    traced: Pieces, scores: ir.Graph, tiled: ir.Graph, profile: TargetProfile
) -> None:
    for original in (*(traced.all()[name] for name in "icrob"), scores, tiled):
        lowered = original.clone()
        run_passes(lowered, profile.passes)
        check_lowered(original, lowered, profile)


@names
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_lowered_solver_computes_what_was_traced(
    solvers: dict[str, Pieces], solver: str, profile: TargetProfile
) -> None:
    pieces = solvers[solver]
    lowered = lower(pieces, profile)
    for original, graph in zip(pieces.advance, lowered.advance, strict=True):
        check_lowered(original, graph, profile)
    check_lowered(pieces.step, lowered.step, profile)


@names
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_composed_solve_holds_what_the_profile_allows_and_computes_the_same(
    solvers: dict[str, Pieces], solver: str, profile: TargetProfile
) -> None:
    pieces = solvers[solver]
    original = solve_model(pieces, 4).graph
    feeds = feeds_for(original, seed=1)
    expected = run(original, feeds)
    for half in (False, True) if profile.half == "graph" else (False,):
        model = solve_model(lower(pieces, profile, half), 4)
        check_operators(model, profile)
        if half:
            run_passes(model.graph, [HoldRounding()])
        found = run(model.graph, feeds)
        for key, value in expected.items():
            if value.dtype == np.uint8:
                assert (found[key] == value).mean() >= (0.98 if half else 0.999)
            else:
                bound = 60 * EPSILON if half else 1e-4  # four evaluations, accelerated
                assert relative_error(found[key], value) <= bound, key


def test_the_lists_of_operators_hold_nothing_that_no_piece_needs(
    solvers: dict[str, Pieces], scores: ir.Graph, tiled: ir.Graph
) -> None:
    """Everything that can be emitted, with a symbolic batch too."""
    states = tuple(torch.zeros(2, 8, 4, 4) for _ in range(2))
    solver = Anderson(2)
    step = tree_map(torch.clone, (solver.init_full(states), states))
    graphs = [scores, tiled, trace(Advance(solver), step, dynamic_batch=True)]
    for pieces in solvers.values():
        graphs += pieces.all().values()
    for profile in DISTINCT:
        emitted: set[str] = set()
        for graph in graphs:
            lowered = graph.clone()
            run_passes(lowered, profile.passes)
            check_operators(lowered, profile)
            emitted |= operators_of(lowered)
        composed = {"Identity"}  # by the composer, for a history that moves on as it is
        composed |= {"DequantizeLinear", "QuantizeLinear"}  # where int8 is asked for
        assert emitted | composed == profile.operators, profile.name


# Half precision


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """In norm, over all elements."""
    difference = np.linalg.norm((found.astype(np.float64) - expected).ravel())
    return float(difference / np.linalg.norm(expected.astype(np.float64).ravel()))


@half_names
def test_half_pieces_keep_their_interface_and_differ_by_rounding(
    traced: Pieces, scores: ir.Graph, tiled: ir.Graph, profile: TargetProfile
) -> None:
    """Inputs, weights and output of every convolution are rounded once each."""
    originals = traced.all() | {"scores": scores, "tiled": tiled}
    layers = {"i": 3, "c": 5, "o": 2, "scores": 8, "tiled": 4}  # products in a row
    for name, depth in layers.items():
        original = originals[name]
        graph = original.clone()
        run_passes(graph, profile.half_passes)
        assert interface_of(graph) == interface_of(original)
        assert not run_passes(graph, profile.half_passes)
        run_passes(graph, [HoldRounding()])
        feeds = feeds_for(original)
        found, expected = run(graph, feeds), run(original, feeds)
        for key, value in expected.items():
            if value.dtype == np.uint8:
                assert (found[key] == value).mean() >= 0.99
            else:
                error = relative_error(found[key], value)
                assert 0 < error <= 3 * depth * EPSILON, (name, key)


@half_names
def test_half_pieces_hold_their_kernels_in_half_the_bytes(
    traced: Pieces, profile: TargetProfile
) -> None:
    graph = traced.cell.clone()
    run_passes(graph, profile.half_passes)
    kernels = [node.inputs[1] for node in graph if node.op_type == "Conv"]
    originals = [node.inputs[1] for node in traced.cell if node.op_type == "Conv"]
    for kernel, original in zip(kernels, originals, strict=True):
        assert kernel is not None
        assert kernel.const_value is not None
        assert original is not None
        assert original.const_value is not None
        assert kernel.const_value.nbytes * 2 == original.const_value.nbytes
        assert original.name not in graph.initializers, "the FP32 one is gone"


@half_names
def test_a_half_cell_casts_only_around_its_convolutions(
    traced: Pieces, profile: TargetProfile
) -> None:
    """Each result once to FP32 for a norm, each operand once to FP16: no others."""
    graph = traced.cell.clone()
    run_passes(graph, profile.half_passes)
    convolutions = [node for node in graph if node.op_type == "Conv"]
    operands = {node.inputs[0] for node in convolutions}
    casts = [node for node in graph if node.op_type == "Cast"]
    assert len(casts) == len(convolutions) + len(operands)


@half_names
def test_half_precision_and_lowering_may_come_in_either_order(
    traced: Pieces, profile: TargetProfile
) -> None:
    first, last = traced.cell.clone(), traced.cell.clone()
    run_passes(first, [Half(), *profile.passes])
    run_passes(last, profile.half_passes)
    for graph in (first, last):
        run_passes(graph, [HoldRounding()])
    feeds = feeds_for(traced.cell)
    a, b = run(first, feeds), run(last, feeds)
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key])


# A symbolic batch


class Normed(nn.Module):
    """Convolution, norm with gain and bias, ReLU, norm without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.plain = nn.GroupNorm(2, 8, affine=False)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.plain(torch.relu(self.norm(self.conv(x))))
        return result


@pytest.fixture(scope="module")
def normed() -> tuple[nn.Module, ir.Graph]:
    torch.manual_seed(0)
    module = Normed()
    return module, trace(module, (torch.zeros(2, 3, 6, 10),), dynamic_batch=True)


@names
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("half", [False, True])
def test_a_norm_under_a_symbolic_batch_is_torch_s(
    normed: tuple[nn.Module, ir.Graph], profile: TargetProfile, batch: int, half: bool
) -> None:
    module, traced = normed
    graph = traced.clone()
    run_passes(graph, profile.half_passes if half else profile.passes)
    assert not isinstance((graph.inputs[0].shape or [0])[0], int)
    check_operators(graph, profile)
    feeds = feeds_for(graph, batch)
    ((name, found),) = run(graph, feeds).items()
    with torch.no_grad():
        expected = module(torch.from_numpy(feeds["x"])).numpy()
    assert name == graph.outputs[0].name
    assert found.shape == (batch, 8, 6, 10)
    reduced = half and profile.half == "graph"
    np.testing.assert_allclose(found, expected, atol=20 * EPSILON if reduced else 1e-5)


def test_a_lowered_norm_keeps_the_batch_symbolic(normed: tuple[nn.Module, ir.Graph]) -> None:
    graph = normed[1].clone()
    run_passes(graph, [LowerGroupNorm()])
    output = proto_of(graph).graph.output[0].type.tensor_type.shape.dim
    assert output[0].dim_param
    assert [size.dim_value for size in output[1:]] == [8, 6, 10]
