"""``edge-mdeq import``: a published checkpoint in, weights of ours out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import busy, next_step
from edge_mdeq.errors import ConfigError, WeightsError, require

if TYPE_CHECKING:
    from edge_mdeq.checkpoints import Architecture, Checkpoint, Difference

__all__ = ["import_checkpoint"]


def import_checkpoint(
    checkpoint: Path = typer.Argument(
        help="A checkpoint of locuslab/mdeq, /deq or /torchdeq: .pkl, .pth, .pth.tar, .safetensors."
    ),
    out: Path = typer.Option(
        ..., "-o", "--output", help="The weights to write, NAME.safetensors; NAME.json beside them."
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Compare the result with the checkpoint's own numbers."
    ),
    imgsz: tuple[int, int] = typer.Option(
        None, "--imgsz", metavar="H W", help="Input size, if not the published one."
    ),
    mean: tuple[float, float, float] = typer.Option(
        None, "--mean", metavar="R G B", help="Mean of the input on a scale of 0..1."
    ),
    std: tuple[float, float, float] = typer.Option(
        None, "--std", metavar="R G B", help="... and its standard deviation."
    ),
    labels: Path = typer.Option(None, "--labels", help="Text file with a class name per line."),
    name: str = typer.Option("", "--name", help="Name of the weights, if not the published one."),
    licence: str = typer.Option("unknown", "--licence", help="What may be done with them."),
    downsample_times: int = typer.Option(
        None, "--downsample-times", min=0, max=2,
        help="Times the stem halves the image, for a model that is none of the published ones.",
    ),
    groups: int = typer.Option(8, "--groups", min=2, help="Groups of the norms, if not 8."),
    force: bool = typer.Option(False, "--force", help="Replace existing weights."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:  # fmt: skip
    """Import a published MDEQ checkpoint; nothing in it is executed."""
    check_output(checkpoint, out, force)
    for module in ("torch", "safetensors"):
        require(module, "export", "importing a checkpoint")
    from edge_mdeq import checkpoints
    from edge_mdeq.checkpoints.convert import build_model
    from edge_mdeq.weights import save_weights

    settings = checkpoints.ImportSettings(
        downsample_times=downsample_times,
        groups=groups,
        size=imgsz,
        mean=mean,
        std=std,
        labels=checkpoints.read_labels(labels) if labels else (),
        name=name,
        licence=licence,
    )
    differences: list[Difference] = []
    with busy(quiet) as progress:
        progress(f"reading {checkpoint}")
        opened = checkpoints.open_checkpoint(checkpoint)
        found = checkpoints.infer_architecture(opened, groups, downsample_times)
        card = checkpoints.make_card(opened, found, settings)
        model = build_model(opened, found.config)
        if verify:
            progress("comparing with the checkpoint's bare tensors")
            differences = checkpoints.verify(opened, model)
    describe(opened, found, sum(p.numel() for p in model.parameters()))
    if differences:
        print_differences(differences)
        checkpoints.require_agreement(differences)
    save_weights(model, card, out)
    typer.echo(f"wrote {out} and {out.with_suffix('.json').name}")
    next_step("edge-mdeq", "export", str(out), "-o", f"{card.provenance.name}.mdeq")


def check_output(checkpoint: Path, out: Path, force: bool) -> None:
    """Refuse, before anything is read, what could not be written or would destroy something."""
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out} must end in .safetensors")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise WeightsError(f"{out} is the checkpoint itself; write to another name")
    existing = [path for path in (out, out.with_suffix(".json")) if path.exists()]
    if existing and not force:
        raise WeightsError(
            f"{' and '.join(map(str, existing))} exists already; give --force to replace it"
        )


def describe(checkpoint: Checkpoint, found: Architecture, parameters: int) -> None:
    """What the file turned out to be."""
    config = found.config
    count = len(checkpoint.dropped)
    dropped = f", without {count} of copies and loss" if count else ""
    typer.echo(
        f"{checkpoint.path.name}: layout {checkpoint.layout}, {len(checkpoint.tensors)} keys"
        f"{dropped}"
    )
    name = " or ".join(entry.name for entry in found.entries) or "of its own kind"
    typer.echo(
        f"  {name}: {config.task}, {config.classes} classes, channels "
        f"{', '.join(map(str, config.channels))}, expansion {config.expansion}, "
        f"{parameters:,} parameters"
    )
    for entry in found.entries[:1]:
        if entry.published:
            typer.echo(
                f"  published with {entry.published.steps} steps of Broyden "
                f"({entry.published.evaluations} evaluations of f), stop mode "
                f"{entry.published.stop!r}"
            )
        if entry.note:
            typer.echo(f"  note: {entry.note}")


def print_differences(differences: list[Difference]) -> None:
    """The verification, a row per quantity."""
    from rich.table import Table

    from edge_mdeq.cli.tables import print_table

    table = Table(
        title="imported model against the checkpoint's bare tensors, in float64",
        title_justify="left",
    )
    for column, side in (("compared", "left"), ("relative difference", "right"),
                         ("allowed", "right"), ("", "left")):  # fmt: skip
        table.add_column(column, justify="left" if side == "left" else "right")
    for row in differences:
        table.add_row(
            row.what,
            f"{row.relative:.1e}",
            f"{row.tolerance:.0e}",
            "ok" if row.ok else "[red]beyond[/red]",
        )
    print_table(table)
