"""``edge-mdeq inspect``: what a bundle holds, promises and was measured at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.cli.sign import REQUIRE_SIGNATURE, required

if TYPE_CHECKING:
    from edge_mdeq.bundle import Bundle

__all__ = ["inspect"]


def inspect(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    require_signature: list[Path] = REQUIRE_SIGNATURE,
    as_json: bool = typer.Option(False, "--json", help="Print the manifest as JSON."),
) -> None:
    """Show what a bundle holds, promises and was measured at; checks every file's hash."""
    from edge_mdeq.bundle import open_bundle
    from edge_mdeq.bundle.manifest import encode_manifest

    opened = open_bundle(bundle, verify=True, require_signature=required(require_signature))
    if as_json:
        typer.echo(encode_manifest(opened.manifest).decode(), nl=False)
        return
    from edge_mdeq.cli.tables import facts_table, parity_table, print_table, rungs_table

    for table in (facts_table, rungs_table, parity_table):
        print_table(table(opened.manifest))
    typer.echo(signature_state(opened))
    typer.echo(f"all {len(opened.manifest.files)} files have the hashes that the manifest gives")
    if opened.manifest.input.tensor.shape[0] in (1, -1):  # a stream comes frame by frame
        next_step("edge-mdeq", "run", str(bundle), "VIDEO", "annotated.mp4")


def signature_state(opened: Bundle) -> str:
    """Whether it is signed, by whom, and whether that was checked."""
    from edge_mdeq.bundle.signature import read_signatures

    found = read_signatures(opened.path)
    if found is None:
        return "not signed"
    by = ", ".join(signature.key for signature in found.signatures)
    if opened.keys:
        return f"signed by key {by}; that of a required key holds"
    return f"signed by key {by}; not checked: --require-signature NAME.pub does"
