"""``edge-mdeq pack`` and ``unpack``: bundles as OCI artefacts, for ordinary registries."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.cli.sign import REQUIRE_SIGNATURE, required

__all__ = ["pack", "unpack"]


def pack(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    out: Path = typer.Option(None, "-o", "--out", help="The layout's folder; else NAME.oci."),
    tag: str = typer.Option("latest", help="Of the artefact in it."),
    force: bool = typer.Option(False, "--force", help="Replace a layout that is there."),
) -> None:
    """Write a bundle as an OCI image layout, which registries' own tools copy."""
    from edge_mdeq.bundle.oci import pack as pack_bundle

    out = out or bundle.with_suffix(".oci")
    digest = pack_bundle(bundle, out, tag, force)
    typer.echo(f"{out}:{tag}: {digest}")
    next_step("oras", "cp", "--from-oci-layout", f"{out}:{tag}", f"REGISTRY/{bundle.stem}:{tag}")


def unpack(
    layout: Path = typer.Argument(help="The layout's folder, NAME.oci."),
    out: Path = typer.Option(None, "-o", "--out", help="The bundle; else NAME.mdeq."),
    tag: str = typer.Option(None, help="Which of its artefacts, if there are several."),
    force: bool = typer.Option(False, "--force", help="Replace a bundle that is there."),
    require_signature: list[Path] = REQUIRE_SIGNATURE,
) -> None:
    """Take a bundle out of an OCI image layout; every digest is checked."""
    from edge_mdeq.bundle.oci import unpack as unpack_bundle

    out = out or layout.with_suffix(".mdeq")
    manifest = unpack_bundle(layout, out, tag, force, required(require_signature))
    typer.echo(f"{out}: {manifest.name}, all {len(manifest.files)} files as they were packed")
    next_step("edge-mdeq", "inspect", str(out))
