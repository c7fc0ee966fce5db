"""How much memory this process occupies, from /proc; ``None`` where there is no Linux."""

from __future__ import annotations

import ctypes
from pathlib import Path

__all__ = ["limit_heaps", "peak_resident_bytes", "resident_bytes"]

M_ARENA_MAX = -8  # <malloc.h>

STATUS = Path("/proc/self/status")


def resident_bytes() -> int | None:
    """Resident memory now (VmRSS) in bytes."""
    return _field("VmRSS")


def peak_resident_bytes() -> int | None:
    """Largest resident memory since the process started (VmHWM) in bytes."""
    return _field("VmHWM")


def _field(name: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024  # the kernel writes "kB" and means KiB
    return None


def limit_heaps() -> None:
    """Let all threads share one heap (glibc only; elsewhere this does nothing).

    By default glibc gives each thread a heap of its own, and what one frees the others cannot use.
    ONNX Runtime allocates large blocks from few threads: sharing costs no time and saves 2 to 4 MB.
    """
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    except (AttributeError, OSError):
        return
