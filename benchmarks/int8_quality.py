"""What integers cost an equilibrium, and what they save: int8 and refined solves beside fp32.

    python benchmarks/int8_quality.py BUNDLE.mdeq [--data CamVid --ignore 11] [--images DIR]
        [--longest 12] [--plot docs/images/int8_quality.svg] [--json FILE]
    python benchmarks/int8_quality.py --filled imagenet-small

BUNDLE was exported with ``--int8``. From a cold start the same images are solved in fp32, in int8
and refined: in int8 with as many last evaluations in fp32 as the bundle's rungs have. Errors are
against the converged state in fp32, relative, mean over the images. Times are of an ``advance`` of
one evaluation, fp32 and int8 in turn: of the clock, and of the processor, which other load
stretches less.
An error at equal time is that of as many evaluations as fit into so many of fp32. ``--data`` scores
the rungs too. With ``--filled`` weights are drawn, so that only the times mean anything.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.bundle.precision import precision_of
from mdeq_export.answers import distance
from mdeq_export.graphs import read_pieces
from mdeq_export.images import verification_images
from mdeq_export.quantize.iteration import Iteration
from mdeq_export.sessions import plain_session
from mdeq_runtime.val import ValSettings, validate

CONVERGED = 60  # evaluations, after which a state in fp32 is taken for the equilibrium
KINDS = ("fp32", "int8", "refined")
COLOURS = {"fp32": "#4c72b0", "int8": "#c44e52", "refined": "#55a868"}

Spread = tuple[float, float, float]


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--filled", default="imagenet-small")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ignore", type=int, nargs="*", default=[255])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--longest", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.bundle or drawn(args.filled, Path(folder))
        bundle, console, found = open_bundle(path), Console(width=100), dict[str, Any]()
        found["milliseconds"] = times(bundle, args.rounds)
        console.print(times_table(bundle, found["milliseconds"]))
        if args.bundle is not None:
            size = bundle.manifest.input.size
            images, _ = verification_images(args.images, args.count, *size)
            found["errors"] = errors(bundle, images, args.longest)
            ratio = (
                found["milliseconds"]["clock"]["fp32"][1]
                / found["milliseconds"]["clock"]["int8"][1]
            )
            console.print(errors_table(found["errors"], ratio))
            if args.plot is not None:
                draw(found, refinement(bundle), args.plot)
        if args.data is not None:
            found["metric"] = metric(path, args.data, args.ignore)
            console.print(metric_table(found["metric"]))
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1))


def drawn(name: str, folder: Path) -> Path:
    """A bundle of drawn weights, calibrated but not judged: what time depends on."""
    from filled import ungated

    from edge_mdeq.registry import lookup

    config = lookup(name).input
    out = folder / f"{name}.mdeq"
    ungated(name, out, (config.height, config.width), (1, 2), int8=True)
    return out


def times(bundle: Bundle, rounds: int) -> dict[str, dict[str, Spread]]:
    """Milliseconds of an evaluation, on the clock and of the processor; see ``spread``."""
    parts = {parts.precision: parts for parts in bundle.profile("ort-cpu").parts}
    graphs = {
        name: next(rung.graph for rung in each.advance if rung.evaluations == 1)
        for name, each in parts.items()
    }
    sessions = {n: plain_session(bundle.path / g, spinning=True) for n, g in graphs.items()}
    random = np.random.default_rng(0)
    taken: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in sessions} for kind in ("clock", "processor")
    }
    for turn in range(rounds + 3):
        for name, session in sessions.items():
            given = {
                each.name: random.normal(size=[1, *each.shape[1:]]).astype(np.float32)
                for each in session.get_inputs()
            }
            started, spent = time.perf_counter(), time.process_time()
            session.run(None, given)
            if turn >= 3:  # the first are no use
                taken["clock"][name].append(1e3 * (time.perf_counter() - started))
                taken["processor"][name].append(1e3 * (time.process_time() - spent))
    return {
        kind: {name: spread(each) for name, each in found.items()} for kind, found in taken.items()
    }


def spread(values: list[float]) -> Spread:
    """Least, median and upper quartile."""
    low, middle, high = np.quantile(values, [0.0, 0.5, 0.75])
    return round(float(low), 2), round(float(middle), 2), round(float(high), 2)


def errors(bundle: Bundle, images: NDArray[np.uint8], longest: int) -> dict[str, list[float]]:
    """Relative state error after 1, 2, ... evaluations, cold, by kind; NaN where there is none."""
    refine = refinement(bundle)
    iteration = Iteration(read_pieces(bundle, "ort-cpu", "int8"))
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for image in images:
        u = iteration.injection(image)
        goal = iteration.solve(u, ["fp32"] * CONVERGED)
        for kind in KINDS:
            ends = walk(iteration, u, kind, longest, refine)
            found[kind].append([float("nan") if z is None else distance(z, goal) for z in ends])
    return {kind: np.mean(rows, axis=0).round(5).tolist() for kind, rows in found.items()}


def walk(
    iteration: Iteration, u: NDArray[Any], kind: str, longest: int, refine: int
) -> list[list[NDArray[Any]] | None]:
    """What 1, 2, ... evaluations end at; a refined solve leaves that in int8 for its last ones."""
    feeds, ends = iteration.start(), list[list[NDArray[Any]] | None]()
    if kind == "refined":
        ends = [None] * min(refine or longest, longest)  # too short, or no such rungs
    while len(ends) < longest:
        value, feeds = iteration.step(u, feeds, "fp32" if kind == "fp32" else "int8")
        if kind == "refined":
            branch = feeds
            for _ in range(refine):
                value, branch = iteration.step(u, branch)
        ends.append(value)
    return ends


def refinement(bundle: Bundle) -> int:
    """Evaluations in fp32 at the end of a refined rung; 0 if there are no such rungs."""
    rungs = bundle.profile("ort-cpu").rungs
    refined = [rung.steps[-1].evaluations for rung in rungs if precision_of(rung) == "refined"]
    return max(refined, default=0)


def metric(path: Path, data: Path, ignore: list[int]) -> list[dict[str, Any]]:
    """The task's metric of every rung, cold."""
    report = validate(path, data, ValSettings(ignore=ignore))
    return [
        {"steps": s.steps, "precision": s.precision, "evaluations": s.evaluations, "value": s.value}
        for s in report.scores
    ]


def times_table(bundle: Bundle, found: dict[str, dict[str, Spread]]) -> Table:
    table = Table(
        title=f"{bundle.manifest.name}: one evaluation, ms: least, median, upper quartile",
        title_justify="left",
    )
    for column in ("", "fp32", "int8", "ratio of medians", "of the least"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, by in found.items():
        shown = [" / ".join(f"{value:.2f}" for value in by[name]) for name in ("fp32", "int8")]
        ratios = [f"{by['fp32'][k] / by['int8'][k]:.2f}" for k in (1, 0)]
        table.add_row(kind, *shown, *ratios)
    return table


def errors_table(found: dict[str, list[float]], ratio: float) -> Table:
    table = Table(title="error against the converged fp32 state, cold", title_justify="left")
    columns = ("evaluations", *found, "refined / fp32", "int8 at fp32's time")
    for column in columns:
        table.add_column(column, justify="right")
    for k, row in enumerate(zip(*found.values(), strict=True)):
        fitting = int((k + 1) * ratio)
        same = f"{found['int8'][fitting - 1]:.4f}" if fitting <= len(found["int8"]) else ""
        cells = ["" if np.isnan(value) else f"{value:.4f}" for value in row]
        share = "" if np.isnan(row[2]) else f"{row[2] / row[0]:.2f}"
        table.add_row(str(k + 1), *cells, share, same)
    return table


def metric_table(found: list[dict[str, Any]]) -> Table:
    table = Table(title="task metric, cold", title_justify="left")
    for column in ("steps", "value"):
        table.add_column(column)
    for row in found:
        table.add_row(row["steps"], f"{row['value']:.4f}")
    return table


def draw(found: dict[str, Any], refine: int, path: Path) -> None:
    """Error against time, a point per evaluation."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    step = {name: by[1] for name, by in found["milliseconds"]["clock"].items()}
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for kind, course in found["errors"].items():
        counts = np.arange(1, len(course) + 1)
        fine = {"fp32": counts, "int8": 0 * counts, "refined": 0 * counts + refine}[kind]
        spent = fine * step["fp32"] + (counts - fine) * step["int8"]
        axes.semilogy(spent, course, "o-", ms=4, lw=1.4, color=COLOURS[kind], label=kind)
    axes.set_xlabel("milliseconds of evaluations, from a cold start")
    axes.set_ylabel("error against converged fp32")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
