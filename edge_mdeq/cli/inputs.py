"""Options of ``edge-mdeq run`` that ask something of the source, named as in jetson-utils."""

from __future__ import annotations

from typing import Any

import typer

from edge_mdeq.errors import ConfigError

__all__ = ["choose_buffer", "choose_options"]

PANEL = "Input"


def option(name: str, text: str, default: Any = None) -> Any:
    return typer.Option(default, f"--input-{name}", help=text, rich_help_panel=PANEL)


WIDTH = option("width", "Pixels, of a camera or test://.")
HEIGHT = option("height", "Pixels.")
RATE = option("rate", "Frames per second, of a camera, test://, or a file with --realtime.")
CODEC = option("codec", "mjpeg or yuyv of a V4L2 camera; h264 or h265 of rtsp://.")
FLIP = option(
    "flip",
    "none, counterclockwise, rotate-180, clockwise, horizontal, vertical, upper-left-diagonal or "
    "upper-right-diagonal.",
)
EXPOSURE = option("exposure", "Of a V4L2 camera, in its driver's units; else automatic.")
SENSOR_MODE = option("sensor-mode", "Of a CSI camera.")
LOOP = option("loop", "How often a file starts again, -1 for ever.")
LATENCY = option("latency", "Milliseconds that packets of rtsp:// wait for those before them.")
TRANSPORT = option("transport", "tcp or udp, of rtsp://.")
BACKEND = option("backend", "ffmpeg or gstreamer, for network streams.")
BUFFER = option(
    "buffer",
    "What happens to frames of a camera that come too fast: drop-oldest, drop-latest or wait.",
    "drop-oldest",
)
WAIT = typer.Option(
    False,
    "--input-wait",
    help="Wait for a camera that is not there yet, too.",
    rich_help_panel=PANEL,
)
REALTIME = typer.Option(
    False,
    "--realtime",
    help="Play a file at its own pace, as a camera: frames may be dropped.",
    rich_help_panel=PANEL,
)


def choose_options(**given: Any) -> Any:
    """``SourceOptions`` of what was given.

    Raises:
        ConfigError: a value that makes no sense.
    """
    from mdeq_runtime.sources import SourceOptions

    return SourceOptions(**given)


def choose_buffer(name: str) -> Any:
    """The ``SlotPolicy`` of a name.

    Raises:
        ConfigError: there is none.
    """
    from mdeq_runtime.frame_slot import SlotPolicy
    from mdeq_runtime.uris import did_you_mean

    known = [policy.value for policy in SlotPolicy]
    if name not in known:
        hint = did_you_mean(name, known) or ";"
        raise ConfigError(f"input buffer is {name!r}{hint} known: {', '.join(known)}")
    return SlotPolicy(name)
