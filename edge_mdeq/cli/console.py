"""What every verb prints alike: errors, the next command, and a busy line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

__all__ = [
    "BUSY",
    "INTERRUPTED",
    "busy",
    "fail",
    "fail_by",
    "leave",
    "next_step",
    "quote",
]


TELL: list[Callable[[str, str], None]] = []  # how errors are told; the last one counts
BUSY: list[Callable[[], bool]] = []  # whether threads that nobody waits for are at work
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def fail(message: str, kind: str = "error") -> None:
    """An error, on stderr; "interrupted" is a kind of its own for those who read logs."""
    if TELL:
        TELL[-1](message, kind)
    else:
        typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)


def fail_by(tell: Callable[[str, str], None]) -> None:
    """Tell errors of this process in another way: message and kind."""
    TELL.append(tell)


def leave(code: int) -> NoReturn:
    """Exit; at once where a thread is in the midst of a library, which aborts when Python ends."""
    if any(busy() for busy in BUSY):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
