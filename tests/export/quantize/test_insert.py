"""The pass: what it leaves of a graph, and that ONNX Runtime runs it as integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edge_mdeq.errors import ExportError
from mdeq_export.answers import distance
from mdeq_export.compose import IR_VERSION, Pieces, advance_model
from mdeq_export.images import scene
from mdeq_export.operators import check_operators
from mdeq_export.passes import run_passes
from mdeq_export.profiles import lookup_profile
from mdeq_export.quantize.calibrate import Ranges, quantised
from mdeq_export.quantize.insert import Quantize
from mdeq_export.quantize.iteration import Iteration
from mdeq_export.quantize.layers import find_layers

PLAIN, OPTIMISED = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)  # fmt: skip


def names(pieces: Pieces) -> list[str]:
    return [layer.name for layer in find_layers(pieces.cell)]


def opened(
    model: ir.Model, level: ort.GraphOptimizationLevel, keep: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    raw = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def feeds(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        given.name: random.normal(size=given.shape).astype(np.float32)
        for given in session.get_inputs()
    }


def test_every_convolution_of_the_cell_runs_as_one_integer_kernel(
    pieces: Pieces, ranges: Ranges, tmp_path: Path
) -> None:
    model = advance_model(quantised(pieces, ranges, names(pieces), False, False), 2, "int8")
    opened(model, OPTIMISED, tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == 2 * len(names(pieces))
    assert not kinds["Conv"]
    assert not kinds["FusedConv"]


def test_integer_kernels_compute_what_the_graph_says(pieces: Pieces, ranges: Ranges) -> None:
    """No sum saturates and no rounding is another: the kernels give the definition's numbers."""
    model = advance_model(quantised(pieces, ranges, names(pieces), False, False), 1, "int8")
    fast, exact = opened(model, OPTIMISED), opened(model, PLAIN)
    given = feeds(fast)
    for a, b in zip(fast.run(None, given), exact.run(None, given), strict=True):
        # A value half way between two steps may fall on either side.
        assert np.linalg.norm(a - b) <= 0.01 * np.linalg.norm(b)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("evaluations", [0, 3])
def test_an_evaluation_in_integers_is_near_one_in_floating_point(
    pieces: Pieces, ranges: Ranges, evaluations: int, symmetric: bool
) -> None:
    solve = Iteration(quantised(pieces, ranges, names(pieces), False, symmetric))
    u = solve.injection(scene(9, 64, 96))  # none of those that ranges were taken from
    state = solve.solve(u, ["fp32"] * evaluations) if evaluations else None
    coarse, fine = (solve.solve(u, [precision], state) for precision in ("int8", "fp32"))
    assert 0 < distance(coarse, fine) < 0.05


def test_tensorrt_gets_symmetric_integers_and_floating_sums(pieces: Pieces, ranges: Ranges) -> None:
    graph = quantised(pieces, ranges, names(pieces), False, True).int8_cell
    assert graph is not None
    layers = names(pieces)
    zeros = [
        node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
        for node in graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert all((zero == 0).all() and zero.dtype == np.int8 for zero in zeros)
    convs = [node for node in graph if node.op_type == "Conv"]
    assert len(convs) == len(layers)
    assert all(
        user.op_type != "QuantizeLinear" for conv in convs for user, _ in conv.outputs[0].uses()
    )


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda", "tensorrt-10"])
def test_operators_are_those_of_the_target(
    lowered_for: Callable[[str], Pieces], ranges: Ranges, target: str
) -> None:
    pieces = lowered_for(target)
    symmetric = lookup_profile(target).int8 == "symmetric int8"
    model = advance_model(quantised(pieces, ranges, names(pieces), False, symmetric), 1, "int8")
    check_operators(model, lookup_profile(target))


def test_a_value_that_several_layers_take_is_rounded_once(pieces: Pieces, ranges: Ranges) -> None:
    graph = quantised(pieces, ranges, names(pieces), False, False).int8_cell
    assert graph is not None
    rounded = [node.inputs[0] for node in graph if node.op_type == "QuantizeLinear"]
    assert len(rounded) == len(set(rounded))
    taken = {layer.inputs for layer in find_layers(pieces.cell)}
    assert len(rounded) == len(taken) + len(names(pieces))  # and every sum, for its norm


def test_only_the_layers_named_change(pieces: Pieces, ranges: Ranges) -> None:
    first, *rest = names(pieces)
    graph = pieces.cell.clone()
    assert run_passes(graph, [Quantize(ranges.cell, [first], symmetric=False)])
    assert [layer.name for layer in find_layers(graph)] == rest
    assert not run_passes(graph, [Quantize(ranges.cell, [first], symmetric=False)])


def test_a_layer_that_was_not_seen_is_named(pieces: Pieces, ranges: Ranges) -> None:
    unseen = names(pieces)[1]
    known = {name: seen for name, seen in ranges.cell.items() if name != unseen}
    with pytest.raises(ExportError, match=rf"no range of layer '{unseen}'"):
        run_passes(pieces.cell.clone(), [Quantize(known, names(pieces), symmetric=False)])


def test_a_readout_with_biases_runs_as_integers(
    classifier: tuple[Pieces, Ranges], tmp_path: Path
) -> None:
    pieces, ranges = classifier
    graph = quantised(pieces, ranges, [], True, False).int8_readout
    assert graph is not None
    model = ir.Model(graph, ir_version=IR_VERSION)
    session = opened(model, OPTIMISED, tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == len(find_layers(pieces.readout))
    whole = opened(ir.Model(pieces.readout.clone(), ir_version=IR_VERSION), OPTIMISED)
    solve = Iteration(pieces)
    state = solve.solve(solve.injection(scene(9, 32, 32)), ["fp32"] * 4)
    given = dict(zip([each.name for each in whole.get_inputs()], state, strict=True))
    assert np.abs(session.run(None, given)[0] - whole.run(None, given)[0]).max() < 0.05
