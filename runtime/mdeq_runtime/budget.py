"""A memory limit: promised before anything is loaded, and kept while frames are answered."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_mdeq.bundle import Manifest, Profile
from edge_mdeq.errors import ConfigError, MemoryLimitError
from edge_mdeq.fitting import resize
from mdeq_runtime.backends import PredictsMemory
from mdeq_runtime.memory import peak_resident_bytes, resident_bytes, trim
from mdeq_runtime.planner import MIB, Choice, buffer_bytes, choices, parse_bytes, pick
from mdeq_runtime.policies import Policy

__all__ = ["Budget", "MemoryReport", "Shedding"]

log = logging.getLogger(__name__)


class Shedding(Protocol):
    """A session that can do with less."""

    def shed(self) -> str | None:
        """Give up some memory; what was given up, or None if there is nothing left."""


@dataclass(frozen=True)
class MemoryReport:
    """What was predicted and what was measured, in bytes.

    Attributes:
        limit: of the process; None: there is none.
        predicted: at the peak, with the streams that are open; None where no limit asks for it.
        measured: largest resident memory of the process so far; None where there is no Linux.
        shed: what was given up to stay below the limit, in order.
    """

    limit: int | None
    predicted: int | None
    measured: int | None
    shed: tuple[str, ...] = ()


class Budget:
    """The limit of a process, and the streams that share it.

    Args:
        limit: such as "256MiB", or bytes: of the whole process, interpreter and libraries included.
        backend: predicts what graphs take.
        after: the budget of a model that was closed, in whose place this one's comes: what the
            process held before that was loaded, and what is beside it, is the same.

    Attributes:
        frame: (height, width) of the frames that are expected; None: the model's.
        beside: bytes that sources and sinks will hold.

    Raises:
        ConfigError: the limit makes no sense, or the backend or the system cannot keep one.
    """

    def __init__(self, limit: str | int, backend: object, after: Budget | None = None) -> None:
        self.limit = parse_bytes(limit)
        touch_resizing()
        base = resident_bytes()
        if base is None:
            raise ConfigError("a memory limit needs /proc, which this system lacks; leave it out")
        if not isinstance(backend, PredictsMemory):
            raise ConfigError(f"{backend} cannot predict its memory; leave memory_limit out")
        self.base, self.backend = base, backend
        self.frame: tuple[int, int] | None = None
        self.beside = 0
        self.loaded: set[str] = set()
        self.buffers: dict[int, int] = {}  # bytes, by the identity of an open stream
        self.predicted = base
        self.given_up: list[str] = []
        self.settled = False  # whether ``base`` is that of a budget before
        if after is not None:
            self.take_over(after)

    def take_over(self, before: Budget) -> None:
        """Go on in the place of another model's budget, which is let go of."""
        self.base, self.settled = before.base, True
        self.frame, self.beside = before.frame, before.beside
        self.predicted = max(self.predicted, before.predicted)
        self.given_up = [*before.given_up, *self.given_up]

    def plan(
        self,
        manifest: Manifest,
        profile: Profile,
        policy: Policy,
        carry: bool,
        confidence: bool = False,
        instead: object = None,
    ) -> Choice:
        """The form in which one more stream fits beside those that are open.

        ``instead``: an open stream in whose place it comes; its graphs may stay loaded.

        Raises:
            MemoryLimitError: none does, with a table of what each would need.
            SessionError: the bundle cannot run the policy.
            BundleError: the bundle does not say what its graphs take.
        """
        if (
            not self.loaded and not self.settled
        ):  # what has come since belongs to others, such as an opened source
            self.base = resident_bytes() or self.base
        found = choices(
            manifest,
            profile,
            self.backend.footprint,
            policy,
            carry,
            base=self.base,
            others=sorted(self.loaded),
            buffered=sum(n for key, n in self.buffers.items() if key != id(instead)),
            frame=self.frame,
            beside=self.beside,
            confidence=confidence,
        )
        return pick(found, self.limit, manifest.name)

    def open(self, stream: object, choice: Choice, manifest: Manifest) -> None:
        """Count a stream that runs as it was planned."""
        self.loaded |= set(choice.graphs)
        self.buffers[id(stream)] = buffer_bytes(manifest, choice.form)
        self.predicted = max(self.predicted, choice.need.total)

    def close(self, stream: object) -> None:
        """A stream has ended; its graphs stay loaded until the model is closed."""
        self.buffers.pop(id(stream), None)

    def watch(self, stream: Shedding) -> None:
        """After a frame: give up what can be given up if the process has outgrown its limit.

        Raises:
            MemoryLimitError: there is nothing left to give up.
        """
        size = resident_bytes() or 0
        if size <= self.limit:
            return
        trim()
        if (size := resident_bytes() or 0) <= self.limit:
            self.note("unused heap", size)
            return
        given_up = stream.shed()
        trim()
        size = resident_bytes() or 0
        if given_up is not None:
            self.note(given_up, size)
        elif size > self.limit:
            raise MemoryLimitError(
                f"the process holds {size / MIB:.0f} MiB, its limit is {self.limit / MIB:.0f} MiB, "
                f"and {self.predicted / MIB:.0f} MiB were predicted; nothing is left that could be "
                "given up. Something else in this process grows, or frames are larger than was "
                "said"
            )

    def note(self, given_up: str, size: int) -> None:
        if given_up not in self.given_up:
            self.given_up.append(given_up)
            log.warning(
                "memory limit of %.0f MiB exceeded: gave up %s; %.0f MiB are held now",
                self.limit / MIB,
                given_up,
                size / MIB,
            )

    def report(self) -> MemoryReport:
        """Predicted and measured so far."""
        peak = peak_resident_bytes()
        return MemoryReport(self.limit, self.predicted, peak, tuple(self.given_up))


def touch_resizing() -> None:
    """Bring in the code that fits frames: 8 MB where the kernel maps files by large pages.

    It would come with the first frame otherwise, and not be counted with what is there already.
    """
    resize(np.zeros((4, 4, 3), np.uint8), 2, 2, "area")
