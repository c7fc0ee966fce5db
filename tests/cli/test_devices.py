"""``run --device``: what is there is used, what is not is named with what brings it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest

SAMPLE = Path(__file__).parents[2] / "samples/bundles/camvid-nano.mdeq"
CUDA = "CUDAExecutionProvider" in ort.get_available_providers()


def run(tmp_path: Path, device: str) -> subprocess.CompletedProcess[str]:
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.full((48, 64, 3), 90, np.uint8))
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", str(SAMPLE), str(picture), "none"]
    return subprocess.run([*command, "--device", device], capture_output=True, text=True)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_processor_is_always_there(tmp_path: Path, device: str) -> None:
    done = run(tmp_path, device)
    assert done.returncode == 0, done.stderr
    assert "1 frames" in done.stdout
    assert CUDA or "ONNX Runtime, CPU" in done.stdout


def test_a_misspelt_device_is_answered_with_the_near_one(tmp_path: Path) -> None:
    done = run(tmp_path, "cudda")
    assert done.returncode == 1
    assert "unknown device 'cudda'" in done.stderr
    assert "did you mean 'cuda'?" in done.stderr


@pytest.mark.skipif(CUDA, reason="this ONNX Runtime has its CUDA provider")
def test_an_absent_provider_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    done = run(tmp_path, "cuda")
    assert done.returncode == 1
    assert "pip install 'edge-mdeq[onnxruntime-gpu]'" in done.stderr
    assert "Traceback" not in done.stderr
