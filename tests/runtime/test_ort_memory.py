"""What ONNX Runtime does with memory, which the plan for a memory limit rests on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are made with onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mdeq_export.cost import graph_cost  # noqa: E402
from mdeq_runtime.backends.ort_memory import predict  # noqa: E402

WIDTH, NODES = 256, 32
LOAD = """
import sys
import onnxruntime as ort
from mdeq_runtime.memory import resident_bytes
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
empty, graph = sys.argv[1:]
first = ort.InferenceSession(empty, options, providers=["CPUExecutionProvider"])
before = resident_bytes()
session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
print(resident_bytes() - before)
"""


def convolutions(path: Path, count: int) -> None:
    """A graph that convolves so many times with one 8-bit kernel, between Q and DQ."""
    kernel = np.random.default_rng(0).integers(-63, 64, (WIDTH, WIDTH, 3, 3)).astype(np.int8)
    weights = {
        "kernel": kernel,
        "small": np.full(WIDTH, 1e-3, np.float32),
        "zeros": np.zeros(WIDTH, np.int8),
        "scale": np.float32(0.1),
        "zero": np.uint8(128),
    }
    nodes, last = [], "x"
    for k in range(count):
        chain = ((last, f"q{k}"), (f"q{k}", f"d{k}"), (f"c{k}", f"p{k}"), (f"p{k}", f"y{k}"))
        kinds = ("QuantizeLinear", "DequantizeLinear") * 2
        quantised = [
            helper.make_node(kind, [a, "scale", "zero"], [b])
            for kind, (a, b) in zip(kinds, chain, strict=True)
        ]
        weight = helper.make_node(
            "DequantizeLinear", ["kernel", "small", "zeros"], [f"w{k}"], axis=0
        )
        conv = helper.make_node("Conv", [f"d{k}", f"w{k}"], [f"c{k}"], pads=[1, 1, 1, 1])
        nodes += [*quantised[:2], weight, conv, *quantised[2:]]
        last = f"y{k}"
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    shape = [1, WIDTH, 8, 8]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def test_every_node_packs_an_integer_kernel_for_itself(tmp_path: Path) -> None:
    convolutions(tmp_path / "none.onnx", 0)
    convolutions(tmp_path / "many.onnx", NODES)
    cost = graph_cost(tmp_path / "many.onnx")
    assert cost is not None
    assert cost.packed == NODES * WIDTH * WIDTH * 9
    assert cost.weights < 1.1 * WIDTH * WIDTH * 9  # which the file holds once
    assert cost.values < 4 * WIDTH * 8 * 8 * 4  # no kernel in floating point among them
    command = [sys.executable, "-c", LOAD, tmp_path / "none.onnx", tmp_path / "many.onnx"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured, predicted = int(done.stdout), predict([cost], cached=False)
    assert measured > 0.9 * cost.packed, "ONNX Runtime shares them now; the plan may, too"
    assert measured <= predicted.graphs + predicted.working
