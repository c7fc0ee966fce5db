"""Ctrl-C is neither lost nor a failed write nor a lock that is held for ever, whenever it comes."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytest
import torch

from edge_mdeq.training.checkpoint import load_checkpoint, save_checkpoint
from edge_mdeq.training.interrupts import uninterrupted
from edge_mdeq.training.log import RunLog

LIBRARIES = (queue.__file__, threading.__file__)


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Ctrl-C as Python has it; what hangs is ended."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    alarm = signal.signal(signal.SIGALRM, hung)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, alarm)
    signal.signal(signal.SIGINT, before)


def block(done: list[str], error: Exception | None = None) -> None:
    with uninterrupted():
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            done.append("a line")
        if error is not None:
            raise error


def test_it_comes_after_the_block() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        block(done)
    assert len(done) == 3
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # as ever


def test_it_comes_after_a_block_that_fails() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        block([], OSError("full"))
    assert isinstance(caught.value.__context__, OSError)


def test_another_thread_is_none_of_its_business() -> None:
    seen = []

    def look() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_who_ignores_it_goes_on_ignoring_it() -> None:
    """As under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


class Interrupted:
    """A file whose ``number``-th write is when Ctrl-C comes."""

    def __init__(self, file: IO[bytes], number: int) -> None:
        self.file, self.left = file, number

    def write(self, data: Any) -> int:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_no_write_of_a_checkpoint_loses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, save, number = tmp_path / "checkpoint.pt", torch.save, 0
    save_checkpoint(path, {"w": torch.zeros(2000), "epoch": 1})
    opened: list[Interrupted] = []

    def saved(state: object, file: IO[bytes]) -> None:
        opened.append(Interrupted(file, number))
        save(state, opened[-1])

    monkeypatch.setattr(torch, "save", saved)
    while True:
        number += 1
        try:
            save_checkpoint(path, {"w": torch.ones(2000), "epoch": 2})
        except KeyboardInterrupt:
            assert load_checkpoint(path)["epoch"] == 1
            assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
        else:
            break
    assert opened[-1].left > 0, "it came after the last write"
    assert number > 5
    assert load_checkpoint(path)["epoch"] == 2


@contextmanager
def ctrl_c_at(number: int) -> Iterator[list[int]]:
    """Ctrl-C before the ``number``-th line, or end of a function, of Python's queues and locks.

    Yields:
        How many of them there were so far.
    """
    count = [0]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in LIBRARIES:
            return trace if event == "call" else None
        if event in ("line", "return"):
            count[0] += 1
            if count[0] == number:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def test_a_log_can_be_closed_whenever_it_came(tmp_path: Path) -> None:
    number, interrupted = 0, 0
    while True:
        number += 1
        log = RunLog(tmp_path / str(number), 0, 0)
        try:
            with ctrl_c_at(number) as count:
                log.step(1, {"loss": 1.0})
        except KeyboardInterrupt:
            interrupted += 1
        log.close()
        if count[0] < number:
            break
    assert interrupted == number - 1 > 20
