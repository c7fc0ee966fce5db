"""The figures of a report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from edge_mdeq.bundle import Manifest, SolverCurve, Verification

__all__ = ["convergence", "disagreement", "metric"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


def convergence(manifest: Manifest) -> str:
    """Residual against evaluations on a log scale, a line per solver, with the rungs marked."""
    figure, axes = canvas()
    draw_residuals(axes, manifest.verification)
    return finish(figure, axes, "relative residual, cold")


def draw_residuals(axes: Any, report: Verification) -> None:
    """The solvers that were measured, the converged solve (dotted) and the rungs (points)."""
    lines = [
        (curve, label(curve), c, "-") for curve, c in zip(report.curves, COLOURS, strict=False)
    ]
    if report.reference_curve is not None:
        name = f"converged reference solve, {label(report.reference_curve)}"
        lines.append((report.reference_curve, name, "#444444", ":"))
    for curve, name, colour, style in lines:
        counts = range(1, len(curve.residual) + 1)
        axes.semilogy(counts, curve.residual, style, color=colour, label=name, lw=1.6)
        axes.fill_between(counts, curve.residual, curve.worst, color=colour, alpha=0.12, lw=0)
    whole = (rung for rung in report.rungs if rung.precision in ("fp32", "fp16"))
    points = {rung.evaluations: rung.residual for rung in whole}
    axes.semilogy(list(points), list(points.values()), "ko", ms=5, label="rungs of this bundle")


def disagreement(manifest: Manifest) -> str:
    """Share of answers that differ from the converged ones, against evaluations."""
    what = "pixels" if manifest.task == "segmentation" else "images"
    figure, axes = canvas()
    for curve, colour in zip(manifest.verification.curves, COLOURS, strict=False):
        counts = range(1, len(curve.disagreement) + 1)
        shares = [100 * share for share in curve.disagreement]
        axes.plot(counts, shares, color=colour, label=label(curve), lw=1.6)
    axes.set_ylim(bottom=0)
    return finish(figure, axes, f"% of {what} unlike the converged answer")


def metric(name: str, curves: Mapping[str, Mapping[int, float]]) -> str:
    """The task metric against evaluations, a line per kind of start."""
    figure, axes = canvas()
    for (kind, points), colour in zip(curves.items(), COLOURS, strict=False):
        counts = sorted(points)
        axes.plot(counts, [points[n] for n in counts], "o-", color=colour, label=kind, lw=1.6)
    axes.set_xscale("log", base=2)
    every = sorted({count for points in curves.values() for count in points})
    axes.set_xticks(every, [str(count) for count in every])
    return finish(figure, axes, name)


def label(curve: SolverCurve) -> str:
    """A solver with its settings."""
    settings: Sequence[str] = [f"{key} {value:g}" for key, value in curve.settings.items()]
    return f"{curve.solver} {', '.join(settings)}".strip()


def canvas() -> tuple[Figure, Any]:
    """An empty figure; not of pyplot, which would keep it."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    return figure, figure.subplots()


def finish(figure: Figure, axes: Any, what: str) -> str:
    """Label the axes and give the SVG's text, without a date."""
    axes.set_xlabel("evaluations of f")
    axes.set_ylabel(what, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
