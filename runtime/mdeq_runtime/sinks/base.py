"""What every sink of results can do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from edge_mdeq.errors import SinkError
from edge_mdeq.files import make_folder
from mdeq_runtime.results import Frame, Result
from mdeq_runtime.sources.base import Source, pixels

if TYPE_CHECKING:
    from mdeq_runtime.metrics import Metrics

__all__ = ["Sink", "check_file", "check_folder", "refuse_clashes"]

PICTURES = (".jpg", ".jpeg", ".png")  # that sinks write into folders


class Sink(Protocol):
    """Takes results, one after the other.

    Attributes:
        place: the file or folder that it writes, None for neither.
        queue: how many results may wait for it in a thread of its own (``sinks.lane``); 0: it is
            quick, or belongs to the main thread, and is written to at once.
        aside: whether it only accompanies a run, which would not go on for it alone.
    """

    place: Path | None = None
    queue: int = 0
    aside: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.place or type(self).__name__)

    def begin(self, session: object, metrics: Metrics) -> None:
        """Told before the first frame what answers frames and what counts them."""
        return

    def write(self, frame: Frame, result: Result) -> bool:
        """Take one result; False asks to stop the run.

        Raises:
            SinkError: it cannot be written.
        """
        ...

    def prepare(self, frame: Frame, result: Result) -> Callable[[], bool] | None:
        """``write`` to be called later, once, from the sink's thread; it holds what it needs.

        None if the sink wants nothing of this result.
        """
        return partial(self.write, frame, result)

    def holding(self, size: tuple[int, int] | None) -> int:
        """Bytes that it takes with frames of ``size`` (height, width), predicted."""
        return 2_000_000 + pixels(size)  # code and buffers; a mask

    def close(self) -> None:
        """Finish what was written so far; may be called twice.

        Raises:
            SinkError: what was written did not arrive whole.
        """
        ...

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_folder(path: Path) -> None:
    """Make a folder and its parents where they are missing, and see that files can be made there.

    A file is made and removed: permissions alone say little of a read-only or special file system.

    Raises:
        SinkError: a file is in the way, or there is no permission.
    """
    try:
        make_folder(path)
    except OSError as error:
        raise SinkError(
            f"cannot make the output folder {path} ({error.strerror}); choose another place"
        ) from error
    try:
        tempfile.TemporaryFile(dir=path).close()  # without a name, where the file system has that
    except OSError as error:
        raise SinkError(
            f"cannot write into {path} ({error.strerror}); choose another place"
        ) from error


def check_file(path: Path) -> None:
    """See that a file can be written, and leave it as it is.

    Raises:
        SinkError: a folder or a protected file is in its place, or its parent cannot be written.
    """
    if os.path.isdir(path):
        raise SinkError(f"{path} is a folder; name a file")
    if not os.path.exists(path):
        check_folder(path.parent)
    elif not os.access(path, os.W_OK):
        raise SinkError(f"no permission to write {path}; choose another name")


def refuse_clashes(source: Source, sinks: Sequence[Sink]) -> None:
    """See that no output takes the place of the source or of another output.

    Raises:
        SinkError: one does.
    """
    read = {real(file) for file in source.files}
    taken: set[Path] = set()
    for place in (real(sink.place) for sink in sinks if sink.place is not None):
        if place in read:
            raise SinkError(f"output {place} is the source itself; choose another name")
        if any(file.parent == place and file.suffix.lower() in PICTURES for file in read):
            raise SinkError(
                f"output folder {place} holds the source's images, whose names results could take; "
                "choose another folder"
            )
        if place in taken:
            raise SinkError(f"output {place} is given twice; drop one")
        taken.add(place)


def real(path: Path) -> Path:
    """Where a path leads; unlike ``Path.resolve`` links that go round in circles do no harm."""
    return Path(os.path.realpath(path))
