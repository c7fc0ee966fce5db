"""What ``edge-mdeq run`` writes, and how it is drawn."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.errors import ConfigError

if TYPE_CHECKING:
    from edge_mdeq.bundle import Manifest
    from mdeq_runtime.overlay import Palette
    from mdeq_runtime.sinks import Sink
    from mdeq_runtime.sources import Source

__all__ = [
    "CLASSES",
    "COLORS",
    "RECORD_HARD",
    "RECORD_QUOTA",
    "choose_classes",
    "is_window",
    "open_sinks",
]

CLASSES = typer.Option(
    None,
    "--classes",
    help="A file with a line per class: its name, its colour (R G B or #rrggbb), or both.",
)
COLORS = typer.Option(
    "bundle", "--colors", help="bundle, or safe: told apart by colour-blind eyes too."
)
RECORD_HARD = typer.Option(
    None,
    "--record-hard",
    help="A folder for frames whose residual stayed above tolerance or that forced a reset, each "
    "with its residual by evaluations: what to tune on next.",
)
RECORD_QUOTA = typer.Option(
    "1GiB", "--record-quota", help="What --record-hard may take; the oldest make room."
)


def choose_classes(
    manifest: Manifest, file: Path | None, colors: str
) -> tuple[tuple[str, ...], Palette]:
    """Names and RGB colours of the classes, by the bundle and the options.

    Raises:
        ConfigError: a file that makes no sense, or an unknown word.
    """
    if colors not in ("bundle", "safe"):
        raise ConfigError(f"--colors is {colors!r}, must be bundle or safe")
    labels, palette = manifest.labels, manifest.palette if colors == "bundle" else ()
    if file is None:
        return labels, palette
    from mdeq_runtime.classes import read_classes

    return read_classes(file, labels, palette)


def is_window(target: str) -> bool:
    """Whether an output is a window; ``display.mp4`` is none."""
    return target.strip() == "display" or target.strip().lower().startswith("display://")


def open_sinks(
    stack: ExitStack,
    targets: list[str],
    source: Source,
    labels: tuple[str, ...],
    palette: Palette,
    hard: Path | None,
    quota: str,
) -> list[Sink]:
    """Open every output; when one fails those before it are closed by ``stack``.

    Raises:
        SinkError: one cannot be opened.
        ConfigError: a quota that makes no sense.
    """
    from mdeq_runtime.sinks import open_sink

    sinks = [
        stack.enter_context(open_sink(target, fps=source.fps, labels=labels, palette=palette))
        for target in targets
    ]
    if hard is not None:
        from mdeq_runtime.planner import parse_bytes
        from mdeq_runtime.sinks.hard import HardFrames

        size = parse_bytes(quota, "--record-quota")
        sinks.append(stack.enter_context(HardFrames(hard, size, labels)))
    return sinks
