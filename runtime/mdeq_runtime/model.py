"""The door for programs: a bundle, opened and ready for frames."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import Bundle, open_bundle
from edge_mdeq.bundle.precision import chosen
from edge_mdeq.bundle.signature import KeyFiles
from mdeq_runtime.backends import Backend
from mdeq_runtime.backends.choose import open_backend
from mdeq_runtime.budget import Budget, MemoryReport
from mdeq_runtime.memory import peak_resident_bytes
from mdeq_runtime.planner import parse_bytes
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.session import Session, SessionSettings

if TYPE_CHECKING:
    from mdeq_runtime.sinks import Sink
    from mdeq_runtime.sources import Source, SourceOptions

__all__ = ["Model"]

log = logging.getLogger(__name__)


class Model:
    """A bundle loaded for inference; what its export warned of is logged.

    Example:
        >>> with Model(Path("camvid-nano.mdeq")) as model:
        ...     mask = model(frame).output               # one BGR frame, cold
        ...     for result in model.stream("drive.mp4"):  # each frame from the last equilibrium
        ...         print(result.iterations, result.residual)

    Args:
        path: the bundle, ``NAME.mdeq``.
        settings: how its sessions solve, unless they are given their own.
        threads: threads per graph, 0 for one per core.
        cache: a folder in which graphs are kept as this machine runs them: for ImageNet-small, of
            67 MB of weights, the process is 25 MB smaller, and most of it is mapped.
        device: "cpu", "cuda", "tensorrt", or "auto": engines that fit this device, else cuda where
            all that it needs is there, else the CPU; see ``mdeq_runtime.backends.choose``.
        memory_limit: of the whole process, such as "256MiB" or a number of bytes. What does not fit
            is refused before anything is loaded, and the process is watched while frames are
            answered; see ``mdeq_runtime.budget``. The first model of a process sets it.
        require_signature: files of public keys, one of which must have signed the bundle.
        after: a model that was closed, in whose place in the memory limit this one comes.

    Raises:
        BundleError: missing, altered, incomplete, written by a newer version, or not signed by any
            of the keys.
        MissingExtraError: no backend is installed.
        MemoryLimitError: it does not fit, with a table of what it would need.
        ConfigError: no such device, or a limit that makes no sense.
        DeviceError: the device that was asked for, or what it needs, is not there.
    """

    def __init__(
        self,
        path: Path,
        settings: SessionSettings | None = None,
        threads: int = 0,
        cache: str | Path | None = None,
        *,
        device: str = "auto",
        memory_limit: str | int | None = None,
        require_signature: KeyFiles | None = None,
        after: Model | None = None,
    ) -> None:
        self.settings = settings or SessionSettings()
        self.require_signature = require_signature
        self.bundle = open_bundle(Path(path), require_signature=require_signature)
        self.manifest = self.bundle.manifest
        for warning in self.manifest.warnings:
            log.warning("%s: %s", self.manifest.name, warning)
        self.device, self.threads = device, threads
        self.cache = None if cache is None else Path(cache)
        self.limit = None if memory_limit is None else parse_bytes(memory_limit)
        self.backend, self.profile = self.open_backend(self.bundle)
        self.budget: Budget | None = None
        if self.limit is not None:
            self.budget = Budget(self.limit, self.backend, after.budget if after else None)
            self.check_fit()
        self.single: Session | None = None

    def open_backend(self, bundle: Bundle) -> tuple[Backend, str]:
        """What runs a bundle as this model's is run, and the name of the profile."""
        asked = self.settings
        return open_backend(
            bundle, self.device, self.threads, self.cache, self.limit,
            (asked.policy,), asked.carry, asked.precision,
        )  # fmt: skip

    @property
    def labels(self) -> tuple[str, ...]:
        """A name per class."""
        return self.manifest.labels

    def session(self, settings: SessionSettings | None = None) -> Session:
        """A new stream with a state of its own; it shares this model's graphs.

        Raises:
            SessionError: a tolerance that the graphs' precision cannot meet, or counts that cannot
                be made of the bundle's rungs.
            MemoryLimitError: it does not fit beside the streams that are open.
        """
        profile = self.bundle.profile(self.profile)
        chosen = settings or self.settings
        return Session(self.manifest, profile, self.backend, chosen, self.budget)

    def expect(self, source: Source, sinks: Sequence[Sink] = ()) -> None:
        """Say what frames will come and where results will go, for the memory limit.

        Raises:
            MemoryLimitError: with what these hold a stream does not fit.
        """
        if self.budget is not None:
            self.budget.frame = source.size or self.budget.frame
            self.budget.beside += source.holding()
            self.budget.beside += sum(sink.holding(source.size) for sink in sinks)
            self.check_fit()

    def check_fit(self) -> None:
        """See that one more stream would fit, before anything is loaded for it."""
        if self.budget is not None:
            asked, profile = self.settings, self.bundle.profile(self.profile)
            usual = self.manifest.precision
            profile = chosen(profile, asked.precision, usual, self.manifest.name)
            self.budget.plan(self.manifest, profile, asked.policy, asked.carry, asked.confidence)

    def memory(self) -> MemoryReport:
        """What the process was predicted to take, and what it has taken so far."""
        if self.budget is not None:
            return self.budget.report()
        return MemoryReport(None, None, peak_resident_bytes())

    def __call__(self, frame: NDArray[np.uint8]) -> Result:
        """Answer one BGR image (h, w, 3) uint8 by itself, from a cold start."""
        if self.single is None:
            self.single = self.session(replace(self.settings, carry=False))
        return self.single(frame)

    def stream(
        self,
        source: str | Iterable[NDArray[np.uint8]],
        options: SourceOptions | None = None,
    ) -> Iterator[Result]:
        """Answer the frames of a source URI, or of any iterable of BGR images, in order.

        Closing the iterator closes the source.

        Args:
            source: as ``mdeq_runtime.sources.open_source`` takes it, or images.
            options: what is asked of a URI's source.
        """
        from mdeq_runtime.slot import capture
        from mdeq_runtime.sources import open_source

        if isinstance(source, str):
            with open_source(source, options) as opened:
                self.expect(opened)
                with self.session() as session, capture(opened) as frames:
                    for frame in frames:
                        yield session(frame)
        else:
            with self.session() as session:
                for index, image in enumerate(source):
                    yield session(Frame(image, index, 0.0))

    def close(self) -> None:
        """Let go of graphs and memory; sessions of this model are of no use afterwards."""
        if self.single is not None:
            self.single.close()
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
