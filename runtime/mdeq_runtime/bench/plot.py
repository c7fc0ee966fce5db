"""A benchmark as a figure: what each rung takes, cold and warm."""

from __future__ import annotations

from pathlib import Path

from edge_mdeq.errors import ConfigError, require
from edge_mdeq.files import replacing
from mdeq_runtime.bench.benchmark import BenchReport

__all__ = ["SUFFIXES", "check_plot", "draw"]

SUFFIXES = (".png", ".svg")
COLOURS = {"cold": "#0072b2", "warm": "#d55e00"}


def check_plot(path: Path) -> None:
    """See, before anything is measured, that it could be drawn.

    Raises:
        ConfigError: neither SVG nor PNG.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"cannot draw {path.name}; a plot is a {' or '.join(SUFFIXES)} file")
    require("matplotlib", "plot", "drawing a plot")


def draw(report: BenchReport, path: Path) -> None:
    """A bar per rung and start up to its first percentile, and a line to its last one.

    Raises:
        OSError: ``path`` cannot be written.
    """
    figures = require("matplotlib.figure", "plot", "drawing a plot")
    ranks = list(report.rows[0].milliseconds)
    figure = figures.Figure(figsize=(7.2, 1.2 + 0.34 * len(report.rows)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for place, row in enumerate(report.rows):
        low, high = row.milliseconds[ranks[0]], row.milliseconds[ranks[-1]]
        axes.barh(place, low, color=COLOURS[row.start], height=0.7)
        axes.plot([low, high], [place, place], color="#333333", lw=1.2)
        labels.append(f"{row.steps}, {row.start}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"milliseconds a frame: {ranks[0]}, and up to {ranks[-1]}")
    axes.set_title(f"{report.bundle}, {report.machine['processor']}, {report.threads} threads")
    axes.spines[["top", "right"]].set_visible(False)
    kind = path.suffix.lower()[1:]
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
