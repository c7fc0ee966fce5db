"""``edge-mdeq export``: weights in, verified bundle out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import typer

from edge_mdeq.cli.console import busy, next_step
from edge_mdeq.cli.signals import stop_by_signals
from edge_mdeq.errors import require
from edge_mdeq.weights_path import resolve_weights

__all__ = ["export", "is_target"]


def export(
    weights: Path = typer.Argument(
        help="A .safetensors file with its .json beside it, or both's folder."
    ),
    out: Path = typer.Option(..., "-o", "--output", help="The bundle to write, NAME.mdeq."),
    iterations: list[int] = typer.Option(
        [1, 2, 4, 8], "--iterations", min=1, help="Evaluations of f of each rung: 1 2 4 8."
    ),
    f_solver: str = typer.Option(
        "fixed_point",
        "--f-solver",
        help="fixed_point, anderson, broyden; auto measures which is the cheapest that suffices.",
    ),
    f_tol: float = typer.Option(
        None, "--f-tol", help="What auto asks for: largest relative residual, else 1e-2."
    ),
    max_metric_drop: float = typer.Option(
        None,
        "--max-metric-drop",
        help="What auto asks for instead: largest share of answers other than when converged.",
    ),
    tau: float = typer.Option(None, help="Damping of fixed_point, in (0, 1]."),
    m: int = typer.Option(
        None, "--f-history", "--anderson-m", help="History of anderson (1 to 6) or broyden."
    ),
    best: bool = typer.Option(
        False, "--best-iterate", help="Return the iterate with the lowest residual, not the last."
    ),
    imgsz: tuple[int, int] = typer.Option(
        None, "--imgsz", metavar="H W", help="Input size; multiples of the model's stride."
    ),
    target: list[str] = typer.Option(
        ["ort-cpu"],
        "--target",
        help="ort-cpu, ort-cuda, tensorrt-8, tensorrt-10, tensorrt-11, tensorrt-rtx; several.",
    ),
    form: str = typer.Option(
        "onnx",
        "--format",
        help="onnx, or engine: go on to `edge-mdeq engine` with the TensorRT that is here.",
    ),
    half: bool = typer.Option(
        False, "--half", help="FP16 where the model computes; norms, states and solver in FP32."
    ),
    int8: bool = typer.Option(
        False, "--int8", help="Rungs with integer convolutions too, calibrated on --data."
    ),
    refine: int = typer.Option(
        1,
        "--refine",
        min=0,
        help="Last evaluations of a refined int8 rung that are in full precision; 0: none.",
    ),
    labelled: Path = typer.Option(
        None,
        "--labelled",
        help="A labelled dataset's folder, as val takes it: int8 may lose 0.01 of the metric, "
        "refined 0.005.",
    ),
    ignore: list[int] = typer.Option([255], "--ignore", help="Mask values of it that mean void."),
    batch: int = typer.Option(1, min=1, help="Images that a graph takes at once."),
    dynamic_batch: bool = typer.Option(
        False, "--dynamic-batch", help="Leave the number of images open."
    ),
    data: Path = typer.Option(
        None, help="Folder of images to measure, calibrate and verify on, else generated ones."
    ),
    atol: float = typer.Option(
        None,
        help="Largest difference of any element between graph and torch, of states, residual, "
        "confidence or scores; else 1e-3.",
    ),
    rtol: float = typer.Option(
        None, help="Largest relative difference of the states (in norm), else 1e-4."
    ),
    min_agreement: float = typer.Option(
        None, "--min-agreement", help="Smallest share of pixels or images with torch's class."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an existing bundle."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Export weights to a deployment bundle, and verify it."""
    resolve_weights(weights)  # before torch is imported, which takes seconds
    for module in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        require(module, "export", "exporting a model")
    from edge_mdeq.cli.tables import parity_table, print_table, solvers_table
    from mdeq_export import ExportSettings, export_bundle
    from mdeq_export.convergence import Goal
    from mdeq_export.names import check_names
    from mdeq_export.verify import tolerances_with

    check_names("format", [form], ("onnx", "engine"))
    targets = [*target, *(engine_targets(target) if form == "engine" else ())]
    settings = ExportSettings(
        iterations=tuple(iterations),
        solver=f_solver,
        solver_settings={k: v for k, v in {"tau": tau, "m": m}.items() if v is not None},
        goal=None if f_tol is None and max_metric_drop is None else Goal(f_tol, max_metric_drop),
        best=best,
        batch=batch,
        dynamic_batch=dynamic_batch,
        targets=tuple(targets),
        half=half,
        int8=int8,
        refine=refine,
        score=None if labelled is None else scorer(labelled, ignore),
        size=imgsz,
        tolerances=tolerances_with(atol=atol, rtol=rtol, min_agreement=min_agreement),
        images=data,
        force=force,
    )
    stop_by_signals()
    with busy(quiet) as progress:
        manifest = export_bundle(weights, out, settings, progress)
    if f_solver == "auto":
        print_table(solvers_table(manifest))
        most = max(rung.evaluations for rung in manifest.verification.rungs)
        typer.echo(
            f"exported {manifest.solver.name} with up to {most} evaluations: the cheapest "
            f"for {settings.goal or Goal()}"
        )
    print_table(parity_table(manifest))
    for warning in manifest.warnings:
        typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW, err=True)
    typer.echo(f"wrote {out}")
    if form == "engine":
        from edge_mdeq.cli import app

        app(["engine", str(out), *(["--half"] if half else [])], standalone_mode=False)
        return
    next_step("edge-mdeq", "inspect", str(out))


def scorer(labelled: Path, ignore: list[int]) -> Callable[[Path, int], dict[str, float]]:
    """What scores a bundle's rungs of so many evaluations, by precision.

    Raises, when it is called:
        DataError: the data cannot be used, or is not of the bundle's task or classes.
    """
    from mdeq_runtime.val import ValSettings, validate

    def score(bundle: Path, evaluations: int) -> dict[str, float]:
        report = validate(bundle, labelled, ValSettings(iterations=(evaluations,), ignore=ignore))
        return {found.precision: found.value for found in report.scores}

    return score


def engine_targets(asked: list[str]) -> list[str]:
    """The target that engines are built from here, unless it is asked for.

    Raises:
        DeviceError: there is no GPU to build for.
        MissingExtraError: TensorRT is not installed.
    """
    from mdeq_runtime.backends.nvidia import find_device
    from mdeq_runtime.tensorrt.versions import find_release

    release = find_release()
    find_device()  # better said now than after the export
    return [] if release.profile in asked else [release.profile]


def is_target(argument: str) -> bool:
    """Whether what follows a target is one more, though it may be misspelt; else it is WEIGHTS."""
    if re.fullmatch(r"(ort|tensorrt)-\w+", argument):
        return True  # even where a folder of graphs has the name
    path = argument.startswith(".") or os.sep in argument or os.path.exists(argument)
    return not (argument.startswith("-") or argument.endswith(".safetensors") or path)
