"""``edge-mdeq tune``: weights in, weights out that need fewer iterations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import fail, next_step
from edge_mdeq.cli.progress import first_rank, training_bar
from edge_mdeq.errors import require
from edge_mdeq.weights_path import resolve_weights

if TYPE_CHECKING:
    from edge_mdeq.training.tune import TuneReport

__all__ = ["tune"]


def tune(
    weights: Path = typer.Argument(
        help="A .safetensors file with its .json beside it, or both's folder."
    ),
    iterations: int = typer.Option(
        min=1, help="Evaluations of f from a cold start that should suffice."
    ),
    data: Path = typer.Option(help="A labelled dataset's folder."),
    out: Path = typer.Option(..., "-o", "--out", help="Where checkpoints, log and weights go."),
    warm: int = typer.Option(
        0, min=0, help="Evaluations that should suffice from a warm start; 0: half as many."
    ),
    recipe: Path = typer.Option(
        None,
        help="Data, augmentation, loss and optimizer from a recipe, instead of --layout and "
        "--ignore; --epochs, --lr, --batch and --seed still go before it.",
    ),
    layout: str = typer.Option(
        None, help="camvid, cityscapes, folder or cifar10; by the task if not given."
    ),
    ignore: list[int] = typer.Option([255], "--ignore", help="Mask values that mean void."),
    epochs: int = typer.Option(None, min=1, help="Passes over the data, instead of 24."),
    lr: float = typer.Option(None, help="Highest learning rate, instead of 1.5e-3."),
    batch: int = typer.Option(None, min=1, help="Images a step, instead of 8."),
    seed: int = typer.Option(None, help="Another order of images and other crops."),
    label: float = typer.Option(
        0.3, min=0, help="Weight of the labels beside the weights' own converged answer."
    ),
    cold_weight: float = typer.Option(
        3.0, min=0, help="How much the answer after a cold start counts,"
    ),
    warm_weight: float = typer.Option(1.0, min=0, help="... after a warm one,"),
    far_weight: float = typer.Option(2.0, min=0, help="... and after many evaluations."),
    max_metric_drop: float = typer.Option(
        0.005, "--max-metric-drop", help="How much the converged answer may lose."
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on with the run that OUT holds."),
    devices: int = typer.Option(None, min=1, help="Devices (processes) to train on."),
    precision: str = typer.Option("32-true", help="As Lightning Fabric names it."),
) -> None:
    """Fine-tune weights so that few iterations suffice; their converged answer teaches them."""
    resolve_weights(weights)  # before torch is imported, which takes seconds
    for module in ("torch", "lightning_fabric"):
        require(module, "train", "tuning")
    require("matplotlib", "export", "plotting what tuning changed")
    from edge_mdeq.training.tune import TuneSettings, choose_recipe
    from edge_mdeq.training.tune import tune as tune_weights

    settings = TuneSettings(
        iterations,
        warm,
        label=label,
        cold_weight=cold_weight,
        warm_weight=warm_weight,
        far_weight=far_weight,
    )
    chosen = choose_recipe(weights, recipe, layout, ignore, epochs, lr, batch, seed)
    with training_bar("cold", "warm", "far") as progress:
        report = tune_weights(
            weights, data, out, settings, chosen, resume, devices, precision, progress
        )
    if not first_rank():
        return
    print_report(report)
    typer.echo(f"wrote {out}/weights.safetensors, tune.json and tune.svg (the curve)")
    if report.drop > max_metric_drop:
        fail(
            f"the converged {report.metric} fell by {report.drop:.4f}, allowed is "
            f"{max_metric_drop:g} (--max-metric-drop); try a smaller --lr or more --iterations"
        )
        raise typer.Exit(1)
    next_step(
        "edge-mdeq", "export", f"{out}/weights.safetensors", "-o", "tuned.mdeq",
        "--iterations", *(str(count) for count in sorted({report.warm, report.iterations})),
    )  # fmt: skip


def print_report(report: TuneReport) -> None:
    """Before and after at every count."""
    from rich.table import Table

    from edge_mdeq.cli.tables import print_table

    table = Table(title=f"{report.metric} by evaluations of f", title_justify="left")
    for column in ("start", "evaluations", "before", "after", "change"):
        table.add_column(column, justify="left" if column == "start" else "right")
    for key, after in report.after.items():
        start, count = key.split("_")
        before = report.before[key]
        aim = (start, int(count)) in {("cold", report.iterations), ("warm", report.warm)}
        style = "bold" if aim else None
        table.add_row(
            start, count, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", style=style
        )
    print_table(table)
