"""The door for programs: a bundle, opened and ready for frames."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_mdeq.bundle import open_bundle
from mdeq_runtime.backends.ort_cpu import PROFILE, OrtCpuBackend
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.session import Session, SessionSettings

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

    Raises:
        BundleError: missing, altered, incomplete, or written by a newer version.
        MissingExtraError: no backend is installed.
    """

    def __init__(
        self,
        path: Path,
        settings: SessionSettings | None = None,
        threads: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        self.settings = settings or SessionSettings()
        self.bundle = open_bundle(Path(path))
        self.manifest = self.bundle.manifest
        for warning in self.manifest.warnings:
            log.warning("%s: %s", self.manifest.name, warning)
        self.backend = OrtCpuBackend(self.bundle, threads, None if cache is None else Path(cache))
        self.single: Session | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """A name per class."""
        return self.manifest.labels

    def session(self, settings: SessionSettings | None = None) -> Session:
        """A new stream with a state of its own; it shares this model's graphs.

        Raises:
            SessionError: a tolerance that the graphs' precision cannot meet, or counts that cannot
                be made of the bundle's rungs.
        """
        profile = self.bundle.profile(PROFILE)
        return Session(self.manifest, profile, self.backend, settings or self.settings)

    def __call__(self, frame: NDArray[np.uint8]) -> Result:
        """Answer one BGR image (h, w, 3) uint8 by itself, from a cold start."""
        if self.single is None:
            self.single = self.session(replace(self.settings, carry=False))
        return self.single(frame)

    def stream(self, source: str | Iterable[NDArray[np.uint8]]) -> Iterator[Result]:
        """Answer the frames of a source URI, or of any iterable of BGR images, in order.

        Closing the iterator closes the source.
        """
        from mdeq_runtime.slot import capture
        from mdeq_runtime.sources import open_source

        with self.session() as session:
            if isinstance(source, str):
                with open_source(source) as opened, capture(opened) as frames:
                    for frame in frames:
                        yield session(frame)
            else:
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
