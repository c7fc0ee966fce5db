"""How many evaluations each solver needs on given weights, and what it reaches.

    python benchmarks/solver_evaluations.py WEIGHTS ... [--data FOLDER] [--tol 1e-2] [--limit 80]
        [--images 8] [--plot FILE.svg]

One row per weights and solver: evaluations until the residual (mean over the images) is at most
``--tol``, where a session stops, as a share of the plain iteration's; from where on it stays there;
and the lowest residual within ``--limit``. Anderson and Broyden pay where the plain iteration is
slow. Weights of that kind come from training with little or no Jacobian regularisation:
``benchmarks/recipes/camvid-weak.toml`` and ``camvid-free.toml``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edge_mdeq.bundle import SolverCurve
from edge_mdeq.weights import load_weights
from mdeq_export.convergence import CANDIDATES, equilibria, largest_radius, measure
from mdeq_export.images import verification_images


def reached(curve: SolverCurve, tol: float) -> int | None:
    """Evaluations until the mean residual is at most ``tol``."""
    within = (count for count, x in enumerate(curve.residual, 1) if x <= tol)
    return next(within, None)


def settled(curve: SolverCurve, tol: float) -> int | None:
    """The same, and it stays there."""
    enough = None
    for count in range(len(curve.residual), 0, -1):
        if not curve.residual[count - 1] <= tol:
            break
        enough = count
    return enough


def plot(curves: dict[str, list[SolverCurve]], path: Path) -> None:
    """Residual against evaluations, one panel per weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (name, found) in zip(panels, curves.items(), strict=True):
        for curve in found:
            options = ", ".join(f"{k} {v:g}" for k, v in curve.settings.items())
            counts = range(1, len(curve.residual) + 1)
            axes.semilogy(counts, curve.residual, label=f"{curve.solver} {options}".strip(), lw=1.4)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("evaluations of f")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("relative residual, cold")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure and print, weights by weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--limit", type=int, default=80)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    curves: dict[str, list[SolverCurve]] = {}
    for path in args.weights:
        model, card = load_weights(path)
        frozen, config = model.freeze(), card.input
        images, source = verification_images(args.data, args.images, config.height, config.width)
        goals = equilibria(frozen, config, images)
        radius = largest_radius(frozen, config, images, goals)
        found = [
            measure(frozen, config, solver, settings, images, goals, limit=args.limit)
            for solver, settings in CANDIDATES
        ]
        curves[path.stem if path.suffix else path.name] = found
        table = Table(
            title=f"{path}: spectral radius {radius:.2f}, {len(images)} images ({source})",
            title_justify="left",
        )
        for column in (
            "solver",
            f"evaluations to {args.tol:g}",
            "of the plain one's",
            "for good",
            "lowest",
        ):
            table.add_column(column, justify="left" if column == "solver" else "right")
        plain = reached(found[0], args.tol)
        for curve in found:
            count, last = reached(curve, args.tol), settled(curve, args.tol)
            options = ", ".join(f"{k}={v:g}" for k, v in curve.settings.items())
            table.add_row(
                f"{curve.solver} {options}".strip(),
                "-" if count is None else str(count),
                f"{count / plain:.0%}" if count and plain else "-",
                "-" if last is None else str(last),
                f"{min(curve.residual):.1e}",
            )
        Console(width=100).print(table)
    if args.plot:
        plot(curves, args.plot)


if __name__ == "__main__":
    main()
