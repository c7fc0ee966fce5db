"""Cameras through OpenCV: an index, or a V4L2 device on Linux."""

from __future__ import annotations

import grp
import logging
import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_mdeq.errors import SourceError, require
from mdeq_runtime.sources.device import OpenCVDevice, Opening
from mdeq_runtime.sources.options import SourceOptions
from mdeq_runtime.uris import redact

__all__ = ["camera_opening", "describe_camera"]

log = logging.getLogger(__name__)

FOURCC = {"mjpeg": "MJPG", "yuyv": "YUYV"}
MANUAL_EXPOSURE = 1  # V4L2_EXPOSURE_MANUAL


def camera_opening(device: str, options: SourceOptions) -> Opening:
    """What opens camera ``device``: an index ("0") or a path ("/dev/video0", "/dev/v4l/by-id/...").

    The path is looked up at each attempt: a camera that is plugged in again may get another number.

    Raises:
        SourceError: it is not the name of a camera.
    """
    if not re.fullmatch(r"[0-9]+|/.+", device):
        raise SourceError(
            f"{redact('v4l2://' + device)} is not a camera; write an index (0) or a device "
            "(v4l2:///dev/video0)"
        )
    told = threading.Event()

    def opening(cancelled: threading.Event) -> OpenCVDevice:
        return open_camera(device, options, told)

    return opening


def describe_camera(device: str) -> str:
    """ "USB camera /dev/video0"."""
    if not sys.platform.startswith("linux"):
        return f"camera {device}"
    return f"USB camera {f'/dev/video{device}' if device.isdecimal() else device}"


def open_camera(device: str, options: SourceOptions, told: threading.Event) -> OpenCVDevice:
    """Open it now.

    Args:
        device: index or path.
        options: size, rate, codec, exposure.
        told: set once it was said that the camera does not do what it was asked for.

    Raises:
        SourceError: no such camera, no permission, in use, or it does not open.
    """
    index = index_of(device)
    path, name = Path(f"/dev/video{index}"), describe_camera(device)
    linux = sys.platform.startswith("linux")
    if linux:
        check_device(path)
    cv2 = require("cv2", "camera", "reading cameras")
    capture = cv2.VideoCapture(
        index, cv2.CAP_V4L2 if linux else cv2.CAP_ANY, parameters(cv2, options)
    )
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"{name} cannot be opened: {why(path)}")
    if options.exposure is not None:
        capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, MANUAL_EXPOSURE)
        if not capture.set(cv2.CAP_PROP_EXPOSURE, options.exposure) and not told.is_set():
            log.warning(
                "%s does not take an exposure of %d; see: v4l2-ctl -l", name, options.exposure
            )
    opened = OpenCVDevice(
        capture,
        f"{name} stopped delivering; it may have been unplugged or lost power: check the cable",
    )
    tell_difference(opened, options, name, told)
    told.set()
    return opened


def parameters(cv2: Any, options: SourceOptions) -> list[int]:
    """What OpenCV is to ask the driver for; the format first, since sizes depend on it."""
    found = []
    if options.codec is not None:
        if options.codec not in FOURCC:
            raise SourceError(
                f"codec {options.codec} is not one that cameras are read in; take mjpeg or yuyv"
            )
        found += [cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*FOURCC[options.codec])]
    if options.size is not None:
        found += [cv2.CAP_PROP_FRAME_WIDTH, options.size[1]]
        found += [cv2.CAP_PROP_FRAME_HEIGHT, options.size[0]]
    if options.rate is not None:
        found += [cv2.CAP_PROP_FPS, round(options.rate)]
    return found


def tell_difference(
    opened: OpenCVDevice, options: SourceOptions, name: str, told: threading.Event
) -> None:
    """Drivers take the nearest that they have, without a word."""
    if told.is_set():
        return
    if options.size is not None and opened.size not in (None, options.size):
        (height, width), (asked_height, asked_width) = opened.size or (0, 0), options.size
        log.warning(
            "%s gives %dx%d, not %dx%d; it has: v4l2-ctl --list-formats-ext",
            *(name, width, height, asked_width, asked_height),
        )
    if options.rate is not None and opened.fps is not None and abs(opened.fps - options.rate) > 1:
        log.warning("%s gives %g frames per second, not %g", name, opened.fps, options.rate)


def index_of(device: str) -> int:
    """The number of a camera; links such as those in /dev/v4l/by-id are followed."""
    name = os.path.realpath(device) if device.startswith("/") else device
    match = re.fullmatch(r"(?:/dev/video)?([0-9]+)", name)
    if match is None:
        missing = device.startswith("/dev/v4l/") and not os.path.exists(device)
        what = "is not there; plug it in" if missing else "is not a camera"
        raise SourceError(f"{device!r} {what}; write an index (0) or a device (v4l2:///dev/video0)")
    return int(match[1])


def check_device(path: Path) -> None:
    """Say what is wrong before OpenCV only says that it did not open.

    Raises:
        SourceError: it is not there, or this user may not use it.
    """
    if not os.path.exists(path):
        found = ", ".join(sorted(str(device) for device in Path("/dev").glob("video*")))
        raise SourceError(
            f"there is no camera {path} (found: {found or 'none'}); plug it in, or choose another"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        group = group_of(path)
        raise SourceError(
            f"no permission to use camera {path}, which belongs to the group {group}; add the user "
            f"to it, then log in again: sudo usermod -aG {group} $USER"
        )


def group_of(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def why(path: Path) -> str:
    """Who has it, as far as this user may know."""
    users = users_of(path)
    if users:
        return f"it is in use by {', '.join(users)}; end that first"
    return (
        f"another program may be using it (fuser -v {path}), or it is not a capture device; try: "
        f"v4l2-ctl --device {path} --all"
    )


def users_of(path: Path, proc: Path = Path("/proc")) -> list[str]:
    """ "NAME (process 123)" for each process that has ``path`` open, this one included."""
    found = []
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone
            if any(target_of(link) == str(path) for link in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                found.append(f"{name} (process {process.name})")
    return found


def target_of(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""
