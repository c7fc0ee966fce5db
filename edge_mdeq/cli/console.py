"""What every verb prints alike: errors, the next command, and a busy line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

__all__ = ["INTERRUPTED", "busy", "fail", "next_step", "quote"]


INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def fail(message: str) -> None:
    """An error, on stderr."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


def next_step(*command: str) -> None:
    """Name the command that a user would want next."""
    typer.secho(f"next: {quote(*command)}", fg=typer.colors.CYAN)


def quote(*command: str) -> str:
    """A command as one would type it."""
    return shlex.join(command)


@contextmanager
def busy(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done; a spinner on a terminal, lines elsewhere."""
    if quiet:
        yield lambda message: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield lambda message: console.print(f"  {message}", highlight=False)
        return
    with console.status("starting") as status:
        yield lambda message: status.update(message)
