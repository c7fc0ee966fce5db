"""The command ``edge-mdeq``. Each verb has a file and imports what it needs only when it runs.

Exit codes: 0 done, 1 failed check or bad input, 2 usage.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from edge_mdeq import __version__
from edge_mdeq.cli import (
    bench,
    doctor,
    engine,
    export,
    import_,
    inspect,
    pack,
    run,
    sign,
    train,
    tune,
    unroll,
    val,
)
from edge_mdeq.cli.console import INTERRUPTED, fail, leave
from edge_mdeq.cli.greedy import spread
from edge_mdeq.cli.signals import insist
from edge_mdeq.errors import EdgeMdeqError

__all__ = ["app", "main"]

LEFT = {
    "run": "what was written until then is finished",
    "train": "--resume goes on from the last checkpoint",
    "tune": "--resume goes on from the last checkpoint",
    "export": "a bundle is written whole or not at all",  # the last moment may be too late
    "unroll": "the bundle is whole, as it was or with all rungs",
    "engine": "engines that were done are kept, and the bundle is as it was",
}
GREEDY = {  # options that take all their values after one name, and what is a value
    "--iterations": str.isdecimal,
    "--ignore": str.isdecimal,
    "--target": export.is_target,
    "--percentile": bench.is_number,
}

app = typer.Typer(
    name="edge-mdeq",
    help="Deep equilibrium models from GPU-trained weights to a camera on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        typer.echo(f"edge-mdeq {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(
        False, "--version", callback=version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Deep equilibrium models from GPU-trained weights to a camera on a device."""


app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("import")(import_.import_checkpoint)
app.command("export")(export.export)
app.command("unroll")(unroll.unroll)
app.command("engine")(engine.engine)
app.command("inspect")(inspect.inspect)
app.command("val")(val.val)
app.command("run")(run.run)
app.command("bench")(bench.bench)
app.command("sign")(sign.sign)
app.command("pack")(pack.pack)
app.command("unpack")(pack.unpack)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point: every error of ours is one message and exit code 1, without a traceback."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    insist()
    try:
        app(args=spread(sys.argv[1:], GREEDY))
    except EdgeMdeqError as error:
        fail(str(error))
        leave(1)
    except MemoryError as error:
        fail(f"out of memory ({error}); choose a smaller image, batch or model")
        sys.exit(1)
    except KeyboardInterrupt:
        interrupted(verb)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # how typer passes on Ctrl-C
            interrupted(verb)
        if isinstance(stop.code, int):
            leave(stop.code)
        raise


def interrupted(verb: str) -> NoReturn:
    """Say what is left of the work, and exit."""
    fail(f"interrupted; {LEFT.get(verb, 'nothing was written')}", "interrupted")
    leave(INTERRUPTED)
