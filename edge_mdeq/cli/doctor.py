"""``edge-mdeq doctor``: what this device has and lacks, and what mends it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import next_step

if TYPE_CHECKING:
    from mdeq_runtime.doctor import Finding, Report

__all__ = ["doctor"]

SHOWN = {  # how a status is shown
    "ok": "[green]ok[/]",
    "note": "[dim]-[/]",
    "warn": "[yellow]warn[/]",
    "bad": "[red]bad[/]",
}


def doctor(
    bundle: Path = typer.Argument(None, help="A bundle, NAME.mdeq, to be tried as well."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Show what this device has and lacks, and the command that mends it.

    The exit code is 0 if bundles (with BUNDLE: this one) can be run here, else 1.
    """
    from mdeq_runtime.doctor import Machine, examine

    report = examine(Machine(bundle=bundle))
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"runs": report.runs}, indent=2))
    else:
        show(report)
        conclude(report, bundle)
    raise typer.Exit(0 if report.runs else 1)


def show(report: Report) -> None:
    """The findings as a table per section, then what mends them."""
    from rich.markup import escape
    from rich.table import Table

    from edge_mdeq.cli.tables import print_table

    sections: dict[str, list[Finding]] = {}
    for finding in report.findings:
        sections.setdefault(finding.section, []).append(finding)
    for section, findings in sections.items():
        table = Table(title=section, title_justify="left", show_header=False, expand=True)
        table.add_column(width=4)
        table.add_column(width=20)
        table.add_column(ratio=1)
        for finding in findings:
            table.add_row(SHOWN[finding.status], escape(finding.name), escape(finding.found))
        print_table(table)
    for finding in report.findings:
        if finding.mend:  # outside the tables: a command must survive copying
            typer.echo(f"{finding.section}, {finding.name}: {finding.mend}")


def conclude(report: Report, bundle: Path | None) -> None:
    """The verdict, and the next command."""
    what = "bundles" if bundle is None else str(bundle)
    if report.runs:
        verdicts = report.devices if report.profiles is None else report.profiles
        places = ", ".join(name for name, why in verdicts.items() if why is None)
        verb = "run" if bundle is None else "runs"
        typer.echo(f"{what} {verb} here ({places})")
        next_step("edge-mdeq", "run", str(bundle or "NAME.mdeq"), "VIDEO", "annotated.mp4")
        return
    typer.echo(f"{what} cannot be run here")
    if report.devices.get("cpu") is not None:
        mend = (f.mend for f in report.findings if f.name == "ONNX Runtime" and f.mend)
        typer.secho(f"next: {next(mend, 'edge-mdeq doctor --json')}", fg=typer.colors.CYAN)
    elif bundle is not None:
        next_step("edge-mdeq", "inspect", str(bundle))
