"""GStreamer through a system's OpenCV, in an environment that sees its packages, as on JetPack."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rtsp import PYTHON, need_server, serving

from mdeq_runtime.sources.gstreamer import (
    csi_pipeline,
    fraction,
    is_file,
    rtsp_pipeline,
    user_pipeline,
)
from mdeq_runtime.sources.options import SourceOptions

pytestmark = pytest.mark.clock

ROOT = Path(__file__).parents[2]
READ = """
import json, sys
sys.path[:0] = sys.argv[1:3]
from mdeq_runtime.sources import SourceOptions, open_source
from mdeq_runtime.slot import capture
import mdeq_runtime.sources.gstreamer as gstreamer
uri, count, replaced, options = sys.argv[3], int(sys.argv[4]), sys.argv[5], json.loads(sys.argv[6])
if replaced:
    made = gstreamer.csi_pipeline
    def csi_pipeline(sensor, options):
        pipeline = made(sensor, options)
        for old, new in json.loads(replaced):
            assert old in pipeline, (old, pipeline)
            pipeline = pipeline.replace(old, new)
        return pipeline
    import mdeq_runtime.sources as sources
    sources.csi_pipeline = csi_pipeline
found = []
with open_source(uri, SourceOptions(**options)) as source, capture(source) as frames:
    for frame in frames:
        found.append([frame.index, *frame.image.shape, float(frame.image.mean())])
        if len(found) == count:
            break
    more = {"live": source.live, "description": source.description, "dropped": frames.dropped}
    more["states"] = [status.state.value for status in getattr(source, "past", [])]
print(json.dumps({"frames": found, "size": source.size, "fps": source.fps, **more}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that sees the system's OpenCV, and has the rest in its own environment."""
    check = "import cv2; assert 'GStreamer:                   YES' in cv2.getBuildInformation()"
    if not shutil.which(PYTHON):
        pytest.skip("needs the system's Python")
    if subprocess.run([PYTHON, "-c", check], capture_output=True, check=False).returncode:
        pytest.skip("needs Debian's python3-opencv")
    place = tmp_path_factory.mktemp("jetpack") / "environment"
    make = [PYTHON, "-m", "venv", "--system-site-packages", "--without-pip", str(place)]
    subprocess.run(make, check=True, capture_output=True)
    found = str(place / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", found, "install", "-q", "msgspec"]
    done = subprocess.run([*install, "numpy>=1.26,<2"], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a package index: {done.stderr[-200:]}")
    return found


def attempt(
    python: str, uri: str, count: int, options: dict[str, Any] | None = None, replaced: Any = None
) -> subprocess.CompletedProcess[str]:
    given = json.dumps(replaced) if replaced else ""
    return subprocess.run(
        [python, "-c", READ, str(ROOT), str(ROOT / "runtime"), uri, str(count), given,
         json.dumps(options or {})],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def read(python: str, uri: str, count: int, *more: Any) -> Any:
    done = attempt(python, uri, count, *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refusal(python: str, uri: str, *more: Any) -> str:
    done = attempt(python, uri, 1, *more)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_a_pipeline_with_an_end_is_read_to_it_and_loses_nothing(python: str) -> None:
    pipeline = "videotestsrc num-buffers=12 pattern=ball ! video/x-raw,width=64,height=48"
    found = read(python, f"gst://{pipeline}", 100)
    assert [frame[0] for frame in found["frames"]] == list(range(12))
    assert {tuple(frame[1:4]) for frame in found["frames"]} == {(48, 64, 3)}
    assert not found["live"]
    assert found["dropped"] == 0


def test_a_pipeline_without_one_is_a_camera(python: str) -> None:
    caps = "video/x-raw,width=64,height=48,framerate=50/1"
    found = read(python, f"gst://videotestsrc is-live=true pattern=snow ! {caps}", 10)
    assert found["live"]
    assert len(found["frames"]) == 10
    assert found["fps"] == 50
    assert found["states"] == ["reconnecting", "ok"]


def test_what_is_wrong_with_a_pipeline_is_said(python: str) -> None:
    if not shutil.which("gst-inspect-1.0"):
        pytest.skip("needs Debian's gstreamer1.0-tools")
    said = refusal(python, "gst://nosuchsource ! fakery")
    assert "pipeline nosuchsource ! fakery does not start: GStreamer lacks nosuchsource" in said
    assert "CSI camera 0 does not start: GStreamer lacks nvarguscamerasrc" in refusal(
        python, "csi://0"
    )
    said = refusal(python, "gst://videotestsrc ! video/x-raw,width=-5")
    assert "does not start: try it alone: gst-launch-1.0 videotestsrc" in said


def test_an_older_opencv_does_not_log_the_password_of_a_file_either(python: str) -> None:
    said = refusal(python, "http://joe:hunter2@127.0.0.1:9/clip.avi")
    assert "is refused by 127.0.0.1:9" in said
    assert "hunter2" not in said


STAND_INS = [
    ("nvarguscamerasrc sensor-id=0 sensor-mode=2", "videotestsrc is-live=true pattern=smpte"),
    ("video/x-raw(memory:NVMM)", "video/x-raw"),
    ("nvvidconv flip-method=3", "videoconvert ! videoflip video-direction=90r"),
]


def test_the_csi_pipeline_with_stand_ins_for_what_only_a_jetson_has(python: str) -> None:
    options = {"width": 320, "height": 240, "rate": 25, "sensor_mode": 2, "flip": "clockwise"}
    found = read(python, "csi://0", 8, options, STAND_INS)
    assert found["description"] == "CSI camera 0"
    assert {tuple(frame[1:4]) for frame in found["frames"]} == {(320, 240, 3)}  # turned
    assert len(found["frames"]) == 8
    assert found["fps"] == 25


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_rtsp_through_gstreamer_with_credentials(python: str, codec: str) -> None:
    need_server()
    with serving("--password", 's3"cr t', "--codec", codec) as server:
        where = server.uri.removeprefix("rtsp://")
        uri = f"rtsp://joe:s3%22cr%20t@{where}"
        found = read(python, uri, 10, {"backend": "gstreamer"})
        assert len(found["frames"]) == 10
        assert {tuple(frame[1:4]) for frame in found["frames"]} == {(240, 320, 3)}
        said = refusal(python, f"rtsp://joe:wr0ng@{where}", {"backend": "gstreamer"})
        assert "is denied at" in said
        assert "wr0ng" not in said.rpartition("SourceError")[2]


# What needs no GStreamer


def test_a_csi_camera_is_asked_for_what_jetson_utils_would() -> None:
    pipeline = csi_pipeline(1, SourceOptions())
    assert pipeline.startswith("nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM)")
    assert "width=1280,height=720,framerate=30/1,format=NV12" in pipeline
    assert "nvvidconv flip-method=0" in pipeline
    assert pipeline.endswith("appsink drop=true max-buffers=1 sync=false")


def test_rtsp_is_decoded_by_the_board_where_it_can() -> None:
    uri = "rtsp://joe:a%40b@gate:8554/1?x=2"
    on_board = rtsp_pipeline(uri, SourceOptions(codec="h265", transport="udp"), on_board=True)
    assert 'location="rtsp://gate:8554/1?x=2" protocols=udp latency=100' in on_board
    assert 'user-id="joe" user-pw="a@b"' in on_board
    assert "rtph265depay ! h265parse ! nvv4l2decoder" in on_board
    elsewhere = rtsp_pipeline("rtsp://gate/1", SourceOptions(), on_board=False)
    assert "protocols=tcp latency=0" in elsewhere
    assert "decodebin" in elsewhere
    assert "user-id" not in elsewhere


def test_a_users_pipeline_ends_as_opencv_needs_it() -> None:
    assert user_pipeline("videotestsrc ! ").startswith("videotestsrc ! videoconvert")
    assert "drop=true" in user_pipeline("videotestsrc")
    assert "drop=false" in user_pipeline("filesrc location=x.mp4 ! decodebin")
    own = "videotestsrc ! appsink name=mine"
    assert user_pipeline(own) == own
    assert is_file("videotestsrc num-buffers=5")
    assert not is_file("v4l2src num-buffers=-1")


def test_rates_as_fractions() -> None:
    assert [fraction(rate) for rate in (30, 29.97, 59.94, 12.5)] == [
        "30/1", "30000/1001", "60000/1001", "12500/1000",
    ]  # fmt: skip
