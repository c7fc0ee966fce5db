"""What this process holds of memory, from /proc (``None`` where there is no Linux), and how the
heap and Python's garbage collector go about it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = [
    "available_bytes",
    "limit_heaps",
    "peak_resident_bytes",
    "resident_bytes",
    "returning_blocks",
    "settled_objects",
    "total_bytes",
    "trim",
]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # <malloc.h>
SMALL, LARGE = 2**16, 2**24  # bytes

PROC = Path("/proc")


def resident_bytes(pid: int | None = None) -> int | None:
    """Resident memory now (VmRSS) in bytes, of this process or of another."""
    return _field("self/status" if pid is None else f"{pid}/status", "VmRSS")


def peak_resident_bytes() -> int | None:
    """Largest resident memory since the process started (VmHWM) in bytes."""
    return _field("self/status", "VmHWM")


def available_bytes() -> int | None:
    """What the machine could still give to a process (MemAvailable) in bytes."""
    return _field("meminfo", "MemAvailable")


def total_bytes() -> int | None:
    """What the machine has (MemTotal) in bytes."""
    return _field("meminfo", "MemTotal")


def _field(file: str, name: str) -> int | None:
    try:
        lines = (PROC / file).read_text().splitlines()
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
    _mallopt(M_ARENA_MAX, 1)


@contextmanager
def returning_blocks() -> Iterator[None]:
    """Within, a block of 64 KiB or more goes back to the system when it is freed (glibc only).

    By itself glibc raises that size with every block that is freed, up to 32 MiB: weights that are
    reordered then leave holes in the heap, 25 MB of them in a session of ImageNet-small. Afterwards
    it is 16 MiB, so that frames are not fetched from the system one by one.
    """
    _mallopt(M_MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        _mallopt(M_MMAP_THRESHOLD, LARGE)
        _mallopt(M_TRIM_THRESHOLD, 2 * LARGE)


def trim() -> None:
    """Give unused pages of the heap back to the system (glibc only)."""
    with suppress(AttributeError, OSError):
        _libc().malloc_trim(0)


def _mallopt(what: int, value: int) -> None:
    with suppress(AttributeError, OSError):
        _libc().mallopt(what, value)


@contextmanager
def settled_objects() -> Iterator[None]:
    """Within, Python's garbage collector does not look at the objects that are there by now.

    Those of the libraries are 50,000, which takes it 0.1 s on a desktop: the frame that is being
    answered when it comes, every quarter of an hour, would be late. New ones are collected as ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@cache  # each one is a cycle of some fifty objects, which only the garbage collector would end
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
