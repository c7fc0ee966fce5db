"""Frames in and pictures out: OpenCV, cameras and a display."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mdeq_runtime.doctor.machine import Finding, Machine
from mdeq_runtime.doctor.nvidia import SYSTEM_SITE

__all__ = ["CHECKS"]

ARGUS_PLUGIN = "usr/lib/aarch64-linux-gnu/gstreamer-1.0/libgstnvarguscamerasrc.so"


def opencv(machine: Machine) -> Iterator[Finding]:
    """OpenCV, and what it was built with. Pip's has no GStreamer, and hides JetPack's that has."""
    probed = machine.probes.get("cv2")
    if probed is None:
        if machine.in_system("cv2"):
            found = "the system's Python has it, this environment does not see it"
            yield Finding("media", "OpenCV", "warn", found, SYSTEM_SITE)
        else:
            found = "not installed; videos, cameras and windows need it"
            yield Finding("media", "OpenCV", "warn", found, get_opencv(machine))
        return
    if "error" in probed:
        mend = f"pip uninstall opencv-python, then {get_opencv(machine)}"
        if "numpy" in probed["error"].lower() or "_ARRAY_API" in probed["error"]:
            mend = "pip install 'numpy<2' (this OpenCV was built for it)"
        elif "libGL" in probed["error"]:
            mend = "sudo apt-get install libgl1"
        elif "libgthread" in probed["error"]:
            mend = "sudo apt-get install libglib2.0-0"
        yield Finding("media", "OpenCV", "bad", probed["error"], mend)
        return
    yield Finding("media", "OpenCV", "ok", probed["version"])
    if probed["gstreamer"]:
        yield Finding("media", "OpenCV: GStreamer", "ok", "yes")
    elif machine.jetson:
        mend = f"pip uninstall opencv-python; {get_opencv(machine)}"
        found = "no, so csi:// cameras do not open: this is not JetPack's OpenCV"
        yield Finding("media", "OpenCV: GStreamer", "warn", found, mend)
    else:
        yield Finding("media", "OpenCV: GStreamer", "note", "no; USB cameras and files do without")
    for what, title, needed in (
        ("ffmpeg", "FFmpeg", "most videos and rtsp:// need it"),
        ("gui", "windows", "display:// needs them"),
    ):
        if probed[what]:
            yield Finding("media", f"OpenCV: {title}", "ok", "yes")
        elif what == "ffmpeg" and probed["gstreamer"]:
            yield Finding("media", "OpenCV: FFmpeg", "note", "no; GStreamer reads videos too")
        else:
            mend = "pip uninstall opencv-python-headless; pip install 'edge-mdeq[camera]'"
            yield Finding("media", f"OpenCV: {title}", "warn", f"no; {needed}", mend)


def get_opencv(machine: Machine) -> str:
    if machine.jetson:
        return f"sudo apt-get install nvidia-opencv; {SYSTEM_SITE}"
    return "pip install 'edge-mdeq[camera]'"


def cameras(machine: Machine) -> Iterator[Finding]:
    """Every /dev/video*, and whether it may be opened."""
    found = [path for path in machine.glob("dev/video*") if re.search(r"video\d+$", path.name)]
    if not found:
        mend = "plug one in; see it with: v4l2-ctl --list-devices"
        if machine.container:
            mend = "start the container with --device /dev/video0"
        yield Finding("media", "cameras", "note", "no /dev/video*; files and streams work", mend)
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("video"))):
        name = machine.read(f"sys/class/video4linux/{path.name}/name") or "a camera"
        if machine.access(path):
            yield Finding("media", machine.shown(path), "ok", name)
        else:
            yield Finding(
                "media", machine.shown(path), "bad", f"{name}: no permission", let_in(machine)
            )


def let_in(machine: Machine) -> str:
    """How to be allowed to open cameras."""
    if machine.container:
        return "start the container with --group-add video"
    entry = re.search(r"^video:[^:]*:(\d+):(.*)$", machine.read("etc/group"), re.MULTILINE)
    user = machine.environ.get("USER", "")
    current = machine.fields("proc/self/status").get("Groups", "").split()
    if entry and user in entry[2].split(",") and entry[1] not in current:
        return "log out and in again: the user is in the group video, this session is not yet"
    return "sudo usermod -aG video $USER (then log in again)"


def csi(machine: Machine) -> Iterator[Finding]:
    """What a ribbon camera on a Jetson needs: a GStreamer plugin and a daemon."""
    if not machine.jetson:
        return
    if not (machine.root / ARGUS_PLUGIN).exists():
        mend = "sudo apt-get install nvidia-l4t-gstreamer nvidia-l4t-camera"
        found = "GStreamer's nvarguscamerasrc is missing"
        yield Finding("media", "CSI cameras", "warn", found, mend)
    elif not (machine.root / "tmp/argus_socket").exists():
        mend = "sudo systemctl restart nvargus-daemon"
        if machine.container:
            mend = "start the container with -v /tmp/argus_socket:/tmp/argus_socket"
        yield Finding("media", "CSI cameras", "warn", "their daemon does not answer", mend)
    else:
        yield Finding("media", "CSI cameras", "ok", "plugin and daemon are there")


def display(machine: Machine) -> Iterator[Finding]:
    """A screen for windows. Whether it lets one in is only seen by opening one."""
    wayland, x = (machine.environ.get(name) for name in ("WAYLAND_DISPLAY", "DISPLAY"))
    mend = "edge-mdeq run --headless, or an output such as annotated.mp4"
    if not x and not wayland:
        yield Finding("media", "display", "note", "none (DISPLAY is not set)", mend)
        return
    local = re.fullmatch(r":(\d+)(\.\d+)?", x or "")
    if not wayland and local and not socket(machine, local[1]).exists():
        found = f"DISPLAY is {x}, but no X server answers there"
        yield Finding("media", "display", "warn", found, f"unset DISPLAY; {mend}")
    else:
        yield Finding("media", "display", "ok", f"{x or wayland}")


def socket(machine: Machine, number: str) -> Path:
    return machine.root / "tmp/.X11-unix" / f"X{number}"


CHECKS = (opencv, cameras, csi, display)
