"""What every sink of results can do."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol

from edge_mdeq.errors import SinkError
from mdeq_runtime.results import Frame, Result

__all__ = ["Sink", "make_folder"]


class Sink(Protocol):
    """Takes results, one after the other."""

    def write(self, frame: Frame, result: Result) -> bool:
        """Take one result; False asks to stop the run.

        Raises:
            SinkError: it cannot be written.
        """
        ...

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


def make_folder(path: Path) -> None:
    """Make a folder and its parents, or say why not.

    Raises:
        SinkError: a file is in the way, or there is no permission.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"cannot make the output folder {path} ({error.strerror}); choose another place"
        ) from error
