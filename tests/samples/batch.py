"""What the tests of the batch sample share."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import edge_mdeq
from mdeq_runtime.sinks.jsonl import describe

SAMPLE = Path(__file__).parents[2] / "samples" / "batch_ray.py"
SIZE = (64, 96)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'edge-mdeq[batch]'"
)


def pan(count: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of a camera that goes to and fro before a coloured wall."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 40, 3), dtype=np.uint8)
    wide = np.asarray(cv2.resize(small, (640, SIZE[0])), np.uint8)
    for k in range(count):
        shift = abs((3 * k) % 1000 - 500)
        yield np.ascontiguousarray(wide[:, shift : shift + SIZE[1]])


def write_clip(path: Path, frames: int, seed: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE[::-1])
    for frame in pan(frames, seed):
        writer.write(frame)
    writer.release()
    return path


def alone(bundle: Path, source: Path) -> list[dict[str, Any]]:
    """What one process answers, frame by frame; times left out."""
    with edge_mdeq.load(bundle, threads=1) as model:
        entries = [describe(result, model.labels) for result in model.stream(str(source))]
    return [{k: v for k, v in entry.items() if k != "times"} for entry in entries]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["item"]: row for row in csv.DictReader(file)}


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(SAMPLE), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def call(*arguments: str | Path, **options: Any) -> tuple[int, str, str]:
    process = start(*arguments, **options)
    printed, errors = process.communicate(timeout=120)
    return process.returncode, printed, errors
