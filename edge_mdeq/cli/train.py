"""``edge-mdeq train``: a recipe and a data folder in, weights out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.cli.progress import first_rank, training_bar
from edge_mdeq.errors import require

__all__ = ["train"]


def train(
    recipe: Path = typer.Argument(help="The recipe, a TOML file; see samples/recipes/."),
    data: Path = typer.Option(help="The dataset's folder, in the layout that the recipe names."),
    out: Path = typer.Option(help="Where checkpoints, log and weights go."),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run that OUT holds."),
    init: Path = typer.Option(
        None, help="Weights to start from; a classifier's body may start a segmentation model."
    ),
    seed: int = typer.Option(None, help="Instead of the recipe's."),
    devices: int = typer.Option(
        None, min=1, help="Devices (processes) to train on; under torchrun its own count."
    ),
    precision: str = typer.Option("32-true", help="As Lightning Fabric names it."),
) -> None:
    """Train a model on a data folder by a recipe file."""
    require("torch", "train", "training")
    require("lightning_fabric", "train", "training")
    from edge_mdeq.training.loop import train as train_by_recipe
    from edge_mdeq.training.recipe import read_recipe

    settings = read_recipe(recipe)
    if seed is not None:
        settings = replace(settings, seed=seed)
    with training_bar("residual") as progress:
        weights = train_by_recipe(settings, data, out, resume, devices, precision, progress, init)
    if first_rank():
        typer.echo(f"wrote {weights}")
        next_step("edge-mdeq", "export", str(weights), "-o", f"{settings.provenance.name}.mdeq")
