"""``edge-mdeq export``: weights in, verified bundle out."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_mdeq.cli.console import busy, next_step
from edge_mdeq.errors import require

__all__ = ["export"]


def export(
    weights: Path = typer.Argument(
        help="A .safetensors file with its .json beside it, or both's folder."
    ),
    out: Path = typer.Option(..., "-o", "--output", help="The bundle to write, NAME.mdeq."),
    iterations: list[int] = typer.Option(
        [1, 2, 4, 8], "--iterations", min=1, help="Evaluations of f of each rung: 1 2 4 8."
    ),
    f_solver: str = typer.Option("fixed_point", "--f-solver", help="fixed_point or anderson."),
    tau: float = typer.Option(None, help="Damping of fixed_point, in (0, 1]."),
    m: int = typer.Option(None, "--anderson-m", help="History of anderson, 1 to 6."),
    imgsz: tuple[int, int] = typer.Option(
        None, "--imgsz", metavar="H W", help="Input size; multiples of the model's stride."
    ),
    data: Path = typer.Option(None, help="Folder of images to verify on, else generated ones."),
    atol: float = typer.Option(1e-4, help="Largest difference of states between graph and torch."),
    min_agreement: float = typer.Option(
        0.999, "--min-agreement", help="Smallest share of pixels or images with torch's class."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an existing bundle."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Export weights to a deployment bundle, and verify it."""
    for module in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        require(module, "export", "exporting a model")
    from edge_mdeq.cli.tables import parity_table, print_table
    from mdeq_export import ExportSettings, export_bundle
    from mdeq_export.verify import Tolerance

    settings = ExportSettings(
        iterations=tuple(iterations),
        solver=f_solver,
        solver_settings={k: v for k, v in {"tau": tau, "m": m}.items() if v is not None},
        size=imgsz,
        tolerance=Tolerance(atol, min_agreement),
        images=data,
        force=force,
    )
    with busy(quiet) as progress:
        manifest = export_bundle(weights, out, settings, progress)
    print_table(parity_table(manifest))
    typer.echo(f"wrote {out}")
    next_step("edge-mdeq", "inspect", str(out))
