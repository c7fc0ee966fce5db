"""An X server without a screen (Xvfb), what is on it, and a user of its windows.

Only Xvfb and libX11 are needed, which come together; whoever lacks them skips these tests.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

KEY_PRESS, CLIENT_MESSAGE = 2, 33  # <X11/X.h>
WAIT_S = 30.0

# Xlib ends the process, here the tests', at any request the server refuses: at the name of a
# window, say, that was closed since the windows were listed.
ErrorHandler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
go_on = ErrorHandler(lambda display, event: 0)


class KeyEvent(ctypes.Structure):
    """XKeyEvent of <X11/Xlib.h>."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("root", ctypes.c_ulong),
        ("subwindow", ctypes.c_ulong),
        ("time", ctypes.c_ulong),
        ("x", ctypes.c_int),
        ("y", ctypes.c_int),
        ("x_root", ctypes.c_int),
        ("y_root", ctypes.c_int),
        ("state", ctypes.c_uint),
        ("keycode", ctypes.c_uint),
        ("same_screen", ctypes.c_int),
        ("pad", ctypes.c_long * 24),  # the union XEvent is this long
    ]


class ClientMessage(ctypes.Structure):
    """XClientMessageEvent of <X11/Xlib.h>."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message_type", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
        ("pad", ctypes.c_long * 24),
    ]


class XServer:
    """A running Xvfb, and one connection to it."""

    def __init__(self, name: str, framebuffer: Path) -> None:
        self.environment = {k: v for k, v in os.environ.items() if k != "WAYLAND_DISPLAY"}
        self.environment["DISPLAY"] = name
        self.framebuffer = framebuffer
        self.x: Any = ctypes.CDLL(ctypes.util.find_library("X11"))
        self.x.XOpenDisplay.restype = ctypes.c_void_p
        self.x.XDefaultRootWindow.restype = ctypes.c_ulong
        self.x.XInternAtom.restype = ctypes.c_ulong
        self.x.XStringToKeysym.restype = ctypes.c_ulong
        self.x.XSetErrorHandler(go_on)
        self.display = ctypes.c_void_p(self.x.XOpenDisplay(name.encode()))
        assert self.display, f"cannot connect to {name}"
        self.root = ctypes.c_ulong(self.x.XDefaultRootWindow(self.display))

    def picture(self) -> NDArray[np.uint8]:
        """What is on the screen, (h, w, 3) BGR; Xvfb keeps it in a file of the format XWD."""
        raw = self.framebuffer.read_bytes()
        header = struct.unpack(">25I", raw[:100])
        width, height, line, colours = header[4], header[5], header[12], header[19]
        pixels = np.frombuffer(raw, np.uint8, line * height, header[0] + 12 * colours)
        return pixels.reshape(height, line // 4, 4)[:, :width, :3]

    def window(self, title: str) -> int:
        """The window of that title, as soon as there is one."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for window in self.children(self.root):
                if self.title(window) == title:
                    return window
            time.sleep(0.05)
        raise AssertionError(f"no window {title!r} within {WAIT_S:g} s")

    def title(self, window: int) -> str | None:
        """What a window is called; None for one that is not there any more."""
        name = ctypes.c_char_p()
        self.x.XFetchName(self.display, ctypes.c_ulong(window), ctypes.byref(name))
        return name.value.decode() if name.value is not None else None

    def children(self, window: ctypes.c_ulong) -> list[int]:
        root, parent = ctypes.c_ulong(), ctypes.c_ulong()
        found, count = ctypes.POINTER(ctypes.c_ulong)(), ctypes.c_uint()
        self.x.XQueryTree(
            self.display, window, ctypes.byref(root), ctypes.byref(parent),
            ctypes.byref(found), ctypes.byref(count),
        )  # fmt: skip
        return [found[i] for i in range(count.value)]

    def press(self, window: int, key: str) -> None:
        """Press a key by its X name ("q", "Escape") in a window."""
        symbol = ctypes.c_ulong(self.x.XStringToKeysym(key.encode()))
        event = KeyEvent(KEY_PRESS, 0, 1, self.display, window, self.root, 0, 0, 1, 1, 1, 1)
        event.keycode = self.x.XKeysymToKeycode(self.display, symbol)
        event.state = int(key.isupper())  # the shift key
        event.same_screen = 1
        self.send(window, event, mask=1)

    def close_window(self, window: int) -> None:
        """Ask a window to close, as the button of a window manager does."""
        protocols, delete = (
            self.x.XInternAtom(self.display, name, 0)
            for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")
        )
        event = ClientMessage(CLIENT_MESSAGE, 0, 1, self.display, window, protocols, 32)
        event.data[0] = delete
        self.send(window, event, mask=0)

    def send(self, window: int, event: ctypes.Structure, mask: int) -> None:
        self.x.XSendEvent(
            self.display, ctypes.c_ulong(window), 0, ctypes.c_long(mask), ctypes.byref(event)
        )
        self.x.XFlush(self.display)


@contextmanager
def running_xserver(folder: Path) -> Iterator[XServer]:
    """A fresh X server with a screen of 800 x 600; skips the test where there is none."""
    if shutil.which("Xvfb") is None or ctypes.util.find_library("X11") is None:
        pytest.skip("no X server to try windows on; apt-get install xvfb")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24"]
    command += ["-fbdir", str(folder), "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=(writing,), stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            number = pipe.readline().strip()
        if not number:
            pytest.skip("Xvfb does not start here")
        yield XServer(f":{number}", folder / "Xvfb_screen0")
    finally:
        server.terminate()
        server.wait(10)
