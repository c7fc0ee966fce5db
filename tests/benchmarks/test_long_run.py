"""A service's hours: camera losses, reloads and viewers leave nothing behind.

The long one runs with ``pytest -m soak``; a short one, of a tiny model, always. Each is a process
of its own, so that nothing else is in the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import residence

from mdeq_runtime.memory import resident_bytes

BENCHMARKS = Path(residence.__file__).parent
SAMPLE = BENCHMARKS.parent / "samples" / "bundles" / "camvid-nano.mdeq"

pytestmark = [
    pytest.mark.clock,
    pytest.mark.skipif(resident_bytes() is None, reason="memory is read from /proc, on Linux only"),
]


def long_run(out: Path, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "long_run.py"), "--out", str(out)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert json.loads((out / "long_run.json").read_text()) == found
    assert found["good"] == (done.returncode == 0)
    return found


def assert_nothing_is_left_behind(found: dict[str, Any], frames: int) -> None:
    assert found["frames"] == frames
    assert found["rise"] <= residence.ALLOWED
    for what in ("descriptors", "threads"):
        assert len(set(found[what])) == 1, what
    assert found["recoveries"] >= found["losses"] - 1, "it may end in the midst of one"
    assert found["failed"] == 0
    assert found["cold"].get("reload", 0) <= found["reloads"] // 2, "the others had pictures"
    assert found["viewers"] == 3
    assert found["good"]


def test_fifteen_hundred_frames_with_losses_reloads_and_viewers(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="the live page needs the extra web")
    pytest.importorskip("matplotlib", reason="the picture needs it")
    found = long_run(
        tmp_path, "--bundle", segmenter_bundle, "--frames", 1500, "--lose-every", 200,
        "--reload-every", 600, "--every", 300,
    )  # fmt: skip
    assert_nothing_is_left_behind(found, 1500)
    assert found["losses"] >= 1500 // 200 - 1
    assert found["reloads"] == 10 + 1, "ten in the first minute"
    assert "<svg" in (tmp_path / "long_run.svg").read_text()


def test_what_grows_is_seen() -> None:
    samples = [residence.sample(frame) for frame in (0, residence.MINUTE)]
    ballast = b"x" * 8_000_000
    samples.append(residence.sample(2 * residence.MINUTE))
    assert len(ballast) - 1_000_000 < residence.rise(samples) < len(ballast) + 4_000_000
    with open(__file__) as file:
        assert not file.closed
        assert residence.sample(0).descriptors == samples[-1].descriptors + 1


@pytest.mark.soak
@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample bundle is not in this copy")
def test_two_hours_of_a_service(tmp_path: Path) -> None:
    """108,000 frames of the sample model, 40 losses, 29 reloads; an hour on a core."""
    found = long_run(tmp_path)
    assert_nothing_is_left_behind(found, 108_000)
    assert found["reloads"] >= 20
    assert found["losses"] >= 38
