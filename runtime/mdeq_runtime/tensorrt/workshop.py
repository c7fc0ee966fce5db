"""The builds of a bundle: one after the other, each in a child that is watched.

The smallest graph comes first, so that a device on which a large one cannot be built still has the
small ones. An engine takes its place only when it is whole: a build that fails, is killed or is
interrupted leaves what was there.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from edge_mdeq import errors
from edge_mdeq.bundle.reader import hash_file
from edge_mdeq.errors import EngineError
from edge_mdeq.files import read_capped, replacing, write_atomic
from mdeq_runtime.device_key import device_key, made_here, tag
from mdeq_runtime.memory import available_bytes, resident_bytes
from mdeq_runtime.tensorrt.child import Event, Job
from mdeq_runtime.tensorrt.engines import EngineStore
from mdeq_runtime.tensorrt.records import EngineRecord, confirm
from mdeq_runtime.tensorrt.settings import BuildSettings

__all__ = ["Workshop", "child"]

MIB = 2**20
LOOK_S = 0.05  # between two looks at a build's memory
SPARE = 64 * MIB  # that a build leaves to the rest of the machine
TIMINGS = "timing.cache"
PURPOSE = "timings"  # of tags
CHILD = "from mdeq_runtime.tensorrt.child import main; main()"


@dataclass
class Workshop:
    """Builds engines into a store.

    Attributes:
        store: where they go; its identity is what is built for.
        rtx: whether with TensorRT for RTX.
        settings: for the compiler.
        limit: bytes of resident memory that a build may take; None: what the machine has.
        niceness: of the builds.
        timings: the timing cache; None: beside the engines.
        report: hears what each build says.
    """

    store: EngineStore
    rtx: bool
    settings: BuildSettings
    limit: int | None = None
    niceness: int = 10
    timings: Path | None = None
    report: Callable[[str, Event], None] = lambda graph, event: None
    said: list[str] = field(default_factory=list)  # TensorRT's complaints in this build

    def build(self, graph: str) -> EngineRecord:
        """Build the engine of one of the bundle's graphs and put it into its place.

        Raises:
            BundleError: the graph or its weights are missing or altered.
            EngineError: it could not be built; what was there before still is.
            ConfigError: settings that this TensorRT does not have.
            DeviceError: this device has no key that can be used.
        """
        device_key()  # without it nothing that is built would be loaded
        bundle, path = self.store.bundle, self.store.path(graph)
        for weights in self.store.profile.weights:
            bundle.file(weights.file)
        source = bundle.file(graph)
        self.said.clear()
        try:
            kept = path.with_name(TIMINGS)
            drop_foreign(kept)
            with replacing(path) as temporary:
                event = self.run(self.job(source, temporary, path), graph)
                facts = (asdict(self.settings), dict(event.measured))
                record = self.store.announce(graph, temporary, path, *facts)
            confirm(path)
            vouch(kept)
            return record
        except OSError as error:
            raise EngineError(f"{path} could not be written: {error.strerror}") from error

    def job(self, source: Path, temporary: Path, path: Path) -> Job:
        kept = self.timings or path.with_name(TIMINGS)
        timings = None if self.rtx else str(kept)
        layers = str(path.with_suffix(".layers.json"))
        return Job(
            str(source),
            str(temporary),
            layers,
            timings,
            self.rtx,
            self.settings,
            self.niceness,
            os.getpid(),
        )

    def run(self, job: Job, graph: str) -> Event:
        """Do a job in a child; its last word, which is that it has built.

        Raises:
            EngineError: it has not.
        """
        with child(job) as (process, events):
            last = None
            while True:
                try:
                    event = events.get(timeout=LOOK_S)
                except queue.Empty:
                    self.look(process, graph)
                    continue
                if event is None:
                    break
                last = event
                if event.kind == "said":
                    self.said.append(f"{event.severity}: {event.text}")
                self.report(graph, event)
                self.look(process, graph)
            status = process.wait()
        if last is not None and last.kind == "built":
            return last
        if last is not None and last.kind == "error":
            kind = getattr(errors, last.severity, EngineError)
            raise kind("\n".join([last.text, *self.complaints()]))
        raise EngineError("\n".join([died(graph, status), *self.complaints()]))

    def look(self, process: subprocess.Popen[bytes], graph: str) -> None:
        """Stop a build that takes more than it may, before the kernel stops something else."""
        size = resident_bytes(process.pid) or 0
        left = available_bytes()
        if self.limit is not None and size > self.limit:
            why = f"took {size / MIB:.0f} MiB, its limit is {self.limit / MIB:.0f} MiB"
        elif left is not None and left < SPARE:
            why = f"took {size / MIB:.0f} MiB and left the machine {left / MIB:.0f} MiB"
        else:
            return
        process.kill()
        raise EngineError(f"the build of {graph} {why}, and was stopped. {smaller(graph)}")

    def complaints(self) -> list[str]:
        return [f"  TensorRT {line}" for line in self.said[-8:]]


def drop_foreign(timings: Path) -> None:
    """Remove the timings beside engines unless this device wrote them: TensorRT parses them."""
    own = False
    with suppress(OSError):
        given = read_capped(timings.with_suffix(".tag"), 2**10).decode(errors="replace")
        own = made_here(PURPOSE, {"sha256": hash_file(timings)}, given)
    if not own:
        timings.unlink(missing_ok=True)


def vouch(timings: Path) -> None:
    """Note that timings, if there are any, were written by this device."""
    if timings.is_file():
        found = tag(PURPOSE, {"sha256": hash_file(timings)})
        write_atomic(timings.with_suffix(".tag"), found.encode())


@contextmanager
def child(job: Job) -> Iterator[tuple[subprocess.Popen[bytes], queue.Queue[Event | None]]]:
    """A process that does ``job``, and what it says, None at the end; it does not outlive this."""
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        events: queue.Queue[Event | None] = queue.Queue()
        reader = threading.Thread(target=read, args=(process.stdout, events), daemon=True)
        reader.start()
        try:
            process.stdin.write(msgspec.json.encode(job))
            process.stdin.close()
            yield process, events
        finally:
            process.kill()
            process.wait()
            reader.join()


def read(lines: IO[bytes], events: queue.Queue[Event | None]) -> None:
    for line in lines:
        # a long line that another thread's came into, or a crash's last words
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            events.put(msgspec.json.decode(line, type=Event))
    events.put(None)


def died(graph: str, status: int) -> str:
    """What a child that ended without a word may have died of."""
    if status == -signal.SIGKILL:
        return (
            f"the build of {graph} was killed, most likely by the kernel because memory ran out. "
            f"{smaller(graph)}"
        )
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return f"the build of {graph} ended with {how} before its engine was done"


def smaller(graph: str) -> str:
    """What to try on a device where a build does not fit."""
    return (
        "Compiling takes more memory the more evaluations a graph unrolls, while its engine is "
        "hardly larger: build a smaller rung (--iterations 1, and run it so), or single "
        "evaluations (--in-parts), which a run with --tolerance repeats; close other programs; or "
        "add swap"
    )
