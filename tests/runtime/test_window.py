"""The window on a real X server: what it shows, and every way of closing it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from xserver import XServer, running_xserver

from mdeq_runtime.overlay import draw
from mdeq_runtime.results import Result
from mdeq_runtime.sinks.window import TITLE

pytestmark = pytest.mark.clock

SIZE = (240, 320)
LABELS, PALETTE = ("sky", "road"), ((10, 20, 200), (200, 20, 10))

SHOW = f"""
import time
import numpy as np
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink

mask = np.zeros({SIZE}, np.uint8)
mask[:, 160:] = 1
image = np.full((*{SIZE}, 3), 100, np.uint8)
result = Result(mask, None, 4, 0.02, True, True, "", {{"solve": 2.0}})
with open_sink("display://", labels={LABELS}, palette={PALETTE}) as sink:
    index = 0
    while sink.write(Frame(image, index, 0.0), result):
        index += 1
        if index == 10:
            print("showing", flush=True)
        time.sleep(0.02)
print("closed")
"""


@pytest.fixture(scope="module")
def xserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XServer]:
    with running_xserver(tmp_path_factory.mktemp("screen")) as server:
        yield server


@pytest.fixture
def shown(xserver: XServer) -> Iterator[subprocess.Popen[str]]:
    """A process that shows a result until the user has had enough."""
    with subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=xserver.environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "showing\n"
        yield process
        process.kill()


def expected(mask: bool = True, numbers: bool = True) -> Any:
    classes = np.zeros(SIZE, np.uint8)
    classes[:, 160:] = 1
    image = np.full((*SIZE, 3), 100, np.uint8)
    result = Result(classes, None, 4, 0.02, True, True, "", {"solve": 2.0})
    return draw(image, result, LABELS, PALETTE, mask=mask, numbers=numbers)


def wait_for(xserver: XServer, drawn: Any) -> Any:
    """The screen, once it shows this: a busy X server draws a little later than a program shows."""
    until = time.monotonic() + 20
    while True:
        screen = xserver.picture()
        on_screen = screen[: SIZE[0], : SIZE[1]].astype(int)
        alike = (np.abs(on_screen - drawn) <= 2).mean()
        if alike > 0.99 or time.monotonic() > until:
            break
    assert alike > 0.99
    return screen


def test_the_window_is_the_annotated_frame_and_nothing_else(
    xserver: XServer, shown: subprocess.Popen[str]
) -> None:
    screen = wait_for(xserver, expected())
    assert not screen[SIZE[0] :].any()
    assert not screen[:, SIZE[1] :].any()


def test_keys_hide_and_show_mask_and_numbers(
    xserver: XServer, shown: subprocess.Popen[str]
) -> None:
    window = xserver.window(TITLE)
    mask = numbers = True
    for key in ("o", "n", "O", "N"):
        xserver.press(window, key)
        mask ^= key in "oO"
        numbers ^= key in "nN"
        wait_for(xserver, expected(mask, numbers))


@pytest.mark.parametrize("way", ["q", "Q", "Escape", "the window's button"])
def test_the_user_ends_it(xserver: XServer, shown: subprocess.Popen[str], way: str) -> None:
    window = xserver.window(TITLE)
    if way == "the window's button":
        xserver.close_window(window)
    else:
        xserver.press(window, way)
    out, err = shown.communicate(timeout=10)
    assert shown.returncode == 0, err
    assert out == "closed\n"
    assert err == ""


def test_a_window_that_is_gone_has_no_title(xserver: XServer) -> None:
    """Nor does asking for it end these tests: Xlib would."""
    assert xserver.title(0x7654321) is None


def test_another_key_does_not_end_it(xserver: XServer, shown: subprocess.Popen[str]) -> None:
    xserver.press(xserver.window(TITLE), "x")
    with pytest.raises(subprocess.TimeoutExpired):
        shown.wait(1.0)


@pytest.mark.parametrize("way", ["q", "Ctrl-C"])
def test_a_run_in_a_window_ends_with_whole_files(
    xserver: XServer, segmenter_bundle: Path, tmp_path: Path, way: str
) -> None:
    clip, video, lines = (tmp_path / name for name in ("clip.avi", "out.mp4", "out.jsonl"))
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(3000):
        writer.write(np.asarray(cv2.resize(rng.integers(0, 256, (4, 6, 3), np.uint8), (96, 64))))
    writer.release()
    command = [sys.executable, "-m", "edge_mdeq.cli", "run", str(segmenter_bundle), str(clip)]
    command += ["display://", "--output", str(video), "--output", str(lines), "--cold", "64"]
    with subprocess.Popen(
        [*command, "--warm", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=xserver.environment | {"OMP_NUM_THREADS": "1"},
    ) as process:
        window = xserver.window(TITLE)
        deadline = time.monotonic() + 30
        while not (lines.exists() and lines.read_text().count("\n") >= 3):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no result in half a minute"
            time.sleep(0.05)
        if way == "q":
            xserver.press(xserver.window(TITLE) or window, "q")
        else:
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == (0 if way == "q" else 130), err
    assert "Traceback" not in err
    written = [json.loads(line)["index"] for line in lines.read_text().splitlines()]
    assert written == list(range(len(written)))
    assert 3 <= len(written) < 3000
    played, count = cv2.VideoCapture(str(video)), 0
    while played.grab():
        count += 1
    assert abs(count - len(written)) <= 1


SLOW = f"""
import time
import numpy as np
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sinks import open_sink, window

drawn, at_work = [], window.draw
def draw(*arguments, **options):
    time.sleep(0.2)  # a screen far away
    drawn.append(time.monotonic())
    return at_work(*arguments, **options)
window.draw = draw
mask, image = np.zeros({SIZE}, np.uint8), np.zeros((*{SIZE}, 3), np.uint8)
with open_sink("display://") as sink:
    started = time.monotonic()
    for index in range(100):
        sink.write(Frame(image, index, 0.0), Result(mask, None, 4, 0.02, True, True, ""))
        time.sleep(0.02)
    print(len(drawn), time.monotonic() - started)
"""


def test_a_slow_screen_takes_no_more_than_half_of_the_time(xserver: XServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW], capture_output=True, text=True, env=xserver.environment
    )
    assert done.returncode == 0, done.stderr
    drawn, seconds = (float(part) for part in done.stdout.split())
    assert 3 <= drawn <= 0.6 * seconds / 0.2, "the others are not shown"
    assert seconds < 100 * 0.2 / 2
