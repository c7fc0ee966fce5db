"""What a manifest says of the graphs: their inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from edge_mdeq.bundle import InputSpec, OutputSpec, TensorSpec
from edge_mdeq.config import InputConfig, ModelCard
from mdeq_export.compose import CONFIDENCE, IMAGE, OUTPUT, RESIDUAL, state_names

__all__ = ["ANY", "between", "interface"]

ANY = -1  # a batch of any size


def interface(card: ModelCard, config: InputConfig, batch: int) -> dict[str, Any]:
    """The part of the manifest that describes inputs and outputs; ``ANY`` leaves the batch open."""
    height, width = config.height, config.width
    shapes = card.model.state_shapes(batch, height, width)
    segmentation = card.model.task == "segmentation"
    answer = (
        OutputSpec(TensorSpec(OUTPUT, "uint8", (batch, height, width)), "class_indices")
        if segmentation
        else OutputSpec(TensorSpec(OUTPUT, "float32", (batch, card.model.classes)), "scores")
    )
    low = TensorSpec(CONFIDENCE, "float32", (batch, *shapes[0][2:]))
    return {
        "input": InputSpec(
            TensorSpec(IMAGE, "uint8", (batch, height, width, 3)), config.mean, config.std
        ),
        "output": answer,
        "confidence": low if segmentation else None,
        "states": tuple(
            TensorSpec(name, "float32", shape)
            for name, shape in zip(state_names(len(shapes)), shapes, strict=True)
        ),
        "state_outputs": tuple(state_names(len(shapes), "next_state")),
        "residual": TensorSpec(RESIDUAL, "float32", (batch,)),
    }


def between(path: Path, scales: int) -> dict[str, Any]:
    """The part of the manifest that describes what an ``advance`` graph takes and gives."""
    graph = ir.load(path).graph
    inputs = [spec(value) for value in graph.inputs]
    outputs = [str(value.name) for value in graph.outputs]
    values = [name for name in outputs if name.startswith("value")]
    return {
        "injection": inputs[0],
        "values": tuple(values or outputs[:scales]),
        "history": tuple(inputs[1 + scales :]),
        "history_outputs": tuple(name for name in outputs if name.startswith("next_history")),
    }


def spec(value: ir.Value) -> TensorSpec:
    """A graph's input or output as the manifest names it."""
    assert value.shape is not None
    assert value.dtype is not None
    dtype = value.dtype.numpy().name
    shape = tuple(n if isinstance(n, int) else ANY for n in value.shape)
    return TensorSpec(str(value.name), dtype, shape)
