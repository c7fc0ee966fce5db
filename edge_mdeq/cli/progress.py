"""The bars of long work: training and tuning, and images that are counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["counting_bar", "first_rank", "training_bar"]

HEADLINES = ("miou", "accuracy")  # what a validation calls the figure that matters


def first_rank() -> bool:
    """Whether this process speaks for all, if torchrun or Fabric started several."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


@contextmanager
def counting_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, in all) that moves a bar; nothing is shown where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Remaining())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def training_bar(*extra: str) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Yield a function (steps done, steps in all, figures) that moves a bar.

    Epoch, loss, the last validation score and the ``extra`` figures are shown; only rank 0 shows a
    bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    names = ("loss", *extra, "val")
    columns = (
        TextColumn("epoch {task.fields[epoch]:3.0f}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(f"{name} {{task.fields[{name}]:.3f}}") for name in names),
    )
    shown: dict[str, Any] = {"epoch": 0.0, **dict.fromkeys(names, float("nan"))}
    with Progress(*columns, console=Console(stderr=True), disable=not first_rank()) as bar:
        task = bar.add_task("train", total=None, **shown)

        def progress(done: int, total: int, figures: dict[str, float]) -> None:
            known: dict[str, Any] = {k: v for k, v in figures.items() if k in shown}
            for name in HEADLINES:
                if name in figures:
                    known["val"] = figures[name]
            bar.update(task, completed=done, total=total, **known)

        yield progress
