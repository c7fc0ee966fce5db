"""What a run leaves behind to be read while it goes on: ``log.jsonl`` and TensorBoard's files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from edge_mdeq.errors import TrainingError
from edge_mdeq.files import write_atomic
from edge_mdeq.training.interrupts import uninterrupted

__all__ = ["RunLog", "writing"]


class RunLog:
    """``log.jsonl`` with a line per epoch, and the same for TensorBoard with every step's figures.

    What a run wrote after the checkpoint that it goes on from is dropped first: it will be written
    again.

    Args:
        out: the run's folder, or None to write nothing (ranks but the first).
        epochs, steps: how many were done so far.

    Raises:
        TrainingError: the disk is full or the folder not writable; so do all methods.
    """

    def __init__(self, out: Path | None, epochs: int, steps: int) -> None:
        self.out = out
        if out is None:
            return
        self.path = out / "log.jsonl"
        with writing(out):
            if self.path.exists():
                kept = kept_lines(self.path.read_text(), epochs)
                write_atomic(self.path, "".join(f"{line}\n" for line in kept).encode())
            self.board = SummaryWriter(out / "tensorboard", purge_step=steps + 1)

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Log an optimizer step."""
        self.scalars("train", step, figures)

    def epoch(self, step: int, entry: dict[str, Any]) -> None:
        """Log an epoch that ended with ``step``; everything so far is on disk afterwards."""
        self.scalars("epoch", step, entry)
        if self.out is not None:
            with writing(self.out):
                self.board.flush()
                with self.path.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                    log.flush()
                    os.fsync(log.fileno())  # before the checkpoint that goes on after it

    def scalars(self, group: str, step: int, figures: dict[str, Any]) -> None:
        """For TensorBoard, which shows them by group."""
        if self.out is not None:
            with writing(self.out):
                for name, value in figures.items():
                    self.board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write what is pending; a disk that is full has been reported before."""
        if self.out is not None:
            with suppress(OSError), uninterrupted():
                self.board.close()


def kept_lines(text: str, epochs: int) -> list[str]:
    """The lines of the first ``epochs`` epochs; a full disk may have cut the last one short."""
    kept = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            if json.loads(line)["epoch"] <= epochs:
                kept.append(line)
    return kept


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn what the operating system refuses into an error of ours; Ctrl-C waits."""
    try:
        with uninterrupted():
            yield
    except OSError as error:
        raise TrainingError(
            f"cannot write to {out} ({error.strerror or error}); the last checkpoint in it, if "
            "any, is intact: make room and go on with --resume"
        ) from error
