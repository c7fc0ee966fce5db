"""``edge-mdeq run`` with a live page: where it is said to be, and how it begins and ends."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.clock

pytest.importorskip("starlette", reason="needs the extra web")
pytest.importorskip("uvicorn", reason="needs the extra web")

SAMPLE = Path(__file__).parents[2] / "samples/bundles/camvid-nano.mdeq"
RUN = [sys.executable, "-m", "edge_mdeq.cli", "run", "--threads", "1"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for index in range(2000):
        writer.write(np.full((64, 96, 3), index % 256, np.uint8))
    writer.release()
    return path


def test_it_is_said_where_the_page_is_and_it_ends_when_it_should(clip: Path) -> None:
    """On stderr, as stdout is for programs; and within a second, however many watch."""
    command = [*RUN, str(SAMPLE), str(clip), "http://0.0.0.0:0", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.fullmatch(r"live page: http://[\d.]+:(\d+)/\?token=([\w-]{32,})\n", line)
            assert found, line
            viewer = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
            viewer.request("GET", "/stream.mjpg", headers={"Authorization": f"Bearer {found[2]}"})
            answer = viewer.getresponse()
            assert answer.status == 200
            assert b"--frame" in answer.read(4000)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=30)
            assert time.monotonic() - started < 4, "of which the interpreter takes some"
            answer.close()
            viewer.close()
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert json.loads(out)["interrupted"]
    assert "Traceback" not in err


def test_a_port_in_use_is_one_clear_line(clip: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*RUN, str(SAMPLE), str(clip), f"http://127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is in use by another program" in done.stderr
