"""The machine that figures are of, and keeping to some of its cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cores", "describe_machine", "pinned"]

INSTRUCTIONS = {  # as the kernel calls them: as people do; those that inference depends on
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimdhp": "NEON FP16",
    "asimddp": "NEON dot product",
    "i8mm": "NEON int8 matrix",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Cores:
    """Where a measurement runs.

    Attributes:
        threads: that each graph gets.
        pinned: the cores that the process keeps to; none where it may run on any of them.
    """

    threads: int
    pinned: tuple[int, ...]


def describe_machine(root: Path = Path("/")) -> dict[str, str | int | list[str]]:
    """Processor, usable cores and the instructions that matter; ``root`` has its ``proc``."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    board = ""
    with suppress(OSError):
        board = (root / "proc/device-tree/model").read_text().strip("\0 \n")
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": board or fields.get("model name") or platform.processor() or "unknown",
        "cores": len(usable()),
        "instructions": [name for flag, name in INSTRUCTIONS.items() if flag in flags],
    }


def usable() -> tuple[int, ...]:
    """The cores that this thread may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@contextmanager
def pinned(threads: int = 0) -> Iterator[Cores]:
    """Keep this thread, and those that it starts within, to as many cores as there are threads.

    So nothing moves from core to core while it is measured. Where the system does not permit it,
    all stays as it is, and ``Cores.pinned`` is empty.

    Args:
        threads: 0 for one per usable core; more than there are share them.
    """
    before = usable()
    wanted = before[: threads or len(before)]
    try:
        os.sched_setaffinity(0, wanted)
        kept = wanted
    except (AttributeError, OSError):
        kept = ()
    try:
        yield Cores(threads or len(before), kept)
    finally:
        if kept:
            with suppress(OSError):
                os.sched_setaffinity(0, before)
