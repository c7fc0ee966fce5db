from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import FrameError, SourceError
from mdeq_runtime.frames import check_frame
from mdeq_runtime.sources import open_source

SIZE = (48, 64)


def write_video(path: Path, frames: int, fps: float = 10.0) -> Path:
    """A video whose frame i has the grey level 20 * i, from 0 again after 12."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, SIZE[::-1])
    for index in range(frames):
        writer.write(np.full((*SIZE, 3), 20 * (index % 13), np.uint8))
    writer.release()
    return path


def test_a_video_gives_every_frame_in_order_and_then_none(tmp_path: Path) -> None:
    with open_source(write_video(tmp_path / "clip.avi", 6)) as source:
        assert not source.live
        assert source.size == SIZE
        assert source.fps == pytest.approx(10.0)
        frames = [source.read() for _ in range(7)]
    assert frames.pop() is None
    for index, frame in enumerate(frames):
        assert frame is not None
        assert frame.index == index
        assert frame.timestamp == pytest.approx(index / 10, abs=0.01)
        assert abs(float(frame.image.mean()) - 20 * index) < 4


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_video_that_was_cut_off_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: float
) -> None:
    whole = write_video(tmp_path / "whole.avi", 40).read_bytes()
    path = tmp_path / "clip.avi"
    path.write_bytes(whole[: int(part * len(whole))])
    with open_source(path) as source:
        count = 0
        while source.read() is not None:
            count += 1
        assert source.read() is None
    if part == 1.0:
        assert count == 40
        assert not caplog.messages
    else:
        assert 0 < count < 40
        (message,) = caplog.messages
        assert f"clip.avi ended after {count} of the 40 frames" in message


def test_a_file_uri_may_be_percent_encoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "my clip.avi", 1)
    with open_source("file://" + str(path).replace(" ", "%20")) as source:
        assert source.read() is not None
        assert "my clip.avi" in source.description


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    with open_source(write_video(tmp_path / "clip[1].avi", 1)) as source:
        assert source.read() is not None


def test_a_closed_source_gives_none(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.avi", 2))
    source.close()
    source.close()
    assert source.read() is None


@pytest.mark.parametrize("kind", ["glob", "folder"])
def test_images_come_in_natural_order(tmp_path: Path, kind: str) -> None:
    for number in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"f{number}.png"), np.full((4, 4, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    with open_source(f"{tmp_path}/*" if kind == "glob" else tmp_path) as source:
        assert source.description.startswith("3 images")
        levels = [int(frame.image[0, 0, 0]) for frame in iter(source.read, None)]
    assert levels == [1, 2, 10]


@pytest.mark.parametrize(
    ("image", "suffix", "advice"),
    [
        (np.zeros((4, 4), np.uint8), ".png", "grey"),
        (np.zeros((4, 4), np.uint8), ".jpg", "grey"),
        (np.zeros((4, 4, 3), np.uint16), ".png", "16-bit"),
        (np.zeros((4, 4, 4), np.uint8), ".png", "alpha"),
    ],
)
def test_images_are_not_converted_silently(
    tmp_path: Path, image: Any, suffix: str, advice: str
) -> None:
    path = tmp_path / f"image{suffix}"
    cv2.imwrite(str(path), image)
    with open_source(path) as source:
        frame = source.read()
    assert frame is not None
    with pytest.raises(FrameError, match=advice):
        check_frame(frame.image, "frame 0")


def test_a_jpeg_is_turned_upright_by_its_exif_orientation(tmp_path: Path) -> None:
    done, data = cv2.imencode(".jpg", np.zeros((8, 16, 3), np.uint8))
    assert done
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
    segment = b"Exif\0\0" + tiff
    head = b"\xff\xd8\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    (tmp_path / "phone.jpg").write_bytes(head + data.tobytes()[2:])
    with open_source(tmp_path / "phone.jpg") as source:
        frame = source.read()
    assert frame is not None
    assert frame.image.shape == (16, 8, 3)


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.mp4").write_text("this is not a video " * 50)
    (tmp_path / "nothing.mp4").write_bytes(b"")
    cases: list[tuple[str | Path, str]] = [
        (tmp_path / "missing.mp4", "missing.mp4 does not exist"),
        (tmp_path / "empty", "no image in folder"),
        (f"{tmp_path}/*.jpg", "no image in glob"),
        (tmp_path / "words.mp4", "words.mp4 cannot be opened as a video"),
        (tmp_path / "nothing.mp4", "nothing.mp4 cannot be opened as a video"),
        ("", "the source is empty"),
    ]
    for uri, message in cases:
        with pytest.raises(SourceError, match=message):
            open_source(uri)


def test_an_undecodable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with (
        open_source(tmp_path / "broken.png") as source,
        pytest.raises(SourceError, match=r"broken\.png cannot be decoded"),
    ):
        source.read()


@pytest.mark.parametrize("uri", ["97", 97, "v4l2:///dev/video97", "v4l2://97", "/dev/video97"])
def test_a_camera_that_is_not_there(uri: str | int) -> None:
    with pytest.raises(SourceError, match="97"):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("v4l://0", "did you mean 'v4l2'"),
        ("gopher://x", "unknown scheme 'gopher'.*known: .*v4l2:///dev/video0, csi://0, rtsp://"),
        (
            "rstp://joe:secret@gate/1",
            r"'rstp' in source 'rstp://\*\*\*@gate/1', did you mean 'rtsp'",
        ),
        ("csi://front", "csi://front names no camera; write csi://0"),
        ("csi://0", "needs an OpenCV with GStreamer"),
        ("gst://", "names no pipeline"),
        ("rtsp:///stream", "names no host"),
        ("v4l2:///dev/null", "is not a camera"),
        ("v4l2:///dev/v4l/by-id/usb-none", "is not there; plug it in"),
    ],
)
def test_wrong_schemes_are_explained(uri: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(uri)
