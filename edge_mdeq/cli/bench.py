"""``edge-mdeq bench``: what a bundle's rungs take on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.cli.progress import counting_bar
from edge_mdeq.cli.sign import REQUIRE_SIGNATURE, required
from edge_mdeq.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from mdeq_runtime.bench import BenchReport

__all__ = ["bench", "is_number"]


def is_number(value: str) -> bool:
    """Whether an argument is a further percentile, rather than the next option."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def bench(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    source: str = typer.Option(
        None, help="Whose frames to answer: a video, images/*.jpg; else a moving pattern."
    ),
    iterations: list[int] = typer.Option(
        [], "--iterations", min=1, help="Evaluations of f whose rungs to measure, else every rung."
    ),
    warmup: int = typer.Option(5, min=0, help="Frames of each rung that come before."),
    duration: float = typer.Option(10.0, help="Seconds of measuring, of all rungs together."),
    percentile: list[float] = typer.Option(
        [50, 90, 99], "--percentile", help="Percentiles of a frame's time: 50 90 99."
    ),
    threads: int = typer.Option(
        0, min=0, help="Threads per graph, and cores that it keeps to; 0: all."
    ),
    device: str = typer.Option("auto", help="auto, cpu, cuda or tensorrt."),
    graph_cache: Path = typer.Option(
        None, "--graph-cache", help="A folder for graphs as this machine runs them: less memory."
    ),
    memory: bool = typer.Option(
        True, "--memory/--no-memory", help="Each rung's memory, in a process of its own."
    ),
    as_json: Path = typer.Option(None, "--json", help="A file for all figures; - is stdout."),
    plot: Path = typer.Option(None, "--plot", help="A file for a figure, .svg or .png."),
    save: bool = typer.Option(False, "--save", help="Put the figures into the bundle, too."),
    require_signature: list[Path] = REQUIRE_SIGNATURE,
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Measure what a bundle's rungs take on this machine; torch is not needed."""
    from mdeq_runtime.bench import BenchSettings, benchmark

    settings = BenchSettings(
        source=source,
        iterations=iterations,
        warmup=warmup,
        duration=duration,
        percentiles=percentile,
        threads=threads,
        device=device,
        cache=graph_cache,
        memory=memory,
        require_signature=required(require_signature),
    )
    to_stdout = str(as_json) == "-"
    if plot is not None:
        from mdeq_runtime.bench.plot import check_plot

        check_plot(plot)
    for path in (None if to_stdout else as_json, plot):
        if path is not None:
            check_writable(path)
    if save and bundle.is_dir():  # else it is no bundle, which is said in other words
        check_writable(bundle / "measurements.json")
    with counting_bar("seconds", quiet or to_stdout) as progress:
        report = benchmark(bundle, settings, progress)
    if save:
        from edge_mdeq.bundle.measurements import update_measurements

        update_measurements(bundle, bench=asdict(report))
    write(report, None if to_stdout else as_json, plot)
    if to_stdout:
        typer.echo(json.dumps(asdict(report)))
        return
    from edge_mdeq.cli.tables import print_table

    print_table(table(report))
    typer.echo(
        f"{report.frames}; {report.rounds} rounds in {report.seconds:.1f} s; {where(report)}"
    )
    next_step("edge-mdeq", "run", str(bundle), source or "VIDEO", "annotated.mp4")


def check_writable(path: Path) -> None:
    """See, before anything is measured, that a file can be written.

    Raises:
        ConfigError: it cannot.
    """
    problem = ""
    if os.path.isdir(path):
        problem = "it is a folder"
    elif not os.path.isdir(path.parent):
        problem = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        problem = f"{path.parent} is not writable"
    if problem:
        raise ConfigError(f"cannot write {path}: {problem}; choose another place")


def write(report: BenchReport, as_json: Path | None, plot: Path | None) -> None:
    """The files that were asked for.

    Raises:
        ConfigError: one cannot be written.
    """
    from edge_mdeq.files import write_atomic

    try:
        if as_json is not None:
            write_atomic(as_json, json.dumps(asdict(report), indent=2).encode() + b"\n")
        if plot is not None:
            from mdeq_runtime.bench.plot import draw

            draw(report, plot)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or as_json or plot}: {error.strerror}; free some space"
        ) from error


def where(report: BenchReport) -> str:
    """What it ran on, in words."""
    machine = report.machine
    pinned = f"kept to cores {', '.join(map(str, report.pinned))}" if report.pinned else "not kept"
    instructions = machine["instructions"]
    known = ", ".join(instructions) if isinstance(instructions, list) else ""
    return (
        f"{report.backend}, {report.threads} threads ({pinned}) of {machine['processor']}, "
        f"{machine['cores']} cores{f', {known}' if known else ''}"
    )


def table(report: BenchReport) -> Table:
    """A row per rung and start."""
    from rich.table import Table

    made = Table(title=f"{report.bundle}: one frame, milliseconds", title_justify="left")
    ranks = list(report.rows[0].milliseconds)
    measured = any(row.memory is not None for row in report.rows)
    on_device = any(row.memory and row.memory.device is not None for row in report.rows)
    columns = ["start", "steps", *ranks, "IQR", "CPU", "per s", "residual"]
    columns += ["MB over base", "peak MB"] if measured else []
    columns += ["GPU MB"] if on_device else []
    for column in columns:
        made.add_column(column, justify="left" if column in ("start", "steps") else "right")
    for row in report.rows:
        cells = [row.start, row.steps]
        cells += [f"{ms:.1f}" for ms in (*row.milliseconds.values(), row.iqr, row.cpu_ms)]
        cells += [f"{row.fps:.1f}", f"{row.residual:.1e}"]
        if measured:
            kept = row.memory
            sizes = (None, None) if kept is None else (kept.above_base, kept.peak)
            cells += ["-" if size is None else f"{size / 1e6:.0f}" for size in sizes]
        if on_device:
            size = None if row.memory is None else row.memory.device
            cells += ["-" if size is None else f"{size / 1e6:.0f}"]
        made.add_row(*cells)
    return made
