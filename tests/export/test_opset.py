"""Older opsets: what is rewritten computes the same, what is not understood is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from lowering import run

from edge_mdeq.errors import ExportError
from mdeq_export.passes import SetOpset, run_passes
from mdeq_export.passes.opset import OLDEST, REDUCTIONS, SAME
from mdeq_export.pieces import OPSET
from mdeq_export.profiles import PROFILES

SHAPE = (2, 3, 4, 6)
FP32 = ir.DataType.FLOAT


def single(
    operator: str,
    constants: dict[str, Any] | None = None,
    dtype: ir.DataType = FP32,
    domain: str = "",
    rank: int = 4,
    **attributes: Any,
) -> ir.Graph:
    """x -> one operator -> y, with further inputs that are constants (None: left out).

    ``rank`` is that of y.
    """
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(dtype))
    inputs: list[ir.Value | None] = [x]
    initializers = []
    for name, numbers in (constants or {}).items():
        if numbers is None:
            inputs.append(None)
            continue
        value = ir.val(name, const_value=ir.tensor(np.array(numbers), name=name))
        inputs.append(value)
        initializers.append(value)
    node = ir.node(operator, inputs, attributes, domain=domain, name="culprit")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(dtype)
    node.outputs[0].shape = ir.Shape([f"size_{i}" for i in range(rank)])
    imports = {"": OPSET} | ({domain: 1} if domain else {})
    return ir.Graph(
        [x], node.outputs, nodes=[node], initializers=initializers, opset_imports=imports, name="g"
    )


@pytest.mark.parametrize("target", [17, 18, 19, 20, 21])
@pytest.mark.parametrize("operator", sorted(REDUCTIONS))
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_reduction_s_axes_become_an_attribute_where_they_were_one(
    operator: str, target: int, keepdims: int
) -> None:
    rank = 4 if keepdims else 2
    axes = {"axes": [1, -1]}
    graph = single(operator, axes, rank=rank, keepdims=keepdims, noop_with_empty_axes=0)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    before = run(graph, {"x": x})["y"]
    assert run_passes(graph, [SetOpset(target)]) is (target < OPSET)
    assert run_passes(graph, [SetOpset(target)]) is False
    assert graph.opset_imports[""] == target
    (node,) = graph
    assert ("axes" in node.attributes) is (target < 18)
    np.testing.assert_array_equal(run(graph, {"x": x})["y"], before)


def test_a_reduction_over_everything_needs_no_axes() -> None:
    graph = single("ReduceMax", rank=0, keepdims=0)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    run_passes(graph, [SetOpset(17)])
    assert run(graph, {"x": x})["y"] == x.max()


def test_attributes_at_their_defaults_are_dropped() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    graph = single(
        "Resize",
        {"roi": None, "scales": scales},
        antialias=0,
        keep_aspect_ratio_policy="stretch",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    run_passes(graph, [SetOpset(17)])
    (node,) = graph
    assert set(node.attributes) == {"mode", "coordinate_transformation_mode", "nearest_mode"}
    np.testing.assert_array_equal(run(graph, {"x": x})["y"], x.repeat(2, axis=2).repeat(2, axis=3))


REFUSED: dict[str, tuple[ir.Graph, int, str]] = {
    "a new attribute that is used": (
        single("Resize", {"roi": None, "scales": np.ones(4, "f")}, antialias=1, mode="linear"),
        17,
        r"\(Resize\) has the attribute 'antialias', which opset 17 lacks",
    ),
    "a new attribute without default": (
        single("Resize", {"roi": None, "scales": np.ones(1, "f")}, axes=[3]),
        17,
        r"\(Resize\) has the attribute 'axes'",
    ),
    "axes that do nothing when empty": (
        single("ReduceMax", {"axes": [1]}, noop_with_empty_axes=1),
        17,
        r"\(ReduceMax\) has the attribute 'noop_with_empty_axes'",
    ),
    "no axes where there are axes": (
        single("ReduceMax", {"axes": np.zeros(0, np.int64)}),
        17,
        r"\(ReduceMax\) has no constant axes",
    ),
    "a norm that counted otherwise": (
        single("GroupNormalization", {"g": np.ones(3, "f"), "b": np.ones(3, "f")}, num_groups=3),
        20,
        r"\(GroupNormalization\) was another operator in opset 20",
    ),
    "an operator that nobody has looked at": (
        single("AveragePool", kernel_shape=[2, 2]),
        17,
        r"\(AveragePool\) was another operator in opset 17",
    ),
    "an operator that is too new": (
        single("Gelu"),
        17,
        r"\(Gelu\) does not exist in opset 17",
    ),
    "an operator of nobody": (single("Swoosh"), 20, r"\(Swoosh\) is unknown to opset 21"),
    "another domain": (
        single("FusedConv", domain="com.microsoft"),
        20,
        r"\(FusedConv\) is unknown",
    ),
    "a type that was not possible": (
        single("ReduceMax", {"axes": [1]}, dtype=ir.DataType.BOOL),
        17,
        r"\(ReduceMax\) takes BOOL as 'data'",
    ),
    "an attribute of a smaller operator": (
        single("Split", num_outputs=1),
        17,
        r"\(Split\) has the attribute 'num_outputs'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_by_node_and_operator(case: str) -> None:
    graph, target, words = REFUSED[case]
    copy = graph.clone()
    with pytest.raises(ExportError, match=rf"SetOpset cannot run: node 'culprit' {words}"):
        run_passes(copy, [SetOpset(target)])
    assert copy.opset_imports[""] == OPSET


def test_computed_axes_are_refused() -> None:
    graph = single("ReduceMax")
    axes = ir.Value(name="axes", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(axes)
    (node,) = graph
    node.resize_inputs(2)
    node.replace_input_with(1, axes)
    with pytest.raises(ExportError, match=r"'culprit' \(ReduceMax\) has no constant axes"):
        run_passes(graph, [SetOpset(17)])


@pytest.mark.parametrize("target", [16, 22])
def test_only_older_opsets_that_were_checked_are_possible(target: int) -> None:
    with pytest.raises(ExportError, match=rf"opset 21 cannot become {target}, only 17 to 21"):
        run_passes(single("Relu"), [SetOpset(target)])


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SetOpset, "call", lambda self, graph: False)
    with pytest.raises(ExportError, match="SetOpset left the graph broken: the opset is 21"):
        run_passes(single("Relu"), [SetOpset(17)])


def test_every_operator_that_changed_since_the_oldest_opset_is_accounted_for() -> None:
    operators = frozenset().union(*(profile.operators for profile in PROFILES.values()))
    changed = {
        name
        for name in operators
        if onnx.defs.get_schema(name, OPSET).since_version
        != (onnx.defs.get_schema(name, OLDEST).since_version if exists(name) else None)
    }
    assert changed - {"GroupNormalization"} <= SAME | REDUCTIONS


def exists(name: str) -> bool:
    return onnx.defs.has(name, OLDEST, "")


@pytest.mark.parametrize("name", sorted(SAME))
def test_what_counts_as_the_same_has_changed_in_types_and_optional_things_only(name: str) -> None:
    """By ONNX's schemas: same inputs and outputs, further attributes are optional."""
    new, old = (onnx.defs.get_schema(name, version) for version in (OPSET, OLDEST))
    assert new.since_version != old.since_version
    for part in ("inputs", "outputs"):
        assert [p.name for p in getattr(new, part)] == [p.name for p in getattr(old, part)]
    assert set(old.attributes) <= set(new.attributes)
    assert not any(new.attributes[a].required for a in set(new.attributes) - set(old.attributes))
    for kept in set(old.attributes):
        assert new.attributes[kept].default_value == old.attributes[kept].default_value
