"""Runs pieces by themselves, in ONNX Runtime without its own rewrites."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]


def proto_of(graph: ir.Graph) -> onnx.ModelProto:
    """A model of one graph, checked with full shape inference."""
    proto: onnx.ModelProto = ir.to_proto(ir.Model(graph.clone(), ir_version=10))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(graph: ir.Graph, feeds: Feeds) -> Feeds:
    """The outputs by name."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # initializers that nobody uses any more are no news
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto_of(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def feeds_for(graph: ir.Graph, batch: int = 1, seed: int = 0) -> Feeds:
    """Numbers for every input: normal, or pixels; a symbolic dimension is ``batch``."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in graph.inputs:
        assert value.shape is not None
        assert value.name is not None
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        if value.dtype == ir.DataType.UINT8:
            feeds[value.name] = rng.integers(0, 256, shape).astype(np.uint8)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def operators_of(graph: ir.Graph) -> set[str]:
    return {node.op_type for node in graph}


def interface_of(graph: ir.Graph) -> list[tuple[str | None, ir.DataType | None]]:
    """Names and types of what a graph takes and gives, in order."""
    return [(value.name, value.dtype) for value in (*graph.inputs, *graph.outputs)]
