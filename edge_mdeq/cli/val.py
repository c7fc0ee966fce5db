"""``edge-mdeq val``: the task metric of a bundle's graphs on labelled data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.cli.progress import counting_bar
from edge_mdeq.cli.sign import REQUIRE_SIGNATURE, required
from edge_mdeq.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from edge_mdeq.bundle import Manifest
    from mdeq_runtime.val import ValReport, ValSettings

__all__ = ["val"]

METRICS = {"miou": "mIoU", "accuracy": "accuracy"}
MOST_CLASSES = 40  # shown; of more the worst


def val(
    bundle: Path = typer.Argument(help="The bundle, NAME.mdeq."),
    data: Path = typer.Option(help="A labelled dataset's folder."),
    layout: str = typer.Option(
        None, help="camvid, cityscapes, folder or cifar10; by the task if not given."
    ),
    split: str = typer.Option("val", help="Which part of the data."),
    iterations: list[int] = typer.Option(
        [], "--iterations", min=1, help="Evaluations of f to score, else every rung: 1 2 4 8."
    ),
    precision: str = typer.Option(
        None, "--precision", help="fp32, int8 or refined; else all that the bundle has."
    ),
    warm: bool = typer.Option(
        False, "--warm", help="Frames in order too, each from the state of the one before."
    ),
    limit: int = typer.Option(None, min=1, help="Look at so many images only."),
    ignore: list[int] = typer.Option([255], "--ignore", help="Mask values that mean void."),
    fit: str = typer.Option("stretch", help="stretch, letterbox or crop."),
    centre: float = typer.Option(
        1.0, help="Share of the fitted side to look at (classification); 0.875 is usual."
    ),
    grey: bool = typer.Option(False, "--grey", help="Take grey photographs for colour ones."),
    threads: int = typer.Option(0, min=0, help="Threads per graph, 0 for one per core."),
    require_signature: list[Path] = REQUIRE_SIGNATURE,
    keep: bool = typer.Option(
        False, "--report", help="Put the figures into the bundle's measurements and report."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Score a bundle's graphs on labelled data; torch is not needed."""
    from mdeq_runtime.val import ValSettings, validate

    settings = ValSettings(
        layout=layout,
        split=split,
        iterations=iterations,
        precision=precision,
        warm=warm,
        limit=limit,
        ignore=ignore,
        fit=fit,  # type: ignore[arg-type]  # checked by ValSettings, with a message
        centre=centre,
        grey=grey,
        threads=threads,
        require_signature=required(require_signature),
    )
    with counting_bar("images", quiet or as_json) as progress:
        report = validate(bundle, data, settings, progress)
    if keep:
        keep_figures(bundle, data, settings, report)
    if as_json:
        import json

        typer.echo(json.dumps(asdict(report)))
        return
    from edge_mdeq.cli.tables import print_table

    print_table(scores_table(report))
    for start in dict.fromkeys(score.start for score in report.scores):
        print_table(classes_table(report, start))
    typer.echo(f"{report.images} images of {data} ({split}) in {report.seconds:.1f} s")
    next_step("edge-mdeq", "run", str(bundle), "VIDEO", "annotated.mp4")


def keep_figures(bundle: Path, data: Path, settings: ValSettings, report: ValReport) -> None:
    """Into the bundle, beside its hashes; its page is drawn anew where the libraries for it are."""
    from edge_mdeq.bundle import open_bundle
    from edge_mdeq.bundle.measurements import update_measurements

    curves: dict[str, dict[str, float]] = {"cold": {}, "warm": {}}
    for score in report.scores:
        if score.precision in ("int8", "refined"):
            continue  # the page's curve is that of full precision
        curves[score.start][str(score.evaluations)] = round(score.value, 4)
    figures = {"metric": METRICS[report.metric], "images": report.images, **curves}
    update_measurements(bundle, val=figures)
    try:
        from mdeq_export.images import GENERATED, verification_images
        from mdeq_export.report.page import PICTURES, write_report

        manifest = open_bundle(bundle).manifest
        if manifest.verification.source == GENERATED:  # then nobody's photographs get into it
            images, source = verification_images(None, PICTURES, *manifest.input.size)
        else:
            images, source = pictures(manifest, data, settings, PICTURES), report.split
        write_report(bundle, manifest, images, source)
    except ImportError as error:
        typer.echo(f"the report stays as it is: {error}", err=True)
    except OSError as error:
        raise BundleError(
            f"cannot write the report of {bundle}: {error.strerror}; free some space"
        ) from error


def pictures(
    manifest: Manifest, data: Path, settings: ValSettings, count: int
) -> NDArray[np.uint8]:
    """``count`` images of the data, (count, H, W, 3), spread over it."""
    import numpy as np

    from mdeq_runtime.val import choose_indices, class_count, open_images

    images = open_images(manifest, data, class_count(manifest), settings)
    chosen = choose_indices(len(images), count, consecutive=False)
    return np.stack([images[k][0].transpose(1, 2, 0) for k in chosen])


def scores_table(report: ValReport) -> Table:
    """A row per rung and start."""
    from rich.table import Table

    metric = METRICS[report.metric]
    table = Table(title=f"{report.bundle}: {metric} by evaluations of f", title_justify="left")
    carded = any(score.card is not None for score in report.scores)
    balanced = report.metric == "accuracy"
    columns = ["start", "evaluations", "steps", metric]
    columns += ["balanced"] if balanced else []
    columns += ["model card"] if carded else []
    for column in (*columns, "mean residual"):
        table.add_column(column, justify="left" if column in ("start", "steps") else "right")
    for score in report.scores:
        row = [score.start, str(score.evaluations), score.steps, figure(score.value)]
        row += [figure(score.balanced)] if balanced else []
        row += [figure(score.card)] if carded else []
        residual = "not finite" if score.residual is None else f"{score.residual:.1e}"
        table.add_row(*row, residual)
    return table


def classes_table(report: ValReport, start: str) -> Table:
    """A row per class that occurs or is answered, a column per rung; of many classes the worst."""
    from rich.table import Table

    segmentation = report.metric == "miou"
    scores = [score for score in report.scores if score.start == start]
    shares = zip(*(score.per_class for score in scores), strict=True)  # of each class
    rows = [(k, row) for k, row in enumerate(shares) if any(share is not None for share in row)]
    title = f"{'IoU' if segmentation else 'accuracy'} by class, {start} starts"
    if len(rows) > MOST_CLASSES:
        title += f", the worst {MOST_CLASSES} of {len(rows)} (--json has all)"
        rows = sorted(rows, key=lambda row: 2.0 if row[1][-1] is None else row[1][-1])
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for column in ("pixels" if segmentation else "images", *(score.steps for score in scores)):
        table.add_column(column, justify="right")
    total = sum(report.counts)
    for k, row in rows[:MOST_CLASSES]:
        count = report.counts[k]
        size = f"{count / total:.2%}" if segmentation else str(count)
        table.add_row(report.labels[k], size, *map(figure, row))
    return table


def figure(value: float | None) -> str:
    """Four digits, or a dash for what there is not."""
    return "-" if value is None else f"{value:.4f}"
