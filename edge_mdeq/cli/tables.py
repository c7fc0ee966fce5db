"""Tables about a bundle, for a terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_mdeq.bundle import Manifest

__all__ = ["facts_table", "parity_table", "print_table", "rungs_table", "solvers_table"]

MIN_WIDTH = 100  # columns when the output is not a terminal


def print_table(table: Table) -> None:
    """To stdout, wide enough to be read where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=MIN_WIDTH)
    console.print(table)


def facts_table(manifest: Manifest) -> Table:
    """What a bundle is: a row per fact."""
    table = Table(title=escape(manifest.name), show_header=False, title_justify="left")
    height, width = manifest.input.size
    batch = manifest.input.tensor.shape[0]
    images = {1: "one image", -1: "any number of images"}.get(batch, f"{batch} images")
    parts = [f"{k}={v:g}" for k, v in manifest.solver.settings.items()]
    parts += ["best iterate"] if manifest.solver.best else []
    states = sum(4 * abs(math.prod(spec.shape)) for spec in manifest.states)
    rows = {
        "task": f"{manifest.task}, {len(manifest.labels)} classes",
        "labels": ", ".join(manifest.labels),
        "input": f"{images} at once, uint8 RGB, {height} x {width} (height x width)",
        "solver": manifest.solver.name + (f" ({', '.join(parts)})" if parts else ""),
        "state": " + ".join("x".join(map(str, s.shape[1:])) for s in manifest.states)
        + f" float32, {states / 1e6:.2f} MB",
        "written by": f"{manifest.created_by}, schema {manifest.schema}; edge-mdeq "
        f"{manifest.requires} or later reads it",
        "weights": f"{manifest.provenance.name}; {manifest.provenance.data}",
        "licence": manifest.provenance.licence,
    }
    if manifest.verification.spectral_radius is not None:
        rows["spectral radius"] = f"{manifest.verification.spectral_radius:.2f} at the equilibrium"
    floors = {n: p.residual_floor for n, p in manifest.profiles.items() if p.residual_floor}
    if floors:
        shown = ", ".join(f"{floor:.1e} ({name})" for name, floor in floors.items())
        rows["FP16 gets to"] = f"a residual of {shown}"
    if manifest.metrics:
        rows["metrics"] = ", ".join(f"{k} {v:.3f}" for k, v in manifest.metrics.items())
    if manifest.tools:
        rows["made with"] = ", ".join(f"{k} {v}" for k, v in sorted(manifest.tools.items()))
    for name, value in rows.items():
        table.add_row(name, escape(value))  # names in a manifest are not ours
    for warning in manifest.warnings:
        table.add_row("warning", escape(warning))
    return table


def rungs_table(manifest: Manifest) -> Table:
    """The graphs, by profile."""
    table = Table(title="rungs, in graphs/PROFILE/", title_justify="left")
    for column in ("profile", "evaluations", "steps", "graph", "KB", "weights MB"):
        table.add_column(column, justify="right" if column in ("evaluations", "KB") else "left")
    for name, profile in manifest.profiles.items():
        weights = sum(file.bytes for file in profile.weights)
        flags = "".join(f", flag {flag}" for flag in profile.flags)  # for the builder of engines
        for rung in profile.rungs:
            table.add_row(
                name,
                str(rung.evaluations),
                " + ".join(f"{s.evaluations} {s.precision}" for s in rung.steps) + flags,
                rung.graph.removeprefix(f"graphs/{name}/"),
                f"{manifest.files[rung.graph].bytes / 1e3:.0f}",
                f"{weights / 1e6:.2f} (shared)",
            )
    return table


def parity_table(manifest: Manifest) -> Table:
    """Export error and solver gap (of the states, relative), kept apart."""
    report = manifest.verification
    what = "pixels" if manifest.task == "segmentation" else "images"
    table = Table(
        title=f"verified on {report.images} images ({report.source}), {report.backend}; converged "
        f"solve: residual {report.reference_residual:.1e}",
        title_justify="left",
    )
    kinds = {(rung.profile, rung.precision) for rung in report.rungs}
    columns = (
        *(("rung", "N") if len(kinds) > 1 else ("evaluations",)),
        "export error",
        f"equal {what}",
        "solver gap",
        f"equal {what}",
        "residual",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "rung" else "right", no_wrap=True)
    for rung in report.rungs:
        alone = rung.step_rel is not None  # then it is a single step that was judged
        error = rung.step_rel if rung.step_rel is not None else rung.state_rel
        table.add_row(
            *((f"{rung.profile} {rung.precision}",) if len(kinds) > 1 else ()),
            str(rung.evaluations),
            f"{error:.1e}" + (" a step" if alone else ""),
            f"{rung.answer_agreement:.3%}",
            f"{rung.solver_gap_state:.1e}",
            f"{rung.solver_gap_agreement:.2%}",
            f"{rung.residual:.1e}",
        )
    return table


def solvers_table(manifest: Manifest) -> Table:
    """How every solver that was measured converges; the exported one comes first."""
    curves = manifest.verification.curves
    radius = manifest.verification.spectral_radius or float("nan")
    table = Table(
        title=f"relative residual, worst image, cold; spectral radius {radius:.2f}",
        title_justify="left",
    )
    counts = [count for count in (1, 2, 4, 8, 16, 26) if count <= len(curves[0].worst)]
    for column in ("solver", "cost", *(str(count) for count in counts)):
        table.add_column(column, justify="left" if column == "solver" else "right")
    for curve in curves:
        options = ", ".join(f"{key}={value:g}" for key, value in curve.settings.items())
        table.add_row(
            f"{curve.solver} {options}".strip(),
            f"{curve.cost:.2f}",
            *(f"{curve.worst[count - 1]:.1e}" for count in counts),
        )
    return table
