"""A graph alone, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["runner"]


def runner(path: Path, threads: int, stop_spinning: bool = False) -> Callable[[], Any]:
    """A graph, ready to run on random states and a picture of noise.

    Args:
        path: of the ONNX file; its shapes are fixed.
        threads: 0 for one per core.
        stop_spinning: where sessions take turns, the threads of one must not wait busily while the
            next one runs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if stop_spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        i.name: rng.integers(0, 255, i.shape, np.uint8)
        if i.type == "tensor(uint8)"
        else rng.standard_normal(i.shape).astype(np.float32)
        for i in session.get_inputs()
    }
    return lambda: session.run(None, feeds)
