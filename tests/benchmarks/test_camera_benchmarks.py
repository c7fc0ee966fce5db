"""What the benchmarks of cameras measure is what they say."""

from __future__ import annotations

import subprocess
import sys

import capture_age
import numpy as np
import pipeline_cpu
import pytest

pytestmark = pytest.mark.clock


def test_ages_are_the_pause_and_the_wait_for_it() -> None:
    found = capture_age.ages("test://", rate=50.0, inference_s=0.03, seconds=0.6)
    assert found.shape[1] == 2
    assert (np.diff(found[:, 0]) > 0).all()
    assert (found[:, 1] >= 30).all()
    assert np.median(found[:, 1]) < 30 + 2 * 20 + 20


def test_both_ways_read_the_same_stream() -> None:
    command = [sys.executable, pipeline_cpu.__file__, "--serve", "--size", "48", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        uri = f"http://127.0.0.1:{server.stdout.readline().strip()}/stream"
        try:
            for way in (pipeline_cpu.bare, pipeline_cpu.piped):
                frames, cpu = way(uri, 1.0)
                assert frames == pytest.approx(30, abs=8)
                assert 0 < cpu < 1
        finally:
            server.kill()
