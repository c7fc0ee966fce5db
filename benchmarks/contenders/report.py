"""The figures of a comparison for people: tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from contenders.findings import claims, find, ratio_of
from contenders.research import EAGER
from edge_mdeq.files import replacing
from mdeq_runtime.bench.statistics import summarise

__all__ = ["draw", "print_model", "rows"]

COLOURS = {
    "ours": "#0072b2", "research": "#d55e00", "naive": "#cc79a7", "openvino": "#e69f00",
    "network": "#009e73",
}  # fmt: skip
COLUMNS = (
    "contender", "ms", "IQR", "CPU ms", "research / it", "it / ResNet-50", "MB", "metric",
    "residual",
)  # fmt: skip


def rows(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of text per contender that was measured, in the order of ``COLUMNS``."""
    scores = model.get("accuracy") or {}
    made = []
    for found in model["contenders"]:
        if "skipped" in found:
            continue
        score = scores.get(found["start"], {}).get(found["steps"]) if found["steps"] else None
        made.append(
            (
                found["name"],
                *times(model, found),
                f"{found['memory']['above_base'] / 1e6:.0f}" if found["memory"] else "-",
                "-" if score is None else f"{score:.3f}",
                "-" if found["residual"] is None else f"{found['residual']:.1e}",
            )
        )
    return made


def times(model: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    """Median, quartiles' distance, time of all cores, and the two ratios, of one contender.

    What is not purely in single precision stands beside the int8 ResNet-50.
    """
    if not found["wall_ms"]:
        return ("-",) * 5
    summary = summarise(found["wall_ms"])
    precision = "fp32" if found["precision"] == "fp32" else "int8"
    research, network = find(model, name=EAGER), find(model, name=f"ResNet-50, {precision}")
    return (
        f"{summary.median:.1f}",
        f"{summary.iqr:.1f}",
        f"{found['cpu_ms']:.1f}",
        "-" if research is None else str(ratio_of(research, found)),
        "-" if network is None else str(ratio_of(found, network)),
    )


def print_model(console: Console, name: str, model: Mapping[str, Any]) -> None:
    """Its table, what was left out, and the goals."""
    height, width = model["size"]
    title = (
        f"{name}, {height} x {width}, {model['rounds']} rounds; published solve: "
        f"{model['published_evaluations']} evaluations"
    )
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in rows(model):
        table.add_row(*row)
    console.print(table)
    for note in model["notes"]:
        console.print(note)
    for found in model["contenders"]:
        if "skipped" in found:
            console.print(f"without {found['name']}: {found['skipped']}")
    for claim in claims(name, model):
        console.print(str(claim))


def draw(report: Mapping[str, Any], path: Path) -> None:
    """A panel per model: milliseconds of each contender on a logarithmic scale, with quartiles.

    Nothing is drawn where nothing was timed.
    """
    from matplotlib.figure import Figure

    timed = {
        name: [c for c in model["contenders"] if c["wall_ms"]]
        for name, model in report["models"].items()
    }
    timed = {name: found for name, found in timed.items() if found}
    if not timed:
        return
    heights = [1 + len(found) for found in timed.values()]
    figure = Figure(figsize=(8.5, 0.21 * sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(timed), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, found) in zip(panels, timed.items(), strict=True):
        ordered = sorted(found, key=lambda c: median(c["wall_ms"]))
        for place, contender in enumerate(ordered):
            times = summarise(contender["wall_ms"], (25, 75))
            colour = COLOURS[contender["kind"]]
            axes.barh(place, times.median, color=colour, height=0.75)
            axes.plot(list(times.percentiles.values()), [place, place], color="#222222", lw=1.4)
        axes.set_yticks(range(len(ordered)), [c["name"] for c in ordered], fontsize=7)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_title(f"{name}: milliseconds of a frame", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
