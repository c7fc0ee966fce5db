"""Runs a target's cases in worker processes; what a worker dies of is one seed's doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Finding", "Tally", "fuzz"]

WORKER = Path(__file__).with_name("worker.py")
SILENCE_S = 60.0  # a worker starts within, and ends a case that hangs itself


@dataclass(frozen=True)
class Finding:
    """A case that must not be: ``python worker.py TARGET FOLDER SEED`` repeats it."""

    target: str
    seed: int
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.target}, seed {self.seed}: {self.what}\n{self.said}"


@dataclass
class Tally:
    """What came of a target's cases, from the seed ``first`` on."""

    target: str
    first: int = 0
    cases: int = 0
    taken: int = 0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)


def fuzz(
    target: str,
    folder: Path,
    seeds: Sequence[int],
    report: Callable[[Tally], None] = lambda tally: None,
    tally: Tally | None = None,
    most: int = 20,
) -> Tally:
    """Run a case for each of ``seeds``.

    Args:
        target: its name among ``targets.TARGETS``.
        folder: what the target starts from, and works in.
        seeds: of the cases.
        report: called after each case.
        tally: what it adds to.
        most: findings after which it gives up.
    """
    tally, left = tally or Tally(target), list(seeds)
    while left and len(tally.findings) < most:
        left = left[work(tally, folder, left, report) :]
    return tally


def work(tally: Tally, folder: Path, seeds: Sequence[int], report: Callable[[Tally], None]) -> int:
    """Let one worker go as far as it gets; how many cases that was."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(WORKER), tally.target, str(folder)]
    begun = done = 0
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile("w+") as given:
        given.write(" ".join(map(str, seeds)))
        given.seek(0)
        with subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=folder,
            text=True,
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                word = line.strip()
                if word.isdigit():
                    begun += 1
                    continue
                done += 1
                tally.cases += 1
                tally.taken += word == "taken"
                tally.refused += word == "refused"
                if word != "raised":  # which is told once it is known what
                    report(tally)
            status = worker.wait(timeout=SILENCE_S)
        errors.seek(max(0, errors.seek(0, 2) - 6000))
        said = errors.read().decode(errors="replace")
    tally.cases += begun - done  # the one that it died of
    if status == 0:
        return begun
    if not begun:
        raise RuntimeError(f"{tally.target} cannot be prepared: {said}")
    tally.findings.append(Finding(tally.target, seeds[begun - 1], verdict(status, said), said))
    report(tally)
    return begun


def verdict(status: int, said: str) -> str:
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}"
    if "Timeout (" in said:
        return "hung"
    if any(word in said for word in ("MemoryError", "bad_alloc", "can't allocate memory")):
        return "took more memory than it may"
    if status == 3:
        return f"raised {said.strip().splitlines()[-1][:200]}"
    return f"ended with status {status}"
