"""Sources and their options on the command line: what runs, what is refused, what is not told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "edge_mdeq.cli", "run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT,
    )  # fmt: skip


def test_the_test_pattern_runs_at_the_size_and_rate_that_were_asked_for(
    segmenter_bundle: Path,
) -> None:
    size = ["--input-width", "160", "--input-height", "96", "--input-rate", "20"]
    done = call(segmenter_bundle, "test://", *size, "--input-flip", "clockwise", "--max-frames",
                "20", "--json", "--input-buffer", "drop-latest")  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 20
    assert summary["source"]["state"] == "ok"
    assert summary["age"]["count"] == 20
    assert 0 < summary["age"]["p50"] < 2000
    assert summary["seconds"] > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test://", "--input-width", "160"], "give input width and height together"),
        (["test://", "--input-latency", "5"], "latency means nothing for test://"),
        (["test://", "--input-buffer", "drop"], "input buffer is 'drop', did you mean 'drop-"),
        (["rstp://joe:hunter2@gate/1"], "'rstp://***@gate/1', did you mean 'rtsp'"),
        (["rtsp://joe:hunter2@127.0.0.1:9/1"], "rtsp://***@127.0.0.1:9/1 is refused by"),
        (["csi://front"], "csi://front names no camera; write csi://0"),
        (["v4l2:///dev/video97"], "there is no camera /dev/video97"),
    ],
)
def test_wrong_input_is_one_message_without_secrets(
    segmenter_bundle: Path, arguments: list[str], message: str
) -> None:
    done = call(segmenter_bundle, *arguments, "--max-frames", "1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.clock
def test_a_camera_that_never_comes_is_waited_for_until_somebody_stops_it(
    segmenter_bundle: Path,
) -> None:
    uri = "rtsp://joe:hunter2@127.0.0.1:9/1"
    command = [*COMMAND, str(segmenter_bundle), uri, "--input-wait"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        rest = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - started < 4, "of which the interpreter takes some"
    assert process.returncode == 130
    assert "is refused by 127.0.0.1:9" in first
    assert "trying again" in first
    assert "hunter2" not in first + "".join(rest)
