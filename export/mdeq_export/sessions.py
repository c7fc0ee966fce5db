"""Graphs opened in ONNX Runtime on the CPU, as verification, times and pictures take them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from mdeq_export.passes import HoldRounding, run_passes

__all__ = ["open_session", "plain_session"]


def plain_session(path: Path, spinning: bool = False) -> ort.InferenceSession:
    """A graph as it is.

    Args:
        path: of the graph.
        spinning: whether idle threads keep watch while the graph runs, as they do on a device.
            That gains little where nobody takes the time, and costs much where others compute.
    """
    options = ort.SessionOptions()
    options.enable_mem_reuse = False  # as the runtime has it: what is done with is given back
    if spinning:  # but not after it, while another graph runs
        options.add_session_config_entry("session.force_spinning_stop", "1")
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_session(path: Path) -> ort.InferenceSession:
    """A graph whose FP16 values are rounded where they are written, as a device rounds them.

    ONNX Runtime's CPU provider computes FP16 operators in FP32, and drops casts that only round.
    """
    model = ir.load(path)
    if all(value.dtype != ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
        return plain_session(path)
    run_passes(model.graph, [HoldRounding()])
    # Beside the graph, where its weights lie: references to them lead into no other folder.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".onnx") as held:
        ir.save(model, held.name)
        return plain_session(Path(held.name))
