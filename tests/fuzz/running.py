"""Runs a target's cases in worker processes; what a worker dies of is one seed's doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Finding", "Tally", "fuzz"]

WORKER = Path(__file__).with_name("worker.py")
SILENCE_S = 60.0  # a worker starts within, and ends a case that hangs itself


@dataclass(frozen=True)
class Finding:
    """A case that must not be: ``python worker.py TARGET FOLDER SEED SEED+1`` repeats it."""

    target: str
    seed: int
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.target}, seed {self.seed}: {self.what}\n{self.said}"


@dataclass
class Tally:
    """What came of a target's cases."""

    target: str
    cases: int = 0
    taken: int = 0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)


def fuzz(target: str, folder: Path, first: int, end: int, most: int = 20) -> Tally:
    """Run the cases ``first`` to ``end``, without the latter.

    Args:
        target: its name among ``targets.TARGETS``.
        folder: what the target starts from, and works in.
        first, end: seeds.
        most: findings after which it gives up.
    """
    tally = Tally(target)
    while first < end and len(tally.findings) < most:
        first = work(tally, folder, first, end)
    return tally


def work(tally: Tally, folder: Path, first: int, end: int) -> int:
    """Let one worker go as far as it gets; the seed to go on with."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(WORKER), tally.target, str(folder), str(first), str(end)]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=folder, text=True
        ) as worker:
            assert worker.stdout is not None
            seed, started = first, False
            for line in worker.stdout:
                word = line.strip()
                if word.isdigit():
                    seed, started = int(word), True
                    tally.cases += 1
                elif word == "taken":
                    tally.taken += 1
                elif word == "refused":
                    tally.refused += 1
            status = worker.wait(timeout=SILENCE_S)
        errors.seek(max(0, errors.seek(0, 2) - 6000))
        said = errors.read().decode(errors="replace")
    if status == 0:
        return end
    if not started:
        raise RuntimeError(f"{tally.target} cannot be prepared: {said}")
    tally.findings.append(Finding(tally.target, seed, verdict(status, said), said))
    return seed + 1


def verdict(status: int, said: str) -> str:
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}"
    if "Timeout (" in said:
        return "hung"
    if "MemoryError" in said or "bad_alloc" in said or "allocate" in said:
        return "took more memory than it may"
    if status == 3:
        return f"raised {said.strip().splitlines()[-1][:200]}"
    return f"ended with status {status}"
