"""``edge-mdeq inspect``: what a bundle holds, promises and was measured at."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_mdeq.cli.console import next_step

__all__ = ["inspect"]


def inspect(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    as_json: bool = typer.Option(False, "--json", help="Print the manifest as JSON."),
) -> None:
    """Show what a bundle holds, promises and was measured at; checks every file's hash."""
    from edge_mdeq.bundle import open_bundle
    from edge_mdeq.bundle.manifest import encode_manifest

    opened = open_bundle(bundle, verify=True)
    if as_json:
        typer.echo(encode_manifest(opened.manifest).decode(), nl=False)
        return
    from edge_mdeq.cli.tables import facts_table, parity_table, print_table, rungs_table

    for table in (facts_table, rungs_table, parity_table):
        print_table(table(opened.manifest))
    typer.echo(f"all {len(opened.manifest.files)} files have the hashes that the manifest gives")
    if opened.manifest.input.tensor.shape[0] in (1, -1):  # a stream comes frame by frame
        next_step("edge-mdeq", "run", str(bundle), "VIDEO", "annotated.mp4")
