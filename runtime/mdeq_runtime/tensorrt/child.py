"""One build in a process of its own, so that what it takes, or breaks, is not the caller's.

``main`` reads a ``Job`` as JSON from standard input and writes JSON lines to standard output:
``progress``, ``said`` (by TensorRT), and at the end ``built`` or ``error``. What TensorRT itself
prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge_mdeq.errors import DeviceError, EdgeMdeqError
from edge_mdeq.files import write_atomic
from mdeq_runtime.backends.nvidia import find_device
from mdeq_runtime.memory import peak_resident_bytes
from mdeq_runtime.tensorrt.builder import Plan, build, layers_of
from mdeq_runtime.tensorrt.listening import Progress, logger
from mdeq_runtime.tensorrt.loading import check_driver
from mdeq_runtime.tensorrt.network import parse
from mdeq_runtime.tensorrt.settings import BuildSettings
from mdeq_runtime.tensorrt.versions import Flavour, find_flavour

__all__ = ["Event", "Job", "main"]

PR_SET_PDEATHSIG = 1
FIRST_TO_GO = 1000  # for the kernel, when memory is short: rather this than what feeds a camera


@dataclass(frozen=True)
class Job:
    """A build.

    Attributes:
        graph: the ONNX file.
        engine: the file to write.
        layers: the file for what the inspector says of it, where there is a GPU to load it.
        timings: the timing cache to read and to write; None: there is none.
        rtx: whether for TensorRT for RTX.
        settings: that the compiler is given.
        niceness: added to that of the caller.
        parent: the caller's process, without which nobody waits for it; 0: whoever that is.
    """

    graph: str
    engine: str
    layers: str
    timings: str | None
    rtx: bool
    settings: BuildSettings
    niceness: int = 0
    parent: int = 0


@dataclass(frozen=True)
class Event:
    """A line of the child's.

    Attributes:
        kind: "progress", "said", "built" or "error".
        text: the phase, TensorRT's words, or the error's.
        done: the share that is done, with progress.
        severity: of what TensorRT said; with an error, the name of its class.
        measured: with an engine: seconds, peak_bytes, layers.
    """

    kind: str
    text: str = ""
    done: float = 0.0
    severity: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)


def main() -> None:
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints, prints to standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides, and kills
    die_with_parent()

    def send(event: Event) -> None:
        lines.write(msgspec.json.encode(event) + b"\n")

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    if job.parent not in (0, os.getppid()):
        os._exit(1)  # it died before this could ask to be told
    give_way(job.niceness)
    try:
        send(Event("built", measured=work(job, send)))
    except EdgeMdeqError as error:
        send(Event("error", str(error), severity=type(error).__name__))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room, or name another folder with --cache" if full else ""
        text = f"{job.engine} could not be written: {error.strerror}{advice}"
        send(Event("error", text, severity="EngineError"))
    lines.close()
    os._exit(0)  # without a device some versions crash when they tidy up


def work(job: Job, send: Any) -> dict[str, float]:
    """Build, and write the engine and the timings; what it took."""
    started = time.monotonic()
    last = ["", -1.0]

    def report(progress: Progress) -> bool:
        if last != [progress.phase, round(progress.done, 2)]:
            last[:] = [progress.phase, round(progress.done, 2)]
            send(Event("progress", progress.phase, progress.done))
        return True

    def said(severity: str, text: str) -> None:
        send(Event("said", text, severity=severity))

    flavour = find_flavour(job.rtx)
    listener = logger(flavour, said, report)
    parsed = parse(flavour, Path(job.graph), listener)
    timings = Path(job.timings) if job.timings is not None else None
    plan = build(parsed, job.settings, read_timings(timings), report)
    write(plan, Path(job.engine), timings)
    measured = {
        "seconds": time.monotonic() - started,
        "peak_bytes": peak_resident_bytes() or 0,
        "layers": parsed.layers,
    }
    inspect(flavour, plan, Path(job.layers), listener, job.settings.version_compatible)
    return measured


def read_timings(path: Path | None) -> bytes:
    """The timing cache; empty where there is none yet. TensorRT itself refuses another device's."""
    with suppress(OSError):
        return path.read_bytes() if path is not None else b""
    return b""


def write(plan: Plan, engine: Path, timings: Path | None) -> None:
    with engine.open("wb") as file:
        file.write(memoryview(plan.engine))
    if timings is not None and plan.timings is not None:
        write_atomic(timings, plan.timings)


def inspect(flavour: Flavour, plan: Plan, path: Path, listener: Any, host_code: bool) -> None:
    """Write the engine's layers as JSON; only a GPU that it fits can load it."""
    path.unlink(missing_ok=True)  # of the engine before
    try:
        check_driver(flavour, find_device().driver)
    except DeviceError:
        return  # a Runtime without a device, or on an old driver, would crash
    runtime = flavour.module.Runtime(listener)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(memoryview(plan.engine))
    if engine is not None:
        write_atomic(path, layers_of(flavour, engine).encode())


def give_way(niceness: int) -> None:
    """Let everything else on the device go first, also with memory."""
    with suppress(OSError):
        os.nice(niceness)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_TO_GO))


def die_with_parent() -> None:
    """A build that nobody waits for is of no use."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
