"""A contender in a process of its own, for its memory.

    python -m contenders.process CASE NAME    (from the folder benchmarks)

The base is the process with every library imported that the contender needs. What the process
takes above it at its peak, over two frames, is the contender's.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from contenders.base import AbsentError, Case, Contender

__all__ = ["measure"]

FRAMES, TIMEOUT = 2, 1200.0  # seconds


def measure(case: Case, contender: Contender) -> dict[str, int]:
    """Bytes above the base and in all, at the peak.

    Raises:
        AbsentError: the process failed, or took too long.
    """
    job = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(case).items()}
    command = [sys.executable, "-m", "contenders.process", json.dumps(job), contender.name]
    here = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=here, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise AbsentError(f"its memory was given up after {TIMEOUT:g} s") from error
    if done.returncode:
        raise AbsentError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the memory as JSON."""
    from contenders import lineup
    from mdeq_runtime.memory import peak_resident_bytes, resident_bytes

    job: dict[str, Any] = json.loads(sys.argv[1])
    for key in ("weights", "bundle", "folder"):
        job[key] = Path(job[key])
    case = Case(**job)
    contender = next(c for c in lineup(case) if c.name == sys.argv[2])
    for library in ("cv2", *contender.libraries):
        importlib.import_module(library)
    image = np.random.default_rng(0).integers(0, 256, (*case.size, 3), dtype=np.uint8)
    base = resident_bytes() or 0
    answer = contender.prepare()
    for _ in range(1 if case.memory_only else FRAMES):
        answer(image)
    peak = peak_resident_bytes() or 0
    print(json.dumps({"above_base": peak - base, "peak": peak}))


if __name__ == "__main__":
    main()
