"""Long runs of cases, with what came of them kept in a file: what was interrupted goes on."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from running import Finding, Tally, fuzz

from edge_mdeq.files import make_folder, write_atomic

__all__ = ["fuzz_on", "read_results"]

EVERY_S = 2.0  # the file is written so often


def fuzz_on(target: str, folder: Path, first: int, cases: int, results: Path) -> Tally:
    """Run the cases of the seeds from ``first`` on, or those that an interrupted run has left.

    The seeds of what it found come first then, to see whether that is mended. A run that came to
    its end with nothing found is begun anew.

    Args:
        target: its name among ``targets.TARGETS``.
        folder: what the target starts from, and works in.
        first: the first seed.
        cases: how many.
        results: a JSON file of all targets; made if needed.
    """
    before, seconds = read_results(results).get(target, (Tally(target), 0.0))
    known = [finding.seed for finding in before.findings]
    same = before.first == first and (before.cases < cases or known)
    tally = before if same else Tally(target, first)
    seconds, begin, written = seconds if same else 0.0, time.monotonic(), 0.0
    again = fuzz(target, folder, known if same else ())
    tally.findings = again.findings
    tally.taken += again.taken
    tally.refused += again.refused

    def report(tally: Tally, at_once: bool = False) -> None:
        nonlocal written
        now = time.monotonic()
        if at_once or now - written > EVERY_S:
            write_result(results, tally, seconds + now - begin)
            written = now

    tally = fuzz(target, folder, range(first + tally.cases, first + cases), report, tally)
    report(tally, at_once=True)
    return tally


def read_results(path: Path) -> dict[str, tuple[Tally, float]]:
    """What was kept: a tally of each target, and its seconds."""
    if not path.exists():
        return {}
    found = {}
    for target, entry in json.loads(path.read_text()).items():
        seconds = entry.pop("seconds")
        findings = [Finding(**finding) for finding in entry.pop("findings")]
        found[target] = (Tally(**entry, findings=findings), seconds)
    return found


def write_result(path: Path, tally: Tally, seconds: float) -> None:
    """Put one target's results into the file of all."""
    all_results = json.loads(path.read_text()) if path.exists() else {}
    all_results[tally.target] = asdict(tally) | {"seconds": round(seconds, 1)}
    make_folder(path.parent)
    write_atomic(path, json.dumps(all_results, indent=2).encode() + b"\n")
