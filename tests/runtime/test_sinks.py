from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.video import CODECS, VideoSink

LABELS = ("sky", "road")
PALETTE = ((10, 20, 200), (200, 20, 10))
SIZE = (240, 320)


def frame(index: int, size: tuple[int, int] = SIZE) -> Frame:
    return Frame(np.full((*size, 3), 100, np.uint8), index, index / 10)


def result(index: int, output: Any = None, size: tuple[int, int] = SIZE) -> Result:
    if output is None:
        output = np.zeros(size, np.uint8)
        output[:, size[1] // 2 :] = 1
    times = {"read": 1.0, "solve": 2.0}
    return Result(output, None, 4, 0.02, True, index > 0, "", times, index, index / 10)


def video_frames(path: Path) -> list[Any]:
    video = cv2.VideoCapture(str(path))
    assert video.isOpened()
    images: list[Any] = []
    while True:
        done, image = video.read()
        if not done:
            return images
        images.append(image)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".MP4"])
def test_a_video_is_annotated_and_plays(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "made" / f"out{suffix}"
    with open_sink(path, fps=10.0, labels=LABELS, palette=PALETTE) as sink:
        for index in range(7):
            assert sink.write(frame(index), result(index))
        assert not path.exists()  # not under its name before it is whole
    images = video_frames(path)
    assert len(images) == 7
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    left, right = images[0][100, 40].astype(int), images[0][100, 300].astype(int)
    assert np.abs(left - (150, 60, 55)).max() < 30
    assert np.abs(right - (55, 60, 150)).max() < 30
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)


@pytest.mark.parametrize("fps", [None, 0.0, float("nan"), 90000.0])
def test_a_rate_that_makes_no_sense_is_replaced(tmp_path: Path, fps: float | None) -> None:
    with open_sink(tmp_path / "out.mp4", fps=fps) as sink:
        sink.write(frame(0), result(0))
    assert len(video_frames(tmp_path / "out.mp4")) == 1


def test_frames_that_change_size_are_letterboxed(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.avi", fps=10.0) as sink:
        for index, size in enumerate([(240, 320), (120, 320), (241, 321)]):
            sink.write(frame(index, size), result(index, size=size))
    assert [image.shape for image in video_frames(tmp_path / "out.avi")] == [(240, 320, 3)] * 3


def test_dropped_frames_are_filled_so_that_the_video_keeps_its_pace(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.avi", fps=10.0) as sink:
        for index in (0, 1, 5):
            sink.write(frame(index), result(index))
    assert len(video_frames(tmp_path / "out.avi")) == 6


def test_a_run_without_frames_leaves_the_old_video(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"old")
    open_sink(tmp_path / "out.mp4").close()
    assert (tmp_path / "out.mp4").read_bytes() == b"old"


def test_a_missing_codec_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, ".mp4", "none")
    sink = VideoSink(tmp_path / "out.mp4", 10.0, LABELS, PALETTE)
    with pytest.raises(SinkError, match=r"no writer for codec none at 320x240 here; try \.avi"):
        sink.write(frame(0), result(0))
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
import numpy as np
from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rng = np.random.default_rng(0)
try:
    with open_sink(sys.argv[1], fps=10.0) as sink:
        for index in range(20):
            image = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
            output = rng.integers(0, 2, (240, 320), dtype=np.uint8)
            result = Result(output, None, 1, 0.5, False, False, "x" * 9000, index=index)
            sink.write(Frame(image, index, 0.0), result)
except SinkError as error:
    print("SinkError:", error)
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out.jsonl"])
def test_a_write_that_fails_is_noticed(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SinkError: cannot write")
    assert name in done.stdout
    assert {p.name for p in tmp_path.iterdir()} <= {name}


def test_json_lines_for_segmentation(tmp_path: Path) -> None:
    path = tmp_path / "made" / "out.jsonl"
    with open_sink(path, labels=LABELS) as sink:
        sink.write(frame(0), result(0))
        assert len(path.read_text().splitlines()) == 1  # at once, for whoever follows the file
        mask = np.zeros(SIZE, np.uint8)
        mask[:60] = 255
        sink.write(frame(1), result(1, mask))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {
        "index": 0,
        "timestamp": 0.0,
        "iterations": 4,
        "residual": 0.02,
        "converged": True,
        "warm": False,
        "reason": "",
        "times": {"read": 1.0, "solve": 2.0},
        "areas": {"sky": 0.5, "road": 0.5},
    }
    assert second["areas"] == {"sky": 0.75, "unseen": 0.25}


def test_json_lines_of_a_camera_say_how_old_the_answer_is(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.jsonl") as sink:
        sink.write(frame(0), replace(result(0), age_ms=41.2345))
    assert json.loads((tmp_path / "out.jsonl").read_text())["age_ms"] == 41.234


def test_json_lines_for_classification(tmp_path: Path) -> None:
    scores = np.array([0.02, 0.5, 0.2, 0.1, 0.08, 0.1], np.float32)
    with open_sink(tmp_path / "out.jsonl", labels=LABELS) as sink:
        sink.write(frame(0), result(0, scores))
    top = json.loads((tmp_path / "out.jsonl").read_text())["top"]
    assert [entry["label"] for entry in top] == ["road", "class 2", "class 3", "class 5", "class 4"]
    assert top[0]["score"] == pytest.approx(0.5)


@pytest.mark.parametrize("residual", [float("nan"), float("inf")])
def test_json_lines_stay_valid_json(tmp_path: Path, residual: float) -> None:
    broken = Result(np.array([1.0], np.float32), None, 4, residual, False, False, "")
    with open_sink(tmp_path / "out.jsonl") as sink:
        sink.write(frame(0), broken)
    assert json.loads((tmp_path / "out.jsonl").read_text())["residual"] is None


@pytest.mark.parametrize("form", ["{}/", "masks://{}"])
def test_masks_are_lossless_and_named_by_frame_number(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "made" / "masks"
    mask = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    with open_sink(form.format(folder)) as sink:
        sink.write(frame(7), result(7, mask))
    assert [p.name for p in folder.iterdir()] == ["000007.png"]
    read = cv2.imread(str(folder / "000007.png"), cv2.IMREAD_UNCHANGED)
    assert read is not None
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)


def test_masks_of_a_classifier_are_refused(tmp_path: Path) -> None:
    sink = open_sink(f"{tmp_path}/")
    with pytest.raises(SinkError, match="takes masks, but this model answers with scores"):
        sink.write(frame(0), result(0, np.array([0.5, 0.5], np.float32)))


def test_none_takes_everything() -> None:
    with open_sink("none") as sink:
        assert sink.write(frame(0), result(0))


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl", "masks/"])
def test_a_parent_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkError, match="cannot make the output folder"):
        open_sink(f"{tmp_path}/file/{name}")


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl"])
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(SinkError, match=name):
        open_sink(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl", "masks/"])
def test_a_folder_without_permission(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(SinkError):
        open_sink(f"{tmp_path}/{name}")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl", "masks://"])
def test_a_file_system_that_takes_no_files(name: str) -> None:
    """Permissions allow root to write into /proc, and still nothing can be made there."""
    with pytest.raises(SinkError, match=r"cannot (write into|make the output folder) /proc"):
        open_sink(f"{name}/proc/masks" if name.endswith("//") else f"/proc/{name}")


@pytest.mark.parametrize("name", ["out.mp4", "out.jsonl", "masks/"])
def test_opening_an_output_leaves_what_is_there_as_it_is(tmp_path: Path, name: str) -> None:
    """Until a result comes the run may still be refused."""
    (tmp_path / "masks").mkdir()
    files = [tmp_path / "out.mp4", tmp_path / "out.jsonl", tmp_path / "masks" / "000000.png"]
    for path in files:
        path.write_text("precious")
    open_sink(f"{tmp_path}/{name}").close()
    assert {path.read_text() for path in files} == {"precious"}
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


@pytest.mark.parametrize("name", ["new.mp4", "new.jsonl", "masks/"])
def test_opening_an_output_makes_no_file(tmp_path: Path, name: str) -> None:
    open_sink(f"{tmp_path}/{name}").close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


FILL = """
import resource, sys
import numpy as np
from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink

sink = open_sink(sys.argv[1])
limit = int(sys.argv[2])  # bytes in a file: a disk that fills up in the middle of a write
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
rng = np.random.default_rng(0)
image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
try:
    for index in range(1000):
        mask = rng.integers(0, 4 if index else 1, (64, 96), dtype=np.uint8)
        result = Result(mask, None, 2, 0.1, True, True, "", index=index)
        sink.write(Frame(image, index, 0.0), result)
except SinkError as error:
    print(error)
sink.close()
"""


@pytest.mark.parametrize(("name", "limit"), [("out.jsonl", 5000), ("masks/", 1000)])
def test_a_disk_that_fills_up_leaves_no_half_result(tmp_path: Path, name: str, limit: int) -> None:
    command = [sys.executable, "-c", FILL, f"{tmp_path}/{name}", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot write ")
    if name == "out.jsonl":
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        assert len(lines) > 5
        assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
        assert lines[-1].endswith("\n")
    else:
        assert [path.name for path in (tmp_path / name).iterdir()] == ["000000.png"]
        mask = cv2.imread(f"{tmp_path}/masks/000000.png", cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert not mask.any()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_may_stand_in_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    sink = open_sink(tmp_path / "full.jsonl")
    with pytest.raises(SinkError, match="No space left"):
        sink.write(frame(0), result(0))
    sink.close()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("out.mkv", r"unknown kind of output 'out\.mkv'.*NAME\.mp4, NAME\.avi, NAME\.jsonl"),
        ("out.json", r"did you mean '\.jsonl'"),
        ("nameless", "a name without suffix"),
        ("displai://", "did you mean 'display'"),
        ("https://0.0.0.0:8080", "put a reverse proxy before it"),
        ("masks://", "names no folder"),
    ],
)
def test_unknown_targets_are_explained(target: str, message: str) -> None:
    with pytest.raises(SinkError, match=message):
        open_sink(target)


def test_a_folder_without_a_slash_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="is a folder; write"):
        open_sink(tmp_path)


@pytest.mark.parametrize("display", [None, ":97"])
def test_a_window_without_a_display(monkeypatch: pytest.MonkeyPatch, display: str | None) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(SinkError, match="--headless"):
        open_sink("display://")


class SilentWriter:
    """OpenCV 4's writer on a full disk: takes every frame, reports nothing, writes only a few."""

    def __init__(self, writer: Any, room: int) -> None:
        self.writer = writer
        self.room = room

    def write(self, image: Any) -> None:
        if self.room:
            self.room -= 1
            self.writer.write(image)

    def release(self) -> None:
        self.writer.release()


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_that_got_lost_silently_are_missed_when_closing(tmp_path: Path, suffix: str) -> None:
    sink = VideoSink(tmp_path / f"out{suffix}", 10.0, LABELS, PALETTE)
    for index in range(12):
        sink.write(frame(index), result(index))
        if index == 0:
            video: Any = sink._video
            video._writer = SilentWriter(video._writer, room=4)
    with pytest.raises(SinkError, match=r"the disk may be full.*free space|5 of 12 frames"):
        sink.close()
    if suffix == ".avi":
        assert len(video_frames(tmp_path / "out.avi")) == 5
    else:
        assert list(tmp_path.iterdir()) == []  # what was torn is no fragment
    sink.close()


def test_a_disk_that_fills_up_stops_the_run_while_the_video_can_still_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink(tmp_path / "out.avi", fps=10.0)
    sink.write(frame(0), result(0))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SinkError, match=r"cannot write video .*out\.avi: the disk is full"):
        sink.write(frame(1), result(1))
    sink.close()
    assert len(video_frames(tmp_path / "out.avi")) == 1
