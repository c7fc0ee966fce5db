"""NVIDIA's own parser and compiler take integers as they are calibrated here: symmetric int8."""

from __future__ import annotations

import platform
from pathlib import Path

import onnx_ir as ir
import pytest
from rtx_build import Built, Graph, compile_graph

from edge_mdeq.solvers import make_solver
from mdeq_export.compose import advance_model
from mdeq_export.exporter import load_frozen
from mdeq_export.graphs import lower
from mdeq_export.images import verification_images
from mdeq_export.pieces import trace_pieces
from mdeq_export.profiles import lookup_profile
from mdeq_export.quantize.calibrate import observe, quantised
from mdeq_export.quantize.layers import find_layers
from mdeq_runtime.tensorrt.versions import installed

pytestmark = pytest.mark.skipif(
    not installed(("tensorrt_rtx",)),
    reason=f"TensorRT for RTX is not installed, or there is none for {platform.machine()}",
)


def test_int8_graphs_compile_for_both_lowerings(segmenter_weights: Path, tmp_path: Path) -> None:
    model, card = load_frozen(segmenter_weights)
    pieces = trace_pieces(model, card.input, make_solver("fixed_point"))
    base = lower(pieces, lookup_profile("ort-cpu"))
    images, _ = verification_images(None, 2, card.input.height, card.input.width)
    ranges = observe(base, images, False, lambda message: None)
    names = [layer.name for layer in find_layers(base.cell)]
    for target in ("tensorrt-rtx", "tensorrt-10"):
        lowered = quantised(lower(pieces, lookup_profile(target)), ranges, names, False, True)
        for precision in ("int8", "fp32"):
            path = tmp_path / f"{target}-{precision}.onnx"
            ir.save(advance_model(lowered, 1, precision), path)
            built = compile_graph(Graph("segmenter", target, precision, path, 0), ("SM86",))
            assert isinstance(built, Built)
            assert built.layers > len(names)
