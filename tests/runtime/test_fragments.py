"""Videos that outlive their writer: fragments, read back after kill -9 and on a full disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sinks.fragments import FRAGMENT_S, FragmentedVideo
from mdeq_runtime.sinks.mp4 import boxes, read_segment

SIZE = (96, 128)
FPS = 20.0


def picture(index: int) -> Any:
    """Eight bars, black or white: the bits of its number, which no codec blurs."""
    bars = np.array([255 * (index >> bit & 1) for bit in range(8)], np.uint8)
    return np.broadcast_to(np.repeat(bars, SIZE[1] // 8)[None, :, None], (*SIZE, 3)).copy()


def number(image: Any) -> int:
    bars = image.reshape(SIZE[0], 8, -1).mean(axis=(0, 2)) > 127
    return sum(1 << bit for bit in range(8) if bars[bit])


def read_back(path: Path) -> tuple[list[int], list[float]]:
    """The numbers of the pictures in a video, and their times in seconds."""
    video, numbers, times = cv2.VideoCapture(str(path)), [], []
    while True:
        done, image = video.read()
        if not done:
            return numbers, times
        numbers.append(number(image))
        times.append(video.get(cv2.CAP_PROP_POS_MSEC) / 1e3)


def write(path: Path, times: list[float]) -> None:
    video = FragmentedVideo(cv2, path, FPS, SIZE, "mp4v")
    for index, time in enumerate(times):
        video.append(picture(index), time)
    video.close()
    video.close()


def test_fragments_play_as_one_video_whose_frames_come_at_their_times(tmp_path: Path) -> None:
    """Of a camera that was away for a second, and whose rate is not quite what it says."""
    times = [index / FPS * 1.02 + (1.0 if index > 50 else 0.0) for index in range(100)]
    write(tmp_path / "out.mp4", times)
    numbers, found = read_back(tmp_path / "out.mp4")
    assert numbers == list(range(100))
    assert found == pytest.approx(times, abs=0.002)
    kinds = [kind for kind, _ in boxes((tmp_path / "out.mp4").read_bytes())]
    assert kinds[:2] == [b"ftyp", b"moov"]
    pairs = kinds[2:]
    assert pairs == [b"moof", b"mdat"] * (len(pairs) // 2)
    assert len(pairs) // 2 >= (times[-1] - 1.0) // FRAGMENT_S
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_player_may_jump_to_any_time(tmp_path: Path) -> None:
    write(tmp_path / "out.mp4", [index / FPS for index in range(100)])
    video = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 100
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(FPS)
    video.set(cv2.CAP_PROP_POS_FRAMES, 70)
    assert number(video.read()[1]) == 70


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe (ffmpeg)")
def test_ffprobe_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    write(tmp_path / "out.mp4", [index / FPS for index in range(100)])
    command = ["ffprobe", "-v", "warning", "-of", "json", "-count_frames", "-show_entries"]
    entries = "format=duration:stream=nb_read_frames,avg_frame_rate,width,height"
    done = subprocess.run(
        [*command, entries, str(tmp_path / "out.mp4")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert float(said["format"]["duration"]) == pytest.approx(5.0)
    (stream,) = said["streams"]
    assert stream["nb_read_frames"] == "100"
    assert stream["avg_frame_rate"] == "20/1"
    assert (stream["height"], stream["width"]) == SIZE


RECORD = """
import sys, time
import numpy as np
from mdeq_runtime.pipeline import run
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
from mdeq_runtime.sources.base import Source

class Camera(Source):
    live, fps, size, description, index = True, 20.0, (96, 128), "camera", 0
    def read(self):
        time.sleep(0.01)  # faster than it says: ten seconds of video in two
        self.index += 1
        image = np.full((96, 128, 3), self.index % 256, np.uint8)
        return Frame(image, self.index, self.index / 20)
    def close(self):
        pass

def session(frame):
    if frame.index % 50 == 25:  # in the middle of a fragment, not while one is being finished
        print(frame.index, flush=True)
    return Result(np.full((96, 128), 255, np.uint8), None, 1, 0.1, True, True, "",
                  index=frame.index, timestamp=frame.timestamp)

run(session, Camera(), [open_sink(path, fps=20.0) for path in sys.argv[1:]])
"""


def test_a_killed_recording_plays_up_to_its_last_fragment(tmp_path: Path) -> None:
    video, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    video.write_bytes(b"of an older run")
    command = [sys.executable, "-c", RECORD, str(video), str(lines)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 200:
            pass
        process.send_signal(signal.SIGKILL)
    answered = [json.loads(line)["timestamp"] for line in lines.read_text().splitlines()]
    _, times = read_back(video)
    assert times[0] == 0.0
    span = answered[-1] - answered[0]
    assert span >= 200 / FPS - 1
    lost = span - times[-1]
    assert 0 <= lost <= FRAGMENT_S + 5 / FPS, "a fragment, and what waited for the encoder"
    steps = np.diff(times) * FPS  # more than 1 where this machine did not keep up
    assert (steps > 0.5).all()
    assert steps == pytest.approx(np.round(steps), abs=0.04), "each picture is at its own time"
    assert tmp_path.joinpath("out.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".out.{dead.pid}.fragment.part.mp4").write_bytes(b"torn")
    alive = tmp_path / f".out.{os.getppid()}.fragment.part.mp4"
    other = tmp_path / f".other.{dead.pid}.fragment.part.mp4"
    alive.write_bytes(b"")
    other.write_bytes(b"")
    with open_sink(tmp_path / "out.mp4", fps=FPS) as sink:
        sink.write(Frame(picture(0), 0, 0.0), answer(0))
    assert sorted(tmp_path.iterdir()) == sorted([alive, other, tmp_path / "out.mp4"])


def answer(index: int) -> Result:
    unseen = np.full(SIZE, 255, np.uint8)
    return Result(unseen, None, 1, 0.1, True, True, "", index=index)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


FILL = """
import sys
import numpy as np
from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
rng = np.random.default_rng(0)
sink = open_sink(sys.argv[1], fps=20.0)
unseen = np.full((96, 128), 255, np.uint8)
index = 0
try:
    while True:
        image = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        sink.write(Frame(image, index, index / 20), Result(unseen, None, 1, 0.1, True, True, ""))
        index += 1
except SinkError as error:
    print(index, error)
sink.close()
"""


def test_a_disk_that_is_full_keeps_what_was_recorded(small_disk: Path) -> None:
    path = small_disk / "out.mp4"
    command = [sys.executable, "-c", FILL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.match(r"(\d+) cannot write video .*out\.mp4: .*; free space", done.stdout)
    assert found, done.stdout
    written = int(found[1])
    numbers, times = read_back(path)
    assert len(numbers) >= written - 2 * FRAGMENT_S * FPS - 1
    assert times == pytest.approx([index / FPS for index in range(len(numbers))], abs=0.002)
    assert [p.name for p in small_disk.iterdir()] == ["out.mp4"]


def test_a_writer_that_does_not_open_again_is_a_disk_that_is_full(tmp_path: Path) -> None:
    """As OpenCV 4 has it, where OpenCV 5 opens a writer that then loses frames."""
    room = iter([True])

    class Writer:
        def __init__(self, *arguments: object) -> None:
            self.real = cv2.VideoWriter(*arguments)

        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def isOpened(self) -> bool:  # noqa: N802
            return next(room, False)

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

    module = SimpleNamespace(VideoWriter=Writer)
    video = FragmentedVideo(module, tmp_path / "out.mp4", FPS, SIZE, "mp4v")
    whole = int(FRAGMENT_S * FPS)
    for index in range(whole):
        video.append(picture(index), index / FPS)
    with pytest.raises(OSError, match="the disk may be full, no fragment can be begun"):
        video.append(picture(whole), FRAGMENT_S)
    video.close()
    assert read_back(tmp_path / "out.mp4")[0] == list(range(whole))
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("cut", [7, 40, -20])
def test_a_torn_part_is_no_fragment(tmp_path: Path, cut: int) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "a.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE[::-1]
    )
    for index in range(5):
        writer.write(picture(index))
    writer.release()
    data = (tmp_path / "a.mp4").read_bytes()
    whole = read_segment(data)
    assert len(whole.sizes) == 5
    assert whole.keys[0]
    assert (whole.height, whole.width) == SIZE
    with pytest.raises(ValueError, match=r"cut off|no box|bytes"):
        read_segment(data[:cut])


SYSTEM = """
import sys
sys.path[:0] = sys.argv[1:3]
sys.path.append(sys.argv[3])  # behind the system's own: what OpenCV does not bring
import cv2
import numpy as np
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink
with open_sink(sys.argv[4], fps=20.0, labels=("a",)) as sink:
    for index in range(100):
        bars = np.array([255 * (index >> bit & 1) for bit in range(8)], np.uint8)
        image = np.broadcast_to(np.repeat(bars, 16)[None, :, None], (96, 128, 3)).copy()
        unseen = np.full((96, 128), 255, np.uint8)
        answer = Result(unseen, None, 1, 0.1, True, True, "", index=index)
        sink.write(Frame(image, index, index / 20), answer)
print(cv2.__version__, cv2.__file__)
"""


def test_an_opencv_of_the_system_writes_them_too(tmp_path: Path) -> None:
    """As on JetPack: an older OpenCV with its own FFmpeg."""
    version = "import sys; print(sys.version_info[:2] == tuple(map(int, sys.argv[1:])), end='')"
    here = [str(part) for part in sys.version_info[:2]]
    python = "/usr/bin/python3"
    if not Path(python).exists():
        pytest.skip("there is no Python of the system")
    same = subprocess.run([python, "-c", version, *here], capture_output=True, text=True)
    if same.stdout != "True":
        pytest.skip("the system's Python has another version")
    root = Path(__file__).parents[2]
    installed = Path(np.__file__).parents[1]
    command = [python, "-c", SYSTEM, str(root), str(root / "runtime"), str(installed)]
    done = subprocess.run([*command, str(tmp_path / "out.mp4")], capture_output=True, text=True)
    if str(installed) in done.stdout or "No module named 'cv2'" in done.stderr:
        pytest.skip("needs python3-opencv")
    assert done.returncode == 0, done.stderr
    numbers, times = read_back(tmp_path / "out.mp4")
    assert numbers == list(range(100))
    assert times == pytest.approx([index / FPS for index in range(100)], abs=0.002)
