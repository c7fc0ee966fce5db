"""Composing is not tracing: what a further evaluation costs an export, and the memory it takes.

    python benchmarks/export_cost.py [--weights samples/models/camvid-nano]
        [--filled imagenet-small imagenet-xl:1] [--runs 3]

``edge-mdeq export`` with one rung of 2 evaluations, of 26, and with the usual ladder, in turn, each
in a process of its own as a user would, verification and report included. A further evaluation
costs a 24th of the difference between neighbours; both on the clock and of the CPU, which other
load does not stretch (with two cores the clock shows about half). Peak: the largest resident memory
of the process. ``NAME:RUNS`` gives a model a number of runs of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

SHORT, LONG, USUAL = (2,), (26,), (1, 2, 4, 8)
SAVE = (
    "import sys; from pathlib import Path; from filled import save_filled;"
    "save_filled(sys.argv[1], Path(sys.argv[2]))"
)


@dataclass(frozen=True)
class Cost:
    """Of a process: seconds on the clock and of the CPU, bytes at its peak and of its bundle."""

    seconds: float
    cpu: float
    peak: int
    size: int = 0


def main() -> None:
    """Measure model after model, and print a table and the cost of an evaluation for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="*", default=["samples/models/camvid-nano"])
    parser.add_argument("--filled", nargs="*", default=["imagenet-small", "imagenet-xl:1"])
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    console = Console(width=100)
    for path in args.weights:
        show(Path(path).name, measure(Path(path), args.runs), console)
    for entry in args.filled:
        name, _, runs = entry.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            # In a process of its own, since a child's peak starts from that of its parent.
            subprocess.run(
                [sys.executable, "-c", SAVE, name, folder], check=True, cwd=Path(__file__).parent
            )
            show(f"{name}, drawn", measure(Path(folder), int(runs or args.runs)), console)


def measure(weights: Path, runs: int) -> dict[tuple[int, ...], list[Cost]]:
    """Every ladder as often as is asked for, in turn; the usual one once."""
    costs: dict[tuple[int, ...], list[Cost]] = {SHORT: [], LONG: [], USUAL: []}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            for ladder, found in costs.items():
                if ladder != USUAL or run == 0:
                    found.append(export(weights, Path(folder) / "x.mdeq", ladder))
    return costs


def export(weights: Path, bundle: Path, ladder: tuple[int, ...]) -> Cost:
    """One export in a process of its own."""
    options = ["-o", str(bundle), "--force", "-q", "--iterations", *map(str, ladder)]
    spent, _ = spend("export", str(weights), *options)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    return replace(spent, size=size)


def spend(*arguments: str) -> tuple[Cost, str]:
    """What ``edge-mdeq`` with these arguments costs, and what it prints."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_mdeq.cli", *arguments], stdout=said, stderr=complained
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (said, complained):
            file.seek(0)
        if process.returncode:
            sys.exit(complained.read().decode())
        cpu = usage.ru_utime + usage.ru_stime
        peak = usage.ru_maxrss * 1024  # Linux counts in KiB
        return Cost(seconds, cpu, peak), said.read().decode()


def show(name: str, costs: dict[tuple[int, ...], list[Cost]], console: Console) -> None:
    """The table of one model, and what an evaluation more costs."""
    table = Table(title=name, title_justify="left")
    table.add_column("rungs")
    for heading in ("exports", "seconds", "least", "most", "CPU s", "peak MB", "bundle MB"):
        table.add_column(heading, justify="right")
    for ladder, found in costs.items():
        seconds = [cost.seconds for cost in found]
        table.add_row(
            " ".join(map(str, ladder)),
            str(len(found)),
            *(f"{f(seconds):.1f}" for f in (statistics.median, min, max)),
            f"{statistics.median(cost.cpu for cost in found):.1f}",
            f"{max(cost.peak for cost in found) / 1e6:.0f}",
            f"{found[0].size / 1e6:.2f}",
        )
    console.print(table)
    pairs = list(zip(costs[SHORT], costs[LONG], strict=True))
    further = LONG[0] - SHORT[0]
    for what, kind in (("seconds", "seconds"), ("CPU seconds", "cpu")):
        each = [(getattr(long, kind) - getattr(short, kind)) / further for short, long in pairs]
        middle = statistics.median(each)
        console.print(
            f"a further evaluation: {middle:.3f} {what} ({min(each):.3f} to {max(each):.3f})"
        )
    ratios = [long.seconds / short.seconds for short, long in pairs]
    console.print(
        f"26 beside 2: {statistics.median(ratios):.2f} times the time ({min(ratios):.2f} to "
        f"{max(ratios):.2f}), {(pairs[0][1].size - pairs[0][0].size) / 1e6:.2f} MB more\n"
    )


if __name__ == "__main__":
    main()
