"""What the Python loop around the graphs costs: a frame's time beside that of the graphs it ran.

    python benchmarks/loop_overhead.py [BUNDLE ...] [--evaluations 4] [--rounds 60] [--threads 1]
        [--frame HEIGHT WIDTH]

Without a bundle: ImageNet-small at 224x224 with drawn weights, and the sample bundle camvid-nano.
Per policy, round by round: one frame through a session, with a clock around every graph run; and
the same graphs on the same kind of buffers, one after the other, with nothing between them. What
the session adds is given against both. Frames have the model's size, unless another is given:
fitting them and bringing the mask back then counts as overhead, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from session_memory import drawn

from mdeq_runtime import FixedIterations, Model, Session, SessionSettings, UntilTolerance
from mdeq_runtime.policies import Policy
from mdeq_runtime.solving.fixed import Fixed

SAMPLE = Path(__file__).parents[1] / "samples" / "bundles" / "camvid-nano.mdeq"
NEVER = 1e-9  # a tolerance that no frame meets: every one has as many evaluations
WARM_UP = 5  # rounds


class Clocked:
    """A graph's session with a clock around its runs."""

    def __init__(self, real: Any) -> None:
        self.real, self.seconds = real, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def run_with_iobinding(self, binding: Any) -> None:
        started = time.perf_counter()
        self.real.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - started


def bare(session: Session, runs: list[str]) -> float:
    """Seconds of the graphs ``runs`` on the session's own bindings, with nothing between them."""
    backend: Any = session.solver.backend  # type: ignore[attr-defined]
    state, turn = session.state, session.state.turn
    steps = []
    for graph in runs:
        real = backend.sessions[graph].real
        steps.append((real.run_with_iobinding, state.bindings[graph, turn]))
        if not graph.endswith(("inject.onnx", "readout.onnx")):
            turn = 1 - turn
    started = time.perf_counter()
    for run, binding in steps:
        run(binding)
    return time.perf_counter() - started


def frames(size: tuple[int, int], count: int) -> list[NDArray[np.uint8]]:
    """Noise that changes a little from frame to frame, so that nothing is taken for a cut."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 250, (*size, 3), dtype=np.uint8)
    return [base + rng.integers(0, 5, base.shape, dtype=np.uint8) for _ in range(count)]


def measure(
    model: Model, policy: Policy, size: tuple[int, int], rounds: int
) -> NDArray[np.float64]:
    """(rounds, 4): seconds of a frame, of its graphs, of the same graphs alone; evaluations."""
    settings = SessionSettings(policy, restart_above=1e9)
    with model.session(settings) as session, model.session(settings) as other:
        sessions: dict[str, Any] = model.backend.sessions
        for graph, real in sessions.items():
            sessions[graph] = Clocked(getattr(real, "real", real))
        images, rows = frames(size, 8), []
        solver: Any = session.solver
        for index in range(rounds + WARM_UP):
            for clock in sessions.values():
                clock.seconds = 0.0
            started = time.perf_counter()
            result = session(images[index % len(images)])
            taken = time.perf_counter() - started
            graphs = sum(clock.seconds for clock in sessions.values())
            if isinstance(solver, Fixed):
                plan = solver.warm_plan if result.warm else solver.cold_plan
                runs = [rung.graph for rung in plan]
            else:
                steps = result.iterations // solver.rung.evaluations
                runs = [solver.parts.inject, *[solver.rung.graph] * steps, solver.parts.readout]
            if index < 2:  # both turns of the bindings are made by a frame of its own
                other(images[0])
                other(images[0])
            rows.append((taken, graphs, bare(other, runs), result.iterations))
    return np.array(rows[WARM_UP:])


def spread(values: NDArray[np.float64], digits: int) -> str:
    """Median, and the middle eight tenths."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Print a table; medians, and from the 10th to the 90th percentile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="*")
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frame", type=int, nargs=2)
    args = parser.parse_args()
    table = Table(
        title=f"{args.evaluations} evaluations, {args.rounds} rounds, {args.threads} threads",
        title_justify="left",
    )
    for column in (
        "model",
        "policy",
        "graphs, ms",
        "frame, ms",
        "over its graphs, %",
        "over bare graphs, %",
        "ms per evaluation",
    ):
        table.add_column(column, justify="left" if column in ("model", "policy") else "right")
    with tempfile.TemporaryDirectory() as folder:
        bundles = args.bundles or [drawn("imagenet-small", Path(folder)), SAMPLE]
        for bundle in bundles:
            with Model(bundle, threads=args.threads) as model:
                size = tuple(args.frame or model.manifest.input.size)
                ways: list[Policy] = [UntilTolerance(NEVER, args.evaluations)]
                if any(r.evaluations == 1 for r in model.bundle.profile("ort-cpu").rungs):
                    ways.append(FixedIterations(args.evaluations))
                for policy in ways:
                    taken, graphs, alone, counts = measure(model, policy, size, args.rounds).T
                    table.add_row(
                        bundle.stem,
                        type(policy).__name__,
                        spread(1e3 * graphs, 1),
                        spread(1e3 * taken, 1),
                        spread(100 * (taken / graphs - 1), 2),
                        spread(100 * (taken / alone - 1), 1),
                        spread(1e3 * (taken - graphs) / counts, 3),
                    )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
