"""``edge-mdeq train``: a recipe and a data folder in, weights out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from edge_mdeq.cli.console import next_step
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
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from edge_mdeq.training.loop import train as train_by_recipe
    from edge_mdeq.training.recipe import read_recipe

    settings = read_recipe(recipe)
    if seed is not None:
        settings = replace(settings, seed=seed)
    columns = (
        TextColumn("epoch {task.fields[epoch]:3.0f}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  residual {task.fields[residual]:.3f}"),
        TextColumn("val {task.fields[score]:.3f}"),
    )
    unknown = float("nan")
    shown: dict[str, Any] = {"epoch": 0.0, "loss": unknown, "residual": unknown, "score": unknown}
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=None, **shown)

        def progress(done: int, total: int, figures: dict[str, float]) -> None:
            known = {name: value for name, value in figures.items() if name in shown}
            for headline in ("miou", "accuracy"):
                if headline in figures:
                    known["score"] = figures[headline]
            bar.update(task, completed=done, total=total, **known)  # type: ignore[arg-type]

        weights = train_by_recipe(settings, data, out, resume, devices, precision, progress, init)
    typer.echo(f"wrote {weights}")
    next_step("edge-mdeq", "export", str(weights), "-o", f"{settings.provenance.name}.mdeq")
