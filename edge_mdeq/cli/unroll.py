"""``edge-mdeq unroll``: further rungs for a bundle, without torch."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_mdeq.bundle import Manifest
from edge_mdeq.bundle.signature import SIGNATURE
from edge_mdeq.cli.console import busy, next_step
from edge_mdeq.cli.signals import stop_by_signals
from edge_mdeq.errors import require

__all__ = ["unroll"]


def unroll(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq; it is replaced when all is well."),
    iterations: list[int] = typer.Option(
        ..., "--iterations", min=1, help="Evaluations of f of each further rung: 3 6."
    ),
    data: Path = typer.Option(None, help="Folder of images to verify on, else generated ones."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Compose further rungs of a bundle from its own pieces; torch is not needed."""
    for module in ("onnx", "onnx_ir", "onnxruntime"):
        require(module, "unroll", "composing graphs")
    from edge_mdeq.cli.tables import parity_table, print_table
    from mdeq_export import unroll_bundle

    signature = bundle / SIGNATURE
    signed = signature.exists()
    stop_by_signals()
    with busy(quiet) as progress:
        manifest = unroll_bundle(bundle, iterations, data, progress)
    print_table(parity_table(manifest))
    typer.echo(f"{bundle} has rungs of {', '.join(map(str, evaluations(manifest)))} evaluations")
    if signed and not signature.exists():
        typer.echo(
            f"the signature of {bundle} was for its manifest as it was, and is gone: sign it again",
            err=True,
        )
        next_step("edge-mdeq", "sign", str(bundle), "--key", "PRIVATE.pem")
        return
    next_step("edge-mdeq", "inspect", str(bundle))


def evaluations(manifest: Manifest) -> list[int]:
    """What the rungs of any profile count."""
    rungs = [rung for profile in manifest.profiles.values() for rung in profile.rungs]
    return sorted({rung.evaluations for rung in rungs})
