"""V4L2 cameras: what is asked of the driver, and what is said of one that does not open.

No camera is needed: OpenCV's door to the driver is a double here, everything else is real.
"""

from __future__ import annotations

import grp
import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mdeq.errors import SourceError
from mdeq_runtime.sources import SourceOptions, camera, open_source

pytestmark = pytest.mark.clock


class Driver:
    """Stands in for ``cv2.VideoCapture`` on a camera of 640 x 480 at 30 frames per second."""

    opens = True
    asked: list[int]
    settings: dict[int, float]

    def __init__(self, index: int, backend: int, parameters: list[int]) -> None:
        Driver.asked, Driver.settings = parameters, {}
        assert backend == cv2.CAP_V4L2

    def isOpened(self) -> bool:  # noqa: N802
        return Driver.opens

    def get(self, code: int) -> float:
        found = {cv2.CAP_PROP_FPS: 30, cv2.CAP_PROP_FRAME_WIDTH: 640}
        return {**found, cv2.CAP_PROP_FRAME_HEIGHT: 480}.get(code, 0)

    def set(self, code: int, value: float) -> bool:
        Driver.settings[code] = value
        return True

    def read(self) -> tuple[bool, Any]:
        threading.Event().wait(0.01)
        return True, np.zeros((480, 640, 3), np.uint8)

    def release(self) -> None: ...


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> type[Driver]:
    monkeypatch.setattr(cv2, "VideoCapture", Driver)
    monkeypatch.setattr(camera, "check_device", lambda path: None)
    Driver.opens = True
    return Driver


@pytest.mark.parametrize("uri", ["3", "v4l2:///dev/video3", "/dev/video3"])
def test_a_driver_is_asked_for_the_format_first(driver: type[Driver], uri: str) -> None:
    options = SourceOptions(width=640, height=480, rate=30, codec="mjpg", exposure=150)
    with open_source(uri, options) as source:
        assert source.description == "USB camera /dev/video3"
        assert source.size == (480, 640)
        assert source.read() is not None
    asked = dict(zip(driver.asked[::2], driver.asked[1::2], strict=True))
    assert driver.asked[0] == cv2.CAP_PROP_FOURCC
    assert asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert asked[cv2.CAP_PROP_FRAME_WIDTH] == 640
    assert asked[cv2.CAP_PROP_FPS] == 30
    assert driver.settings == {cv2.CAP_PROP_AUTO_EXPOSURE: 1, cv2.CAP_PROP_EXPOSURE: 150}


def test_a_camera_that_gives_another_size_says_so(
    driver: type[Driver], caplog: pytest.LogCaptureFixture
) -> None:
    with open_source("0", SourceOptions(width=1920, height=1080, rate=60)) as source:
        assert source.size == (480, 640)
    assert "gives 640x480, not 1920x1080" in caplog.text
    assert "gives 30 frames per second, not 60" in caplog.text


def test_who_has_a_camera_is_told(driver: type[Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    driver.opens = False
    monkeypatch.setattr(camera, "users_of", lambda path: ["cheese (process 123)"])
    with pytest.raises(SourceError, match=r"in use by cheese \(process 123\); end that first"):
        open_source("0")


def test_processes_that_hold_a_file_are_found(tmp_path: Path) -> None:
    held = tmp_path / "video0"
    with held.open("w"):
        (user,) = camera.users_of(held)
    assert str(os.getpid()) in user
    assert camera.users_of(held) == []


def test_the_group_to_join_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "video0"
    device.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    group = grp.getgrgid(device.stat().st_gid).gr_name
    with pytest.raises(SourceError, match=rf"belongs to the group {group}.*usermod -aG {group}"):
        camera.check_device(device)


def test_a_link_is_followed_at_each_attempt(tmp_path: Path) -> None:
    link = tmp_path / "front-camera"
    for number in (2, 5):
        link.unlink(missing_ok=True)
        link.symlink_to(f"/dev/video{number}")
        assert camera.index_of(str(link)) == number
