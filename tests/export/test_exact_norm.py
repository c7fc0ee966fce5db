"""Norms written out: the same numbers, summed exactly where the kernel is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from lowering import run
from numpy.typing import NDArray

from edge_mdeq.errors import ExportError
from mdeq_export.passes import ExactNorm, Half, LowerGroupNorm, run_passes
from mdeq_export.pieces import OPSET

GROUPS = 4
BATCHES = "batch"


def graph_of(shape: tuple[int | str, ...], behind: str = "Relu") -> ir.Graph:
    """x -> ``behind`` -> GroupNormalization -> y, with drawn gain and bias."""
    rng = np.random.default_rng(0)
    channels = shape[1]
    assert isinstance(channels, int)
    gain, bias = (
        ir.val(name, const_value=ir.tensor(rng.uniform(0.5, 1.5, channels).astype(np.float32)))
        for name in ("gain", "bias")
    )
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node(behind, [x], name="first")
    norm = ir.node(
        "GroupNormalization", [first.outputs[0], gain, bias], {"num_groups": GROUPS}, name="norm"
    )
    norm.outputs[0].name = "y"
    for node in (first, norm):
        node.outputs[0].shape, node.outputs[0].type = x.shape, x.type
    return ir.Graph(
        [x],
        norm.outputs,
        nodes=[first, norm],
        initializers=[gain, bias],
        opset_imports={"": OPSET},
        name="norm",
    )


def exact(graph: ir.Graph, x: NDArray[np.float32], relu: bool = True) -> NDArray[np.float64]:
    """PyTorch's group norm in double precision."""
    given = torch.from_numpy(x).double()
    gain, bias = (graph.initializers[name].const_value for name in ("gain", "bias"))
    assert gain is not None
    assert bias is not None
    found = torch.nn.functional.group_norm(
        given.relu() if relu else given,
        GROUPS,
        torch.from_numpy(gain.numpy()).double(),
        torch.from_numpy(bias.numpy()).double(),
    )
    return np.asarray(found.numpy())


def error(found: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def drawn(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 32, 56, 56), (2, 16, 24, 32), (1, 8, 1, 1), (3, 4, 5, 1)])
def test_it_is_group_norm_to_rounding(shape: tuple[int, ...]) -> None:
    graph = graph_of(shape)
    x = drawn(shape)
    wanted = exact(graph, x)
    assert run_passes(graph, [ExactNorm()])
    assert not run_passes(graph, [ExactNorm()])
    assert error(run(graph, {"x": x})["y"], wanted) < 3e-7


def test_the_kernel_that_it_replaces_is_ten_times_less_exact_on_many_zeros() -> None:
    """The reason for this pass; where it no longer holds, the pass can go."""
    shape = (1, 32, 56, 56)
    x = drawn(shape)
    written, lowered = graph_of(shape), graph_of(shape)
    wanted = exact(written, x)
    run_passes(written, [ExactNorm()])
    run_passes(lowered, [LowerGroupNorm()])
    kernel = error(run(lowered, {"x": x})["y"], wanted)
    assert error(run(written, {"x": x})["y"], wanted) < kernel / 10


def test_the_kernel_is_less_exact_the_more_it_adds() -> None:
    """25 thousand numbers a group, and a million: the reason for the bound on groups."""
    small, large = (1, 32, 56, 56), (1, 32, 256, 512)
    kernel, written = {}, {}
    for shape in (small, large):
        x = drawn(shape)
        graph, lowered = graph_of(shape, "Identity"), graph_of(shape, "Identity")
        wanted = exact(graph, x, relu=False)
        if run_passes(graph, [ExactNorm()]):
            written[shape] = error(run(graph, {"x": x})["y"], wanted)
        run_passes(lowered, [LowerGroupNorm()])
        kernel[shape] = error(run(lowered, {"x": x})["y"], wanted)
    assert set(written) == {large}
    assert kernel[small] < 5e-7
    assert written[large] < 3e-7 < kernel[large] / 10


def test_a_small_norm_behind_anything_else_is_left_to_the_kernel() -> None:
    graph = graph_of((1, 8, 6, 10), behind="Abs")
    assert not run_passes(graph, [ExactNorm()])
    assert run_passes(graph, [LowerGroupNorm()])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_symbolic_batch_stays_open(batch: int) -> None:
    graph = graph_of((BATCHES, 8, 6, 10))
    x = drawn((batch, 8, 6, 10))
    wanted = exact(graph, x)
    run_passes(graph, [ExactNorm()])
    assert error(run(graph, {"x": x})["y"], wanted) < 3e-7


def test_statistics_stay_in_fp32_in_an_fp16_graph() -> None:
    """A map of 300s has squares that FP16 does not hold."""
    graph = graph_of((1, 8, 16, 16))
    x = (300 + drawn((1, 8, 16, 16))).astype(np.float16).astype(np.float32)
    wanted = exact(graph, x)
    half = ir.DataType.FLOAT16
    cast = ir.node("Cast", [graph.inputs[0]], {"to": half})
    cast.outputs[0].shape = graph.inputs[0].shape
    relu = graph.node(0)
    graph.insert_before(relu, cast)
    relu.replace_input_with(0, cast.outputs[0])
    for value in (cast.outputs[0], relu.outputs[0], graph.outputs[0]):
        value.type = ir.TensorType(half)
    run_passes(graph, [ExactNorm()])
    found = run(graph, {"x": x})["y"]
    assert found.dtype == np.float16
    assert error(found.astype(np.float32), wanted) < 1e-3


def test_a_norm_of_unknown_size_is_refused_by_name() -> None:
    graph = graph_of((1, 8, "height", 10))
    with pytest.raises(ExportError, match=r"ExactNorm cannot run: .*'norm'"):
        run_passes(graph, [ExactNorm()])


def test_half_goes_through_a_written_norm() -> None:
    graph = graph_of((1, 8, 6, 10))
    run_passes(graph, [ExactNorm(), Half()])
    x = drawn((1, 8, 6, 10))
    assert error(run(graph, {"x": x})["y"], exact(graph, x)) < 3e-7
