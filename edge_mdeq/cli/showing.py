"""What ``edge-mdeq run`` says on the terminal, or to its log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mdeq_runtime import Model, Result
    from mdeq_runtime.budget import MemoryReport
    from mdeq_runtime.metrics import Summary
    from mdeq_runtime.sinks import Sink
    from mdeq_runtime.sources import Source

__all__ = ["name_pages", "note", "progress_bar", "report"]


def note(source: Source, model: Model, targets: list[str], quiet: bool, in_json: bool) -> None:
    """Say what was opened."""
    if in_json:
        from mdeq_runtime.service.story import tell_start
        from mdeq_runtime.uris import redact

        outputs = [redact(target) for target in targets]
        tell_start(model.manifest.name, model.backend.name, source.description, outputs)
    elif not quiet:
        typer.echo(f"{model.manifest.name} on {model.backend.name}; source: {source.description}")


def name_pages(sinks: list[Sink], in_json: bool) -> None:
    """Say where a live page is to be found, on stderr: with ``--json``, stdout is for programs."""
    for sink in sinks:
        if (url := getattr(sink, "url", None)) and in_json:
            from mdeq_runtime.service.story import tell_page

            tell_page(url)
        elif url:
            typer.echo(f"live page: {url}", err=True)


@contextmanager
def progress_bar(source: Source, quiet: bool) -> Iterator[Callable[[Result], None] | None]:
    """A line that moves with the frames; nothing where nobody looks."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(result: Result) -> None:
            bar.update(
                task,
                description=f"frame {result.index}  {result.iterations} iterations  "
                f"residual {result.residual:.3f}  {'warm' if result.warm else 'cold'}  "
                f"{result.busy_ms:.0f} ms",
            )

        yield show


def report(summary: Summary, as_json: bool, in_json: bool, memory: MemoryReport) -> None:
    """The run in numbers."""
    if in_json:
        from mdeq_runtime.service.story import tell_stop

        tell_stop(summary)
    if as_json:
        typer.echo(summary.to_json_line())
    if as_json or in_json:
        return
    typer.echo(
        f"{summary.frames} frames in {summary.seconds:.1f} s ({summary.fps:.1f} per second), "
        f"{summary.dropped} dropped"
    )
    if summary.frames:
        typer.echo(
            f"  {summary.warm_share:.0%} warm, {summary.mean_iterations:.2f} iterations a frame, "
            f"mean residual {summary.residual_mean:.3f}"
        )
    stages = {**summary.stages, **({"age": summary.age} if summary.age else {})}
    for stage, times in stages.items():
        typer.echo(
            f"  {stage:8} p50 {times.p50:6.1f}  p90 {times.p90:6.1f}  p99 {times.p99:6.1f} ms"
        )
    if summary.peak_rss_bytes:
        said = f"  peak resident memory {summary.peak_rss_bytes / 1e6:.0f} MB"
        if memory.predicted is not None and memory.limit is not None:
            said += f"; {memory.predicted / 1e6:.0f} predicted, limit {memory.limit / 1e6:.0f}"
        typer.echo(said)
        for given_up in memory.shed:
            typer.echo(f"    given up to stay below it: {given_up}")
