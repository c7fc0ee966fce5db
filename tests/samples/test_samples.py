"""The programs of samples/, run as their docstrings say, and the demo's report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mdeq_runtime.results import Result

SAMPLES = Path(__file__).parents[2] / "samples"
SIZE = (64, 96)


def write_clip(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE[::-1])
    rng = np.random.default_rng(0)
    for _ in range(frames):
        small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        writer.write(np.asarray(cv2.resize(small, SIZE[::-1]), np.uint8))
    writer.release()
    return path


def count_frames(path: Path) -> int:
    video, count = cv2.VideoCapture(str(path)), 0
    while video.grab():
        count += 1
    return count


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("frames", [1, 3, 5, 12])
def test_a_report_shows_as_many_frames_as_a_short_clip_has(
    segmenter_bundle: Path, tmp_path: Path, frames: int
) -> None:
    """The strip holds five; a clip may have fewer, and then each is shown once."""
    clip = write_clip(tmp_path / "clip.avi", frames)
    video, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    done = call(
        "-m", "edge_mdeq.cli", "run", segmenter_bundle, clip, video, "--output", lines, "--json"
    )
    assert done.returncode == 0, done.stderr

    from demo_report import STRIP, write_report

    report = tmp_path / "report.html"
    write_report(report, segmenter_bundle, clip, video, lines, json.loads(done.stdout), 50_000_000)
    page = report.read_text(encoding="utf-8")
    shown = [index for index in range(frames) if f'alt="frame {index}"' in page]
    assert len(shown) == min(frames, STRIP)
    assert page.count("data:image/jpeg;base64,") == 2 * len(shown), "each beside its segmentation"
    assert {0, frames - 1} <= set(shown)
    assert f"<b>{frames} frames</b>" in page
    assert page.count("data:image/svg+xml;base64,") == 3


def test_the_camera_demo_feeds_every_output_and_says_a_line_per_frame(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="the live page needs the extra web")
    clip, video, lines = (tmp_path / name for name in ("clip.avi", "out.mp4", "out.jsonl"))
    write_clip(clip, 4)
    more = [lines, "http://127.0.0.1:0", "--hard", tmp_path / "hard"]
    done = call(SAMPLES / "camera_demo.py", segmenter_bundle, clip, video, *more)
    assert done.returncode == 0, done.stderr
    see, *said = done.stdout.splitlines()
    assert re.fullmatch(r"see http://127\.0\.0\.1:\d+/", see)
    assert [line.split(":")[0] for line in said[:-1]] == [f"frame {i}" for i in range(4)]
    assert "cold (first frame)" in said[0]
    assert said[-1].startswith("4 frames, ")
    assert count_frames(video) == 4
    assert len(lines.read_text().splitlines()) == 4
    kept = {path.suffix for path in (tmp_path / "hard").iterdir()}
    assert kept == {".png", ".json"}


def test_the_camera_demo_goes_on_when_a_viewer_chooses_another_policy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whose stages have other names."""
    from camera_demo import show

    stages = {"read": 100.0, "inject": 1.0, "advance": 20.0, "readout": 2.0}
    show(Result(np.zeros(SIZE, np.uint8), None, 4, 0.02, True, True, "", stages, 7))
    assert capsys.readouterr().out == "frame 7: 4 evaluations, residual 0.020, 23.0 ms, warm\n"


def test_the_embedded_sample_answers_a_photo_and_a_pan(
    segmenter_bundle: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    small = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    cv2.imwrite(str(photo), cv2.resize(small, SIZE[::-1]))
    done = call(SAMPLES / "embedded_api.py", segmenter_bundle, photo)
    assert done.returncode == 0, done.stderr
    assert "% of the picture" in done.stdout
    assert "mean confidence" in done.stdout
    assert done.stdout.count("shifted by") == 10


@pytest.mark.parametrize("sample", ["camera_demo.py", "embedded_api.py"])
def test_bad_input_is_a_message_and_exit_code_1(
    segmenter_bundle: Path, tmp_path: Path, sample: str
) -> None:
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.zeros((*SIZE, 3), np.uint8))
    for bundle, source, message in (
        (tmp_path / "gone.mdeq", photo, "gone.mdeq does not exist"),
        (segmenter_bundle, tmp_path / "gone.png", "gone.png "),
    ):
        done = call(SAMPLES / sample, bundle, source)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert message in done.stderr.splitlines()[-1]
