"""Answers frames with a bundle, here or there: ``answer.py BUNDLE FRAMES.npy OUT.npz``.

Every frame is answered on a stream, and the first one also from a cold start by every rung.
"""

from __future__ import annotations

import platform
import sys

import cv2
import numpy as np
import onnxruntime

import edge_mdeq
from mdeq_runtime import FixedIterations, SessionSettings


def main(bundle: str, frames_file: str, out: str) -> None:
    """Masks (uint8) and residuals, stacked: the stream's, then one for each rung."""
    frames = np.load(frames_file)
    with edge_mdeq.load(bundle, threads=1) as model:
        results = list(model.stream(iter(frames)))
        rungs = sorted({rung.evaluations for rung in model.manifest.profiles["ort-cpu"].rungs})
    for count in rungs:
        settings = SessionSettings(FixedIterations(count))
        with edge_mdeq.load(bundle, threads=1, settings=settings) as model:
            results.append(model(frames[0]))
    np.savez_compressed(
        out,
        masks=np.stack([result.output for result in results]),
        residuals=np.array([result.residual for result in results]),
    )
    versions = [module.__version__ for module in (np, onnxruntime, cv2)]
    print(platform.machine(), platform.python_version(), *versions, f"{len(results)} answers")


if __name__ == "__main__":
    main(*sys.argv[1:])
