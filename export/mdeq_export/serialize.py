"""Graphs to files: one small ``.onnx`` per rung, one weights file that they all share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from edge_mdeq.errors import ExportError

__all__ = ["INLINE_BELOW", "check_graph", "save_graph", "write_weights"]

INLINE_BELOW = 1024  # bytes; smaller constants (shapes, norms) stay in the graph
ALIGNMENT = 64  # bytes; so that a runtime can map a tensor and read it with any vector width


def write_weights(
    tensors: Mapping[str, ir.TensorProtocol], path: Path
) -> dict[str, ir.ExternalTensor]:
    """Write the large tensors one after another, in order of name; returns references to them.

    The references name the file alone: graphs and weights lie in one folder, since ONNX's checker
    and ONNX Runtime both refuse external data outside the graph's own folder.
    """
    references: dict[str, ir.ExternalTensor] = {}
    with path.open("wb") as file:
        for name in sorted(tensors):
            tensor = tensors[name]
            if tensor.nbytes < INLINE_BELOW:
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            references[name] = ir.ExternalTensor(
                path.name,
                file.tell(),
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                base_dir=path.parent,
            )
            file.write(tensor.tobytes())
    return references


def save_graph(model: ir.Model, references: Mapping[str, ir.ExternalTensor], path: Path) -> None:
    """Write ``model`` with its large initializers replaced by ``references``."""
    for name, value in model.graph.initializers.items():
        if name in references:
            value.const_value = references[name]
    keep = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:  # shapes of inner values can be inferred, and cost more bytes
            if id(value) not in keep:  # than the nodes themselves
                value.shape = value.type = None
    ir.save(model, path)


def check_graph(path: Path) -> None:
    """Run onnx.checker with full shape inference.

    Raises:
        ExportError: the graph is not valid ONNX.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error
