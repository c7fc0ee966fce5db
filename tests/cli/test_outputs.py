"""``edge-mdeq run`` and what it writes: several outputs at once, own colours, hard frames."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.bundle import open_bundle
from mdeq_runtime.palette import SAFE

SIZE = (240, 320)


def call(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_mdeq.cli", "run", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=cwd,
    )


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, SIZE[::-1])
    rng = np.random.default_rng(0)
    for _ in range(6):
        writer.write(cv2.resize(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), SIZE[::-1]))
    writer.release()
    return path


def read(path: Path) -> Any:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def test_every_output_gets_every_frame(segmenter_bundle: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = ["a.mp4", "a.avi", "a.jsonl", "masks/", "seen/%03d.png", "newest.png"]
    more = [part for name in names[1:] for part in ("--output", f"{out}/{name}")]
    done = call(segmenter_bundle, clip, out / names[0], *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("a.mp4", "a.avi"):
        video, count = cv2.VideoCapture(str(out / name)), 0
        while video.grab():
            count += 1
        assert count == 6
    lines = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    assert sorted(p.name for p in (out / "masks").iterdir()) == [f"{i:06d}.png" for i in range(6)]
    assert sorted(p.name for p in (out / "seen").iterdir()) == [f"{i:03d}.png" for i in range(6)]
    np.testing.assert_array_equal(read(out / "newest.png"), read(out / "seen" / "005.png"))
    assert all(f"{out}/{name}" in done.stdout for name in names)


def test_headless_refuses_a_window_and_no_file_of_that_name(
    segmenter_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    done = call(segmenter_bundle, clip, "display.mp4", "--headless", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "display.mp4").exists()
    for window in ("display", "display://"):
        done = call(segmenter_bundle, clip, window, "--headless")
        assert done.returncode == 1
        assert "--headless and a display:// output contradict" in done.stderr


def test_what_was_written_is_told_without_passwords(segmenter_bundle: Path, clip: Path) -> None:
    tools = ("gst-launch-1.0", "gst-inspect-1.0")
    if not all(map(shutil.which, tools)):
        pytest.skip("needs gstreamer1.0-tools")
    done = call(segmenter_bundle, clip, "udp://joe:hunter2@127.0.0.1:9")
    if "install gstreamer" in done.stderr:
        pytest.skip("needs gstreamer1.0-plugins-{good,bad,ugly}")
    assert done.returncode == 0, done.stderr
    assert "wrote udp://***@127.0.0.1:9" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_classes_have_the_colours_of_ones_own_file(
    segmenter_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    """A pixel of the picture is half the frame and half its class's colour."""
    count = len(open_bundle(segmenter_bundle).manifest.labels)
    own = tmp_path / "classes.txt"
    own.write_text("\n".join(f"thing {i} {20 * i} 255 {255 - 20 * i}" for i in range(count)))
    for options, palette in (
        (["--classes", own], [(20 * i, 255, 255 - 20 * i) for i in range(count)]),
        (["--colors", "safe"], SAFE),
    ):
        more = ["--output", f"{tmp_path}/masks/", "--output", f"{tmp_path}/a.jsonl"]
        done = call(segmenter_bundle, clip, tmp_path / "%d.png", *more, *options)
        assert done.returncode == 0, done.stderr
        frame = cv2.VideoCapture(str(clip)).read()[1].astype(int)
        shown, mask = read(tmp_path / "0.png").astype(int), read(tmp_path / "masks/000000.png")
        colours = np.array(palette)[mask][..., ::-1]
        near = np.abs(shown - (frame + colours) / 2) <= 1.5
        assert near[30:90, 250:].all(), "where nothing is written"
        areas = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["areas"]
        assert all(name.startswith("thing ") for name in areas) == ("--classes" in options)


def test_hard_frames_are_kept_with_their_residuals(
    segmenter_bundle: Path, clip: Path, tmp_path: Path
) -> None:
    hard = tmp_path / "hard"
    done = call(segmenter_bundle, clip, "none", "--record-hard", hard, "--tolerance", "1e-6")
    assert done.returncode == 0, done.stderr
    assert f"wrote none and {hard}" in done.stdout or f"wrote {hard}" in done.stdout
    abouts = [json.loads(path.read_text()) for path in sorted(hard.glob("*.json"))]
    kinds = [about["kept"] for about in abouts]
    assert kinds[0] == "tolerance"
    assert len(kinds) == len(set(kinds)), "of half a second, one of each kind"
    assert all(about["trace"][-1] == [about["iterations"], about["residual"]] for about in abouts)
    first = read(min(hard.glob("*.png")))
    np.testing.assert_array_equal(first, cv2.VideoCapture(str(clip)).read()[1])
    again = call(segmenter_bundle, hard, "none")
    assert again.returncode == 0, "what was kept is a source again"
    assert f"{len(kinds)} frames" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--record-hard", "{}/hard", "--record-quota", "lots"], "--record-quota 'lots' makes no"),
        (["--record-hard", "{}/clip.avi"], "cannot make the output folder"),
        (["--classes", "{}/gone.txt"], "cannot read classes from"),
        (["--colors", "gaudy"], "--colors is 'gaudy', must be bundle or safe"),
        (["--output", "{}/a.mkv"], "unknown kind of output"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    segmenter_bundle: Path, clip: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    kept = tmp_path / "kept.jsonl"
    kept.write_text("precious\n")
    done = call(segmenter_bundle, clip, kept, *[option.format(tmp_path) for option in options])
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert kept.read_text() == "precious\n"
